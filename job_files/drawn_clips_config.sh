#!/usr/bin/env bash
# The flags of a small TimeSformer that classifies drawn clips (data_preparation.synthetic --task fall or --task actions), on
# two CPU cores. Same format as model_train_config.sh.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --dataset_kind table
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name clips

    --model timesformer
    --spatial_size 48
    --patch_size 12
    --embed_dim 64
    --depth 3
    --num_heads 4
    --drop_path 0
    --input_scale timesformer

    --method classify
    --head_dropout 0

    --frame_num 8
    --frame_method spaced_varied_new
    --batch_size 16
    --workers 2

    --epochs 20
    --optimizer AdamW
    --learning_rate 0.001
    --weight_decay 0.01
    --lr_schedule cosine
    --warmup_steps 50
    --clip_grad 1
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
