#!/usr/bin/env bash
# C3D-AVG-MTL on MTL-AQA: "What and How Well You Performed? A Multitask Learning Approach to Action Quality Assessment" (Parmar and
# Morris, CVPR 2019): score, five attributes and a caption from the mean of the clip's windows.
#
# Published: a test Spearman of 0.9044 (0.8960 without the other tasks; paper). The 95 % interval of 0.9044 on 353 dives is 0.88 to
# 0.92 (Fisher's z, standard error 1.03 / sqrt(350)). The epoch was chosen on the test dives.
#
# Published settings: Adam at 0.0001, no weight decay, 100 epochs, batches of 3 dives, the last 103 frames with a shift of up to 3,
# crops of 112 x 112 from the centre of 171 x 128 frames with flips, (MSE + L1) of score / 17 + cross-entropies + 0.01 of the negative
# log-likelihood of the caption, convolutions that start from c3d.pickle (Sports-1M).
# Changed, and why:
# * Seven windows reach the last frame. The authors' six omit the last seven frames; --window_layout reference repeats that.
# * Training uses 80 % of the train list, and the epoch is chosen on the rest, not on the test dives.
# * One resize filter for all frames; the authors draw a filter for each frame, also in the test.
#
# For two or four GPUs, give another --batch_size. C3D-AVG-STL, the score alone, is not here: --method regression, without the flags of
# captions, predicts execution and difficulty.
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
    --run_name c3d_avg

    --model c3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/c3d.pickle"
    --window_layout full

    --method multitask

    --frame_num 103
    --frame_method end_aligned
    --spatial_size 112
    --data_aug True
    --geometry centre_crop
    --batch_size 3

    --epochs 100
    --optimizer Adam
    --learning_rate 0.0001
    --weight_decay 0
    --evaluate True
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
