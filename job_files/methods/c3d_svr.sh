#!/usr/bin/env bash
# C3D-SVR on UNLV-Dive: "Learning to Score Olympic Events" (Parmar and Morris, CVPRW 2017): support vector regression on features of
# a C3D that was trained on Sports-1M.
#
# No published number is quoted: the split of the paper and that of the released lists (300 and 70 dives) are not known to be the same.
# With 70 test dives the 95 % interval of a Spearman of 0.75 is 0.62 to 0.84 (Fisher's z, standard error 1.03 / sqrt(67)).
#
# Published settings: windows of 16 frames, features averaged over the clip, support vector regression.
# Changed, and why:
# * The features are those of the last pooling layer; the authors take fc6, which c3d.pickle has and --model c3d has not.
# * Kernel, cost and epsilon are chosen on validation dives.
#
# MTL-AQA: --dataset_kind mtl_aqa, its annotations and lists, --frame_method end_aligned
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --dataset_kind unlv_dive
    --annotation_path "$DEEPSPORTS_DATASET/annotations"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name c3d_svr

    --model c3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/c3d.pickle"

    --method svr

    --frame_num 103
    --frame_method spaced_fixed
    --spatial_size 112
    --data_aug True                # the centre crop: features are computed once
    --geometry centre_crop
    --batch_size 8
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
