#!/usr/bin/env bash
# MUSDL on MTL-AQA: "Uncertainty-aware Score Distribution Learning for Action Quality Assessment" (Tang et al., CVPR 2020).
#
# Published: a test Spearman of 0.9306 in the best of 100 epochs on the test dives (authors' log), and 0.903 in the last one. The
# 95 % interval of 0.9306 on 353 dives is 0.911 to 0.945: the mean bootstrap interval of simulated predictions (true score plus
# normal noise that gives this Spearman). The difficulty of each dive is an input: its mean score in the train list alone gives
# 0.576.
#
# Published settings: as in usdl.sh, with a weight decay of 0.00001 and a distribution of 21 half points for each of seven judges.
# Changed, and why:
# * What usdl.sh lists.
# * The annotations are those with dive numbers, which have the judges' scores. The authors' own file has a typing error (a judge
#   of dive 04/049 gave 45 points); it is refused.
#
# JIGSAWS, one of four folds: --dataset_kind jigsaws --annotation_path FOLDER --videos Suturing --fold 1 --judges 6 \
#     --judge_range 1 5 --judge_bins 5 --judges_total sum --target_std 1 --frame_num 160 --frame_method spaced_fixed \
#     --window_layout full --bn_windows together --epochs 80
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict_with_dive_number.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name musdl

    --model i3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/model_rgb.pth"
    --window_layout 10x16_end      # starts 0, 10, ..., 80 and 87
    --bn_eps 0.001
    --bn_momentum 0.01
    --batch_norm trained
    --bn_group 2                   # the dives of one GPU
    --bn_windows apart

    --method musdl
    --judges 7
    --judge_range 0 10
    --judge_bins 21
    --judges_total diving
    --target_std 5                 # bins: 2.5 points
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
    --weight_decay 0.00001
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
