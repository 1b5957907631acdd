#!/usr/bin/env bash
# The flags of a tiny TimeSformer for small nodes without GPUs (two CPUs and 2 GB are enough): to try the commands on a
# cluster, not to score well. Same format as model_train_config.sh.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name small
    --gpu False

    --model timesformer
    --spatial_size 32
    --embed_dim 64
    --depth 2
    --num_heads 2
    --drop_path 0
    --topology 64
    --dropout 0
    --activation GELU

    --frame_num 4
    --frame_method spaced_varied_new
    --batch_size 8
    --workers 1

    --loss_spcoef_weight 0.1
    --epochs 5
    --learning_rate 0.001
    --log_every 1
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
