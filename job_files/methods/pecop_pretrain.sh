#!/usr/bin/env bash
# PECoP, the first of two trainings: adapters in I3D learn to tell the pace of video segments, without labels.
# "PECoP: Parameter Efficient Continual Pretraining for Action Quality Assessment" (Dadashzadeh et al., WACV 2024).
#
# This training and the second one, as jobs that follow each other:
#     python -m launch.pipeline --pretrain job_files/methods/pecop_pretrain.sh --config job_files/methods/pecop.sh
#
# Published settings: SGD at 0.01, momentum 0.9, weight decay 0.0001, batches of 16 clips of 32 frames, 8 epochs of 20 passes.
# Changed, and why:
# * 160 epochs of one pass: each pass has draws of its own, and validation can choose among more epochs.
# * The learning rate is constant. The published cosine schedule was meant for 22 epochs, so it ends at 0.0072.
# * Batch norm uses the running statistics of the weight file (the authors' code lets them drift). --batch_norm trained
#   --bn_group 16 gives the published behaviour.
# * Segments have equal lengths, and a clip never jumps back to the first frame (see training/methods/vspp/method.py).
# * Frames are RGB, as the weights expect. The authors' code feeds BGR.
# * --pace_stride 1, which the authors' code advises for diving; their own data have 3.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name pecop_pretrain

    --model i3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/model_rgb.pth"
    --adapters True                # only the adapters and the two output layers are trained
    --adapter_init random          # as published; zero starts with the features of the weight file
    --bn_eps 0.001                 # that of the weights; the authors' code has 0.00001
    --window_layout 4x32
    --batch_norm frozen

    --method vspp
    --pace_stride 1
    --max_pace 5
    --segments 4
    --pretext_dropout 0.5

    --frame_num 32
    --spatial_size 224
    --data_aug True
    --batch_size 16

    --epochs 160
    --optimizer SGD
    --learning_rate 0.01
    --momentum 0.9
    --weight_decay 0.0001
    --lr_schedule constant
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
