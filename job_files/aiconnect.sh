#!/usr/bin/env bash
# The recipe of a solution of the Aiconnect 2021 action recognition challenge, end to end on drawn clips: TSM without and with heavy
# augmentation, a second member whose rare classes are repeated, the mean of both, rules, and the boxes of a (drawn) detector.
# It writes the validation result of each part into training/README.md, and prints one test result, that of the whole. A second call
# skips what is done. Settings of the challenge itself: job_files/methods/aiconnect.sh.
# The drawn clips have what the recipe is for: each performer has a camera of its own, so validation and test show light and colours that no
# training clip has; two classes are rare in training; and a detector tells two of the classes. Rules are chosen by macro F1, which
# counts rare classes as others. Heavy augmentation is part of the recipe, but frames of 32 x 32 pixels do not gain from it (see there).
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
python -m data_preparation.synthetic --task actions --cameras varied --performers 12 --clips 900
python -m data_preparation.extract --dataset_kind table --height 0 --window 0 --after 0 --verify True
python -m data_preparation.synthetic.detector --output "$boxes"
python - "$annotations" <<'PYTHON' # the train list with one of four clips of the rare classes of each performer
import csv, sys
from collections import Counter
from pathlib import Path
from data_preparation.annotations import load_split

folder, rare, seen, rows = Path(sys.argv[1]), ("squat", "spin"), Counter(), ["video,number"]
table = {row["video"]: row for row in csv.DictReader(open(folder / "table.csv"))}
for video, number in load_split(folder / "train_split_0.pkl"):
    label, group = table[video]["label"], table[video]["group"]
    seen[label, group] += 1
    if label not in rare or seen[label, group] % 4 == 1:
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
        --model tsm --resnet_depth 18 --resnet_width 16 --batch_norm trained --bn_group 16 \
        --method classify --head_on_each True --head_init_std 0.001 --head_dropout 0.5 \
        --frame_num 8 --frame_method segments --spatial_size 32 --batch_size 16 \
        --epochs 16 --optimizer AdamW --learning_rate 0.002 --weight_decay 0.01 --lr_schedule cosine --warmup_steps 20 \
        --clip_grad 20 --evaluate True "$@" >"$runs/$name.txt"
}
mkdir -p "$runs"
train plain
train heavy --augment randaugment --flip True
train repeated --augment randaugment --flip True --class_repeats squat=3 spin=3

echo "== 3/3  What adds what, on the validation clips"
python - "$runs" "$boxes" <<'PYTHON' | tee "$runs/ladder.md"
import dataclasses, sys
from pathlib import Path
from training import postprocess
from training.combine import CaseMaker, CombineConfig, average, validation_predictions_of
from training.data.splits import load_splits
from training.postprocess.base import apply_rules, with_labels
from training.runtime.run_folder import RunFolder
from training.tasks.label import wilson_interval

runs, boxes = map(Path, sys.argv[1:])
plain, heavy, repeated = (validation_predictions_of(runs / name) for name in ("plain", "heavy", "repeated"))
config = RunFolder(runs / "heavy").existing_config()
make_cases = CaseMaker(CombineConfig(test=False, postprocess="drawn_actions", boxes=boxes), config, load_splits(config))
unsure, near, detector = postprocess.rules_of("drawn_actions").rules


def after(members, *rules):
    """The validation predictions of the mean of some members after some rules."""
    mean = average(members, [1] * len(members))
    labels = apply_rules(rules, make_cases(members[0], mean))
    return dataclasses.replace(members[0], predicted=with_labels(mean, labels, members[0].classes))


both = [heavy, repeated]
rows = {
    "v1: TSM": after([plain]),
    "v2: + heavy augmentation": after([heavy]),
    "v3: + rule for an uncertain class": after([heavy], unsure),
    "v4: + mean with a member of repeated classes": after(both, unsure),
    "v5: + rule for classes that are mistaken": after(both, unsure, near),
    "v6: + boxes of a detector": after(both, unsure, near, detector),
    "*the member of repeated classes alone, against v2*": after([repeated]),
}
print("| | accuracy | 95 % interval | macro F1 | gain in macro F1 | 95 % interval |\n|---|---|---|---|---|---|")
before = None
for title, found in rows.items():
    task, total = found.task, len(found.keys)
    values = task.metrics(found.predicted, found.truth)
    low, high = wilson_interval(round(values["accuracy"] * total), total)
    cells = [f"{values['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{values['macro_f1']:.3f}", "", ""]
    if before is not None:
        before = rows["v2: + heavy augmentation"] if title.startswith("*") else before
        _, f1 = task.differences(before, found, task.gains(before, found))
        cells[3:] = [f"{f1.b - f1.a:+.3f}", f"{f1.interval[0]:+.3f} to {f1.interval[1]:+.3f}"]
    print("| " + " | ".join([title, *cells]) + " |")
    before = found
print(f"\n{total} validation clips; the intervals of gains are those of a paired bootstrap.")
PYTHON
python -m launch.readme_tables "$runs/ladder.md" "aiconnect results"

echo
echo "The whole, with the rules that validation keeps, on the test clips, and against TSM alone:"
python -m training.combine "$runs/heavy" "$runs/repeated" --weights equal --metric macro_f1 --postprocess drawn_actions --boxes "$boxes" \
    --output "$runs/whole"
python -m training.compare "$runs/plain" "$runs/whole"
echo
echo "Done in $((SECONDS - started)) s."
