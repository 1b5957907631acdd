#!/usr/bin/env bash
# The hyperparameters of a training: one flag a line. Edit, then
#
#     bash model_train_config.sh                        train here
#     sbatch job_files/train_model.job                  train on Slurm
#     python -m launch.submit --nodes 2 --gpus_per_node 2   train on Slurm, by submitit
#
# All flags: python -m training.train --help. Flags given after a command win over this file.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh or zsh was asked to run this
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/job_files/environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # refuses Windows line ends, too

flags=(
    # where things are
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name timesformer         # the run folder; another name is another run
    --loglevel INFO

    # the model
    --model timesformer            # or c3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/TimeSformer_divST_96x32_224_HowTo100M.pyth"   # or none
    --freeze False
    --topology 512 512             # widths of the head
    --dropout 0.2 0.2              # one for each width
    --activation LeakyReLU
    --use_decoder False

    # what a step sees
    --frame_num 48
    --frame_method spaced_varied_new
    --spatial_size 224
    --normalize False              # False: as the weight file was trained; True: MTL-AQA's statistics
    --data_aug True
    --train_val_split_ratio 0.8
    --batch_size 8                 # over all GPUs together

    # the loss and the optimizer
    --loss_mse_weight 1
    --loss_spcoef_weight 0         # above 0 adds the rank correlation of the batch: give it a large batch
    --epochs 200
    --optimizer AdamW
    --amsgrad True
    --learning_rate 0.00001
    --weight_decay 0.00001
    --momentum 0.9

    # at the end
    --evaluate True                # open the test split once, with the best epoch's model
    --output losses.png
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
