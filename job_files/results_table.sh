#!/usr/bin/env bash
# The results table of the README: every line is three trainings (seeds 0, 1, 2) on the synthetic data set of the quick
# start, on two CPU cores in about an hour. Trainings that are done are not done again.
#
#     bash job_files/quickstart.sh && bash job_files/results_table.sh
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh or zsh was asked to run this
set -euo pipefail # stop at the first error
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" # refuses Windows line ends, too
builtin cd "$DEEPSPORTS_HOME"
export DEEPSPORTS_DATASET="$DEEPSPORTS_SCRATCH/DeepSports_quickstart"
export DEEPSPORTS_CONFIG=job_files/quickstart_config.sh

runs="$DEEPSPORTS_RUNS/results_table"
annotations="$DEEPSPORTS_DATASET/annotations"
captions=(--captions_path "$annotations/final_captions_dict.pkl" --vocabulary_path "$annotations/vocab.json")
# a network of 28 million weights from scratch: small clips and few epochs, since there is no c3d.pickle to start from
c3d=(--model c3d --frame_num 16 --spatial_size 32 --epochs 3 --learning_rate 0.0003 --warmup_steps 20)

done_runs=()
train() { # name, flags: three seeds
    local name="$1" seed
    shift
    for seed in 0 1 2; do
        bash "$DEEPSPORTS_CONFIG" --runs_dir "$runs" --run_name "$name-s$seed" --seed "$seed" "$@"
        done_runs+=("$runs/$name-s$seed")
    done
}

train timesformer-mse --loss_spcoef_weight 0 --epochs 12
train timesformer-mse-spearman --loss_spcoef_weight 0.1 --epochs 12
multitask=(--method multitask "${captions[@]}" --epochs 6)
train timesformer-multitask --loss_spcoef_weight 0 "${multitask[@]}"
train timesformer-multitask-spearman --loss_spcoef_weight 3 --learning_rate 0.0003 "${multitask[@]}"
train c3d-mse "${c3d[@]}" --loss_spcoef_weight 0
train c3d-mse-spearman "${c3d[@]}" --loss_spcoef_weight 0.1
train c3d-random-features-svr --method svr --model c3d --frame_num 16 --spatial_size 32

python -m training.report "${done_runs[@]}" | tee "$runs/results.md"
python -m launch.readme_tables "$runs/results.md"
