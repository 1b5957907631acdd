#!/usr/bin/env bash
# MSCADC-MTL on MTL-AQA: "What and How Well You Performed? A Multitask Learning Approach to Action Quality Assessment" (Parmar and
# Morris, CVPR 2019): score, five attributes and a caption, each with a context head of its own on the maps of a small C3D.
#
# Published: a test Spearman of 0.8612 (0.8472 without the other tasks; paper). The 95 % interval of 0.8612 on 353 dives is 0.83 to
# 0.89 (Fisher's z, standard error 1.03 / sqrt(350)).
#
# Published settings: Adam at 0.0001, no weight decay, 100 epochs, batches of 3 dives, 16 of the last 103 frames with a shift of up to 3,
# crops of 180 x 180 from the centre of 640 x 360 frames with flips, (MSE + L1) of score / 17 + cross-entropies + 0.01 of the
# negative log-likelihood of the caption.
# Changed, and why:
# * Random weights. The authors start from weights that they do not distribute.
# * Training uses 80 % of the train list, and the epoch is chosen on the rest, not on the test dives.
# * Test frames are resized like those of the training; the authors crop the test frames without resizing them.
# * Frames are resized to 366 x 206, not to 640 x 360: crops of 180 pixels show more of them.
# * Batches of 4 and batch norm over 2 dives, so that any number of GPUs gives the same result; the authors' batches have 3.
# * One resize filter for all frames; the authors draw one for each frame.
#
# MSCADC-STL, the score alone, is not here: --method regression on --model mscadc predicts execution and difficulty.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --captions_path "$DEEPSPORTS_DATASET/annotations/final_captions_dict.pkl"
    --vocabulary_path "$DEEPSPORTS_DATASET/annotations/vocab.json"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name mscadc

    --model mscadc
    --pretrained_model none
    --batch_norm trained
    --bn_group 2

    --method multitask
    --heads context

    --frame_num 16
    --frame_method end_aligned_spaced   # every 6.5 frames
    --spatial_size 180
    --data_aug True
    --geometry centre_crop
    --batch_size 4

    --epochs 100
    --optimizer Adam
    --learning_rate 0.0001
    --weight_decay 0
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
