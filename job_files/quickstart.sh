#!/usr/bin/env bash
# Train and evaluate a small model on a laptop: no root, no GPU, no Slurm, no download of data.
# It creates .venv, renders a synthetic data set in the layout of MTL-AQA, extracts its frames, trains a small TimeSformer with
# the code of a full training, and evaluates it on the test split. A second call reuses these results.
#
#     bash job_files/quickstart.sh
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail # stop at the first error
bash "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh" # also refuses Windows line endings
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
builtin cd "$DEEPSPORTS_HOME"
export DEEPSPORTS_DATASET="$DEEPSPORTS_SCRATCH/DeepSports_quickstart"

started=$SECONDS
echo "== The quick start takes about two minutes on two idle CPU cores"
echo "== 1/3  Rendering synthetic dives in $DEEPSPORTS_DATASET"
python -m data_preparation.synthetic --dataset "$DEEPSPORTS_DATASET"

echo "== 2/3  Extracting the frames that the dives need"
python -m data_preparation.extract --dataset "$DEEPSPORTS_DATASET" --height 72 --window 0
python -m data_preparation.verify --dataset "$DEEPSPORTS_DATASET"

echo "== 3/3  Training a small TimeSformer (each line ends with the time left)"
bash job_files/quickstart_config.sh

echo
echo "Done in $((SECONDS - started)) s after installation."
python -m training.evaluate --run "$DEEPSPORTS_RUNS/quickstart" | sed "s/^/  /"
echo "  loss plot  $DEEPSPORTS_RUNS/quickstart/losses.png"
echo "  all of it  $DEEPSPORTS_RUNS/quickstart (predictions.csv, summary.json with the baselines, checkpoints)"
echo "Next: change a flag and train again:"
echo "          DEEPSPORTS_DATASET=$DEEPSPORTS_DATASET bash job_files/quickstart_config.sh --run_name mine --loss_spcoef_weight 0"
echo "      or take the real data set:      README.md, 'Step by step on a cluster'"
