#!/usr/bin/env bash
# PECoP, the second of two trainings: CoRe on I3D with the adapters of job_files/methods/pecop_pretrain.sh.
# "PECoP: Parameter Efficient Continual Pretraining for Action Quality Assessment" (Dadashzadeh et al., WACV 2024).
#
# Both trainings, as jobs that follow each other:
#     python -m launch.pipeline --pretrain job_files/methods/pecop_pretrain.sh --config job_files/methods/pecop.sh
# Without the pipeline: bash job_files/methods/pecop_pretrain.sh, then bash job_files/methods/pecop.sh.
#
# Published: on MTL-AQA the test Spearman of the methods that start from it (MUSDL, CoRe, TSA) is up to 0.99 % higher. No interval
# is published. The 95 % interval of 0.951 on 353 dives is 0.936 to 0.961 (the mean bootstrap interval of simulated predictions),
# so such a difference needs a paired comparison: python -m training.compare RUN_WITH RUN_WITHOUT.
#
# The authors' code of this second training is not released. These are the settings of job_files/methods/core.sh, which also names
# what was changed there, with adapters. --adapters_only True would train the adapters and the regression tree only.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name pecop

    --model i3d
    --pretrained_model "$DEEPSPORTS_RUNS/pecop_pretrain/checkpoints/best.pt"
    --adapters True
    --adapters_only False          # the whole network is trained
    --window_layout 10x16
    --bn_eps 0.001
    --batch_norm frozen

    --method core
    --pairs difficulty
    --voters 10
    --difficulty given
    --tree_depth 5
    --tree_width 256

    --frame_num 103
    --frame_method end_aligned
    --spatial_size 224
    --data_aug True
    --batch_size 2                 # pairs: four videos

    --epochs 200
    --optimizer Adam
    --learning_rate 0.001
    --backbone_lr_scale 0.1
    --weight_decay 0
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
