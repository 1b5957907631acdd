#!/usr/bin/env bash
# TSA-Net on FR-FS: "TSA-Net: Tube Self-Attention Network for Action Quality Assessment" (Wang et al., ACM MM 2021).
#
# Published: test accuracy 98.56 %, without attention (Plain-Net) 94.23 %, in the best epoch on the 208 test clips. One clip is 0.48
# points; the 95 % interval of 98.56 % (205 of 208) is 95.8 to 99.5 (Wilson), that of 94.23 % (196 of 208) is 90.2 to 96.7. The
# largest class has 66.35 %. Compare two runs with python -m training.compare, which also makes McNemar's test.
#
# Boxes: python -m data_preparation.boxes frfs. Other trackers and data sets: python -m data_preparation.boxes convert.
#
# Published settings: Adam at 0.0001, weight decay 0.00001, 20 epochs, batches of four clips, 103 frames, seven windows, centre crops
# without flips, batch norm trained on the clips of a batch and on one window position at a time. Changed, and why:
# * Boxes are scaled as the pixels are, and each window gets its own steps; --released_tube True repeats the mistakes of the code.
# * Training uses 80 % of the train list, and the epoch is chosen on the rest, not on the test clips.
# * Half of the training clips are flipped, boxes included.
# * One resize filter for all frames; the authors draw a filter for each frame, also in the test.
# * The last batch of an epoch is left out if it is not full.
#
# Without attention: --run_name tsanet_plain --boxes none
# As a regressor on MTL-AQA ("TSA-USDL"; the authors released no code for it, and boxes of any tracker serve):
#     --dataset_kind mtl_aqa --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl" --predicts score \
#     --frame_method end_aligned --geometry standard --epochs 100 --weight_decay 0
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --dataset_kind frfs            # needs no lists; --dataset_kind mtl_aqa reads the two above
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name tsanet

    --model i3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/rgb_i3d_pretrained.pt"
    --window_layout full           # starts 0, 16, ..., 80 and 87
    --bn_eps 0.001
    --bn_momentum 0.01
    --batch_norm trained
    --bn_group 4                   # the clips of a batch
    --bn_windows apart

    --method tsanet
    --boxes "$DEEPSPORTS_DATASET/boxes"
    --predicts label
    --head_dropout 0
    --released_tube False

    --frame_num 103
    --frame_method spaced_fixed    # all frames of a clip
    --spatial_size 224
    --data_aug True
    --geometry centre_crop
    --batch_size 4

    --epochs 20
    --optimizer Adam
    --learning_rate 0.0001
    --weight_decay 0.00001
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
