#!/usr/bin/env bash
# The recipe of a solution of the Aiconnect 2021 action recognition challenge, end to end on drawn clips: TSM without and with heavy
# augmentation, a second member whose rare classes are repeated, the mean of both, rules, and the boxes of a (drawn) detector.
# It prints the validation result of each part, and opens the test split once, for the whole. A second call skips what is done.
# Settings of the challenge itself: job_files/methods/aiconnect.sh.
# Measured: 19 minutes on two cores with a load of 13. So short a training of so small a network has no use for heavy augmentation (validation
# accuracy 0.76 without, 0.64 with it); repeated classes and the detector help (macro F1 0.41 to 0.57), the two other rules do not.
#
#     bash job_files/aiconnect.sh
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail # stop at the first error
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" # also refuses Windows line endings
builtin cd "$DEEPSPORTS_HOME"
export DEEPSPORTS_DATASET="$DEEPSPORTS_SCRATCH/DeepSports_aiconnect"

annotations="$DEEPSPORTS_DATASET/annotations"
boxes="$DEEPSPORTS_DATASET/detections.csv"
runs="$DEEPSPORTS_RUNS/aiconnect"
started=$SECONDS

echo "== 1/3  Drawing clips of five actions, two of them rare in training"
python -m data_preparation.synthetic --task actions
python -m data_preparation.extract --dataset_kind table --height 0 --window 0 --after 0 --verify True
python -m data_preparation.synthetic.detector --output "$boxes"
python - "$annotations" <<'PYTHON' # the train list with one of five clips of the rare classes
import csv, sys
from pathlib import Path
from data_preparation.annotations import load_split

folder, rare, seen, rows = Path(sys.argv[1]), ("squat", "spin"), {}, ["video,number"]
labels = {row["video"]: row["label"] for row in csv.DictReader(open(folder / "table.csv"))}
for video, number in load_split(folder / "train_split_0.pkl"):
    label = labels[video]
    seen[label] = seen.get(label, 0) + 1
    if label not in rare or seen[label] % 5 == 0:
        rows.append(f"{video},{number}")
(folder / "train_rare.csv").write_text("\n".join(rows) + "\n")
PYTHON

echo "== 2/3  Training three small networks"
train() { # train NAME [flags]
    local name="$1"
    shift
    python -m training.train --run_name "$name" --runs_dir "$runs" \
        --dataset_kind table --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames" --annotation_path "$annotations" \
        --train_path "$annotations/train_rare.csv" --test_path "$annotations/test_split_0.pkl" --train_val_split_ratio 0.7 \
        --model tsm --resnet_depth 18 --resnet_width 16 --batch_norm trained --bn_group 4 \
        --method classify --head_on_each True --head_init_std 0.001 --head_dropout 0.5 \
        --frame_num 8 --frame_method segments --spatial_size 32 --batch_size 16 \
        --epochs 14 --optimizer AdamW --learning_rate 0.002 --weight_decay 0.01 --lr_schedule cosine --warmup_steps 20 \
        --clip_grad 20 --evaluate True "$@" >"$runs/$name.txt"
}
mkdir -p "$runs"
train plain
train heavy --augment randaugment --flip True
train repeated --augment randaugment --flip True --class_repeats squat=3 spin=3

echo "== 3/3  What adds what, on the validation clips"
rules=(--postprocess drawn_actions --boxes "$boxes")
line() { # line TITLE NAME: accuracy and macro F1 of the line of a validation table that begins with NAME
    awk -v title="$1" -v name="$2" 'index($0, name) == 1 { sub(/  not better.*/, ""); printf "%-46s %8s %8s\n", title, $(NF - 1), $NF }'
}
one="$(python -m training.combine "$runs/heavy" --test False --rules all "${rules[@]}")"
both="$(python -m training.combine "$runs/heavy" "$runs/repeated" --test False --weights equal --rules all "${rules[@]}")"
printf '%-46s %8s %8s\n' "" accuracy "macro F1"
python -m training.combine "$runs/plain" --test False | line "v1  TSM" plain
line "v2  + heavy augmentation" heavy <<<"$one"
line "v3  + rule for an uncertain class" "+ unsure" <<<"$one"
line "v4  + mean with a member of repeated classes" "+ unsure" <<<"$both"
line "v5  + rule for classes that are mistaken" "+ near" <<<"$both"
line "v6  + boxes of a detector" "+ detector" <<<"$both"

echo
echo "The whole, with the rules that validation keeps, on the test clips:"
python -m training.combine "$runs/heavy" "$runs/repeated" --weights equal "${rules[@]}" --output "$runs/whole"
echo
echo "Done in $((SECONDS - started)) s."
