#!/usr/bin/env bash
# ST-ABN on labelled clips: "ST-ABN: Visual Explanation Taking into Account Spatio-temporal Information for Video Recognition"
# (Mitsuhara, Hirakawa, Yamashita, Fujiyoshi, 2021).
#
# Published: accuracies on Something-Something V1 and V2 in the paper; neither public code states one, so none is quoted. The 95 %
# interval (Wilson) of 60 % on the 24777 validation clips of V2 would be 59.4 to 60.6 %.
#
# Published settings: ResNet-50, 32 frames, SGD with Nesterov momentum 0.9 at 0.01, weight decay 0.0005, batches of 64, 150 epochs with a
# tenth of the rate after epochs 75 and 125, dropout 0.5, gradients clipped at 20 (the first code), both cross-entropies with
# weight 1. The stages start from a 2-D ResNet-50 trained on ImageNet.
# Changed, and why:
# * The number of classes is that of the data set; both public codes have an attention classifier of 174 classes for any data.
# * Clips are never flipped, since many classes of Something-Something name a direction: whole frames are resized to a square,
#   without crops and without changes of colours. Give --data_aug True for other classes.
# * 20 % of the training clips are for the choice of the epoch; the authors choose on the clips that they report.
# * Frames are RGB, as the weights expect. The plain PyTorch code feeds BGR, and its flip turns clips upside down.
# * Short clips repeat frames all along the clip; the plain code repeats the first frame at the end.
#
# Memory: a clip of 32 x 224 x 224 needs about 309 GMAC. --accumulate 16 on a GPU of 80 GB is a start, and
# --checkpoint_activations True helps.
# MTL-AQA: --dataset_kind mtl_aqa and its annotations, --predicts score
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --dataset_kind clips
    --annotation_path "$DEEPSPORTS_DATASET/annotations"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name st_abn

    --model st_abn
    --pretrained_model "$DEEPSPORTS_DATASET/weights/resnet50.pth"   # of torchvision or timm
    --resnet_depth 50
    --attention_channels 174       # the number of classes
    --attention_relu False         # True as in the first code
    --batch_norm trained
    --bn_group 4

    --method abn
    --predicts label
    --branch_dropout 0.5

    --frame_num 32
    --frame_method segments
    --spatial_size 224
    --batch_size 64
    --accumulate 16

    --epochs 150
    --optimizer SGD
    --learning_rate 0.01
    --momentum 0.9
    --nesterov True
    --weight_decay 0.0005
    --lr_schedule steps
    --lr_steps 75 125
    --clip_grad 20
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
