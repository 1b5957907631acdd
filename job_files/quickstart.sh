#!/usr/bin/env bash
# From nothing to a trained model and an honest number, on a laptop: no root, no GPU, no Slurm, no download of data.
# Makes .venv, draws a synthetic data set in MTL-AQA's layout, extracts its frames, trains a small TimeSformer with the
# same code as the real thing, and opens its test split once. A second call reuses what is there.
#
#     bash job_files/quickstart.sh
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh or zsh was asked to run this
set -euo pipefail # stop at the first error
bash "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh" # refuses Windows line ends, too
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
builtin cd "$DEEPSPORTS_HOME"
export DEEPSPORTS_DATASET="$DEEPSPORTS_SCRATCH/DeepSports_quickstart"

started=$SECONDS
echo "== The quick start takes two to four minutes on two idle CPU cores"
echo "== 1/3  Drawing synthetic dives in $DEEPSPORTS_DATASET"
python -m data_preparation.synthetic --dataset "$DEEPSPORTS_DATASET"

echo "== 2/3  Extracting the frames that the dives need"
python -m data_preparation.extract --dataset "$DEEPSPORTS_DATASET" --height 72 --window 0
python -m data_preparation.verify --dataset "$DEEPSPORTS_DATASET"

echo "== 3/3  Training a small TimeSformer (each line ends with the time that is left)"
bash job_files/quickstart_config.sh

echo
echo "Done in $((SECONDS - started)) s after installation."
python -m training.evaluate --run "$DEEPSPORTS_RUNS/quickstart" | sed "s/^/  /"
echo "  loss plot  $DEEPSPORTS_RUNS/quickstart/losses.png"
echo "  all of it  $DEEPSPORTS_RUNS/quickstart (predictions.csv, summary.json with the baselines, checkpoints)"
echo "Next: change a flag and train again:"
echo "          DEEPSPORTS_DATASET=$DEEPSPORTS_DATASET bash job_files/quickstart_config.sh --run_name mine --loss_spcoef_weight 0"
echo "      or take the real data set:      README.md, 'The walk on a cluster'"
