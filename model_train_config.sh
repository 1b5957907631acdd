#!/usr/bin/env bash
# The hyperparameters of a training, one flag in each line. Edit them, then
#
#     bash model_train_config.sh                        train here
#     sbatch job_files/train_model.job                  train on Slurm
#     python -m launch.submit --nodes 2 --gpus_per_node 2   train on Slurm, through submitit
#
# All flags: python -m training.train --help. Flags after a command override this file.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # when called with sh or zsh
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/job_files/environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also checks for Windows line ends

flags=(
    # data and run folder
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name timesformer         # name of the run folder
    --loglevel INFO

    # the model
    --model timesformer            # or c3d
    --pretrained_model "$DEEPSPORTS_DATASET/weights/TimeSformer_divST_96x32_224_HowTo100M.pyth"   # or none
    --freeze False
    --topology 512 512             # widths of the head
    --dropout 0.2 0.2              # one for each width
    --activation LeakyReLU
    --use_decoder False

    # input of a step
    --frame_num 48
    --frame_method spaced_varied_new
    --spatial_size 224
    --normalize False              # False: as for the pretrained weights; True: with MTL-AQA's mean and deviation
    --data_aug True
    --train_val_split_ratio 0.8
    --batch_size 8                 # of all GPUs together

    # the loss and the optimizer
    --loss_mse_weight 1
    --loss_spcoef_weight 0         # above 0 adds the rank correlation within the batch; needs a large batch
    --epochs 200
    --optimizer AdamW
    --amsgrad True
    --learning_rate 0.00001
    --weight_decay 0.00001
    --momentum 0.9

    # at the end
    --evaluate True                # evaluate the best epoch's model on the test split
    --output losses.png
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
