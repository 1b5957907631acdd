#!/usr/bin/env bash
# The classifier of a solution of the Aiconnect 2021 action recognition challenge (github.com/lee-gwang/aiconnect_action_recognition):
# TSM with heavy augmentation on whole frames.
#
# Published (public leaderboard; its metric is not stated): 0.413 for this classifier, 0.298 without augmentation, 0.486 as the mean
# of two with a rule for umbrellas, 0.559 with all rules and a detector. There is no interval: the test clips are not released.
#
# The second member is the same with repeated classes, and the whole is the mean of both and the rules:
#     bash job_files/methods/aiconnect.sh --run_name aiconnect_repeated \
#         --class_repeats putup_umbrella=3 ride_kick=3 fall_down=3 jay_walk=3 ride_cycle=3 fighting=3
#     python -m training.combine runs/aiconnect runs/aiconnect_repeated --weights equal --postprocess aiconnect \
#         --boxes detections.csv --output runs/aiconnect_whole
# detections.csv holds the boxes of your detector, of the classes ride_kick and fall_down (data_preparation/detections.py). For a network
# of torchvision: python -m training.detect --weights FILE --classes background ride_kick fall_down --root_dir FRAMES --output detections.csv
# All of it on drawn clips: bash job_files/aiconnect.sh
# If the GPU waits for clips (data ... ms in the log) and there are no more CPU cores: --augment_on device
#
# Published settings: ResNet-50 from ImageNet weights, 8 frames, frames of 960 x 540 resized to 683 x 384 without crops, dropout 0.5, SGD
# at 0.0025 (5 times that for the output layer, 10 times for its bias), momentum 0.9, weight decay 0.0001 (not for biases and batch
# norm), 50 epochs with a tenth of the rate after epochs 20 and 40, batches of 16 on four GPUs, gradients clipped at 20.
# Changed, and why:
# * The side of the rotation is drawn for each clip. The authors' code draws it once for the whole training.
# * The frames of a clip are counted; the authors' lists say 63 or 68 for all.
# * Repeats of an action in an epoch are augmented with other random numbers, as rows of the authors' list are.
# * Rules are chosen on validation clips. The authors tuned thresholds and order on the public leaderboard.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --dataset_kind clips
    --annotation_path "$DEEPSPORTS_DATASET/annotations"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name aiconnect

    --model tsm
    --pretrained_model "$DEEPSPORTS_DATASET/weights/resnet50.pth"
    --resnet_depth 50
    --batch_norm trained
    --bn_group 4                   # the clips of one of four GPUs

    --method classify
    --head_on_each True            # logits of frames are averaged
    --head_init_std 0.001
    --head_dropout 0.5

    --frame_num 8
    --frame_method segments
    --spatial_size 384
    --spatial_width 683
    --augment randaugment
    --flip True
    --batch_size 16

    --epochs 50
    --optimizer SGD
    --learning_rate 0.0125         # of the output layer
    --backbone_lr_scale 0.2
    --bias_lr_scale 2
    --decay_of weights
    --momentum 0.9
    --weight_decay 0.0001
    --lr_schedule steps
    --lr_steps 20 40
    --clip_grad 20
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
