#!/usr/bin/env bash
# Shows that TSA-Net uses its boxes: it is trained with the true boxes, with the boxes of other clips, and without attention, each with
# the seeds 0 and 1, and the table is written into training/README.md. Each drawn clip has two skaters who land or fall, and only the one
# in the boxes decides the label, so without the boxes 0.78 is the most to be expected. I3D takes hours on a CPU: the backbone
# is a small one, the plug-in tsanet_boxes/. A second call skips what is done.
#
#     bash job_files/tsanet_boxes.sh
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail # stop at the first error
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" # also refuses Windows line endings
builtin cd "$DEEPSPORTS_HOME"
export DEEPSPORTS_DATASET="$DEEPSPORTS_SCRATCH/DeepSports_pairs" DEEPSPORTS_PLUGINS="$DEEPSPORTS_HOME/job_files/tsanet_boxes"

annotations="$DEEPSPORTS_DATASET/annotations"
runs="$DEEPSPORTS_RUNS/tsanet_boxes"
mkdir -p "$runs"

python -m data_preparation.synthetic --task fall --skaters 2 --width 160 --clips 900 --performers 60
python -m data_preparation.extract --dataset_kind table --height 0 --window 0 --after 0 --verify True
[ -e "$DEEPSPORTS_DATASET/boxes_shuffled" ] || python -m data_preparation.boxes shuffle --output "$DEEPSPORTS_DATASET/boxes_shuffled"

done_runs=()
train() { # train NAME BOXES: with two seeds
    local seed
    for seed in 0 1; do
        python -m training.train --run_name "$1-s$seed" --seed "$seed" --runs_dir "$runs" \
            --dataset_kind table --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames" --annotation_path "$annotations" \
            --train_path "$annotations/train_split_0.pkl" --test_path "$annotations/test_split_0.pkl" \
            --model staged --batch_norm trained --bn_group 16 --method tsanet --boxes "$2" --predicts label \
            --frame_num 16 --frame_method spaced_fixed --spatial_size 32 --spatial_width 72 --flip True --batch_size 16 \
            --epochs 8 --optimizer AdamW --learning_rate 0.003 --lr_schedule cosine --warmup_steps 20 --clip_grad 5 --evaluate True
        done_runs+=("$runs/$1-s$seed")
    done
}

train true-boxes "$DEEPSPORTS_DATASET/boxes"
train shuffled-boxes "$DEEPSPORTS_DATASET/boxes_shuffled"
train without-boxes none
python -m training.report "${done_runs[@]}" | tee "$runs/table.md"
env -u DEEPSPORTS_PLUGINS python -m launch.readme_tables "$runs/table.md" "box results"
