#!/usr/bin/env bash
# USDL on MTL-AQA: "Uncertainty-aware Score Distribution Learning for Action Quality Assessment" (Tang et al., CVPR 2020).
#
# Published: a test Spearman of 0.9064 in the best of 100 epochs on the test dives (authors' log), and 0.892 in the last one. The
# 95 % interval of 0.9064 on 353 dives is 0.881 to 0.925: the mean bootstrap interval of simulated predictions (true score plus
# normal noise that gives this Spearman). The difficulty is not an input.
#
# Published settings: Adam at 0.0001, no weight decay, 100 epochs, batches of four dives on two GPUs, 103 frames with a shift of up
# to 3, ten windows, batch norm trained on the two dives of a GPU and on one window position at a time, 101 bins of 1.045 points.
# Changed, and why:
# * Training uses 80 % of the train list, and the epoch is chosen on the rest, not on the test dives.
# * Test clips have the middle of the shifts seen in training; the authors' begin three frames earlier.
# * One resize filter for all frames; the authors draw a filter for each frame, also in the test.
# * The running statistics of batch norm are those of all dives; the authors keep those of the first GPU.
# * The last batch of an epoch is left out if it is not full.
# --decode expectation predicts the mean of the distribution, which is not rounded to bins.
#
# AQA-7 (all kinds in one model): --dataset_kind aqa7 --annotation_path FOLDER --frame_method spaced_fixed
# JIGSAWS, one of four folds: --dataset_kind jigsaws --annotation_path FOLDER --videos Suturing --fold 1 --score_bins 25 \
#     --target_std 1 --frame_num 160 --frame_method spaced_fixed --window_layout full --bn_windows together --epochs 80 (the authors do not resize frames, and take the centre crop)
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name usdl

    --model i3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/model_rgb.pth"
    --window_layout 10x16_end      # starts 0, 10, ..., 80 and 87
    --bn_eps 0.001
    --bn_momentum 0.01
    --batch_norm trained
    --bn_group 2                   # the dives of one GPU
    --bn_windows apart

    --method usdl
    --score_bins 101
    --target_std 5
    --decode argmax

    --frame_num 103
    --frame_method end_aligned
    --spatial_size 224
    --data_aug True
    --geometry standard
    --batch_size 4

    --epochs 100
    --optimizer Adam
    --learning_rate 0.0001
    --weight_decay 0
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
