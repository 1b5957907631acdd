#!/usr/bin/env bash
# Makes the results table of training/README.md. Every line is three trainings (seeds 0, 1, 2) on the synthetic data set
# of the quick start. It takes about an hour on two CPU cores. A second call skips the trainings that are done.
#
#     bash job_files/quickstart.sh && bash job_files/results_table.sh
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail # stop at the first error
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" # also refuses Windows line endings
builtin cd "$DEEPSPORTS_HOME"
export DEEPSPORTS_DATASET="$DEEPSPORTS_SCRATCH/DeepSports_quickstart"

runs="$DEEPSPORTS_RUNS/results_table"
annotations="$DEEPSPORTS_DATASET/annotations"
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

train timesformer-mse "${timesformer[@]}" "${head[@]}" --loss_spcoef_weight 0 --epochs 12 --learning_rate 0.0005
train timesformer-mse-spearman "${timesformer[@]}" "${head[@]}" --loss_spcoef_weight 0.1 --epochs 12 --learning_rate 0.0005
multitask=(--method multitask "${captions[@]}" --epochs 6)
train timesformer-multitask "${timesformer[@]}" "${multitask[@]}" --loss_spcoef_weight 0 --learning_rate 0.0005
train timesformer-multitask-spearman "${timesformer[@]}" "${multitask[@]}" --loss_spcoef_weight 3 --learning_rate 0.0003
train c3d-mse "${c3d[@]}" "${brief[@]}" "${head[@]}" --loss_spcoef_weight 0
train c3d-mse-spearman "${c3d[@]}" "${brief[@]}" "${head[@]}" --loss_spcoef_weight 0.1
train c3d-random-features-svr "${c3d[@]}" --method svr

python -m training.report "${done_runs[@]}" | tee "$runs/results.md"
python -m launch.readme_tables "$runs/results.md"
