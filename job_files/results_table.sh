#!/usr/bin/env bash
# Makes the results tables of training/README.md. Every line is three trainings (seeds 0, 1, 2) on the synthetic data set
# of the quick start. `networks` trains networks on the frames (about an hour on two CPU cores), `features` trains all methods on the
# features of one fixed network (minutes). A second call skips the trainings that are done.
#
#     bash job_files/quickstart.sh && bash job_files/results_table.sh [networks] [features]
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail # stop at the first error
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" # also refuses Windows line endings
builtin cd "$DEEPSPORTS_HOME"
export DEEPSPORTS_DATASET="$DEEPSPORTS_SCRATCH/DeepSports_quickstart"

runs="$DEEPSPORTS_RUNS/results_table"
annotations="$DEEPSPORTS_DATASET/annotations"
parts=" ${*:-networks features} "
captions=(--captions_path "$annotations/final_captions_dict.pkl" --vocabulary_path "$annotations/vocab.json")
# the settings of the quick start, and those of each backbone and method
common=(
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames" --annotation_path "$annotations/final_annotations_dict.pkl"
    --train_path "$annotations/train_split_0.pkl" --test_path "$annotations/test_split_0.pkl" --runs_dir "$runs"
    --frame_method spaced_varied_new --batch_size 16 --weight_decay 0.01 --lr_schedule cosine --clip_grad 1 --evaluate True
)
timesformer=(
    --spatial_size 64 --patch_size 16 --embed_dim 128 --depth 3 --num_heads 4 --drop_path 0 --frame_num 8 --warmup_steps 100
)
head=(--topology 128 --dropout 0 --activation GELU)
# C3D has 28 million weights and starts from scratch here (no c3d.pickle): small clips and few epochs
c3d=(--model c3d --frame_num 16 --spatial_size 32)
brief=(--epochs 3 --learning_rate 0.0003 --warmup_steps 20)

done_runs=()
train() { # train NAME [flags]: with three seeds
    local name="$1" seed
    shift
    for seed in 0 1 2; do
        python -m training.train "${common[@]}" --run_name "$name-s$seed" --seed "$seed" "$@"
        done_runs+=("$runs/$name-s$seed")
    done
}

report() { # report FILE MARK: write the table of all runs so far, also into the README between the marks
    python -m training.report "${done_runs[@]}" | tee "$runs/$1"
    python -m launch.readme_tables "$runs/$1" "$2"
    done_runs=()
}

networks() {
    train timesformer-mse "${timesformer[@]}" "${head[@]}" --loss_spcoef_weight 0 --epochs 12 --learning_rate 0.0005
    train timesformer-mse-spearman "${timesformer[@]}" "${head[@]}" --loss_spcoef_weight 0.1 --epochs 12 --learning_rate 0.0005
    multitask=(--method multitask "${captions[@]}" --epochs 6)
    train timesformer-multitask "${timesformer[@]}" "${multitask[@]}" --loss_spcoef_weight 0 --learning_rate 0.0005
    train timesformer-multitask-spearman "${timesformer[@]}" "${multitask[@]}" --loss_spcoef_weight 3 --learning_rate 0.0003
    train c3d-mse "${c3d[@]}" "${brief[@]}" "${head[@]}" --loss_spcoef_weight 0
    train c3d-mse-spearman "${c3d[@]}" "${brief[@]}" "${head[@]}" --loss_spcoef_weight 0.1
    train c3d-random-features-svr "${c3d[@]}" --method svr
    report results.md results
}

# Features of a C3D with random weights: 5 windows of 16 frames. Random features differ much in size, so each is standardised (mean and
# deviation of the train list). The judges are needed by musdl.
standardised() { # standardised RAW FILE: copy a feature file with standardised features
    python - "$1" "$2" "$annotations/train_split_0.pkl" <<'PY'
import sys
from pathlib import Path
import numpy as np
from data_preparation.actions import action_name
from data_preparation.annotations import load_split

raw, file, train = sys.argv[1:]
arrays = dict(np.load(raw))
rows = np.concatenate([np.atleast_2d(arrays[action_name(key)]) for key in load_split(Path(train))])
mean, deviation = rows.mean(axis=0), rows.std(axis=0) + 1e-8
np.savez(file, **{name: (a - mean) / deviation if "/" in name else a for name, a in arrays.items()})
PY
}

features() {
    local raw="$runs/features_raw.npz" file="$runs/features.npz"
    local data=(--annotation_path "$annotations/final_annotations_dict_with_dive_number.pkl" --workers 2)
    [ -e "$raw" ] || python -m training.extract_features --output "$raw" "${common[@]}" "${c3d[@]}" "${data[@]}" \
        --frame_num 80 --window_layout full
    [ -e "$file" ] || standardised "$raw" "$file"
    local fixed=(--model features --features "$file" "${data[@]}" --learning_rate 0.001 --epochs 10)
    train features-regression "${fixed[@]}" "${head[@]}" --loss_spcoef_weight 0
    train features-regression-spearman "${fixed[@]}" "${head[@]}" --loss_spcoef_weight 0.1
    train features-multitask "${fixed[@]}" --method multitask
    train features-svr "${fixed[@]}" --method svr
    train features-usdl "${fixed[@]}" --method usdl
    train features-musdl "${fixed[@]}" --method musdl
    train features-core "${fixed[@]}" --method core
    train features-core-predicted "${fixed[@]}" --method core --difficulty predicted
    train features-core-free "${fixed[@]}" --method core --pairs free
    train features-tpt "${fixed[@]}" --method tpt
    report feature_results.md "feature results"
}

case "$parts" in *" networks "*) networks ;; esac
case "$parts" in *" features "*) features ;; esac
