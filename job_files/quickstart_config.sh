#!/usr/bin/env bash
# The flags of the quick start: a small TimeSformer on synthetic dives, on two CPU cores. Same format as model_train_config.sh.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name quickstart

    --model timesformer
    --spatial_size 64
    --patch_size 16
    --embed_dim 128
    --depth 3
    --num_heads 4
    --drop_path 0
    --topology 128
    --dropout 0
    --activation GELU

    --frame_num 8
    --frame_method spaced_varied_new
    --batch_size 16
    --workers 2

    --loss_mse_weight 1
    --loss_spcoef_weight 0.1
    --epochs 8
    --optimizer AdamW
    --learning_rate 0.0005
    --weight_decay 0.01
    --lr_schedule cosine
    --warmup_steps 100
    --clip_grad 1
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
