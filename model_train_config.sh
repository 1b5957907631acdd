#!/usr/bin/env bash
# The hyperparameters of a training, one flag per line. Edit them, then run one of
#
#     bash model_train_config.sh                        train here
#     sbatch job_files/train_model.job                  train on Slurm
#     python -m launch.submit --nodes 2 --gpus_per_node 2   train on Slurm, with submitit
#
# All flags: python -m training.train --help. Flags given after a command override those of this file.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/job_files/environment.sh" || [ -n "${DEEPSPORTS_HOME:-}" ] || exit 2 # also refuses Windows line endings

flags=(
    # paths
    --root_dir "$DEEPSPORTS_DATASET/whole_videos_frames"
    --annotation_path "$DEEPSPORTS_DATASET/annotations/final_annotations_dict.pkl"
    --train_path "$DEEPSPORTS_DATASET/annotations/train_split_0.pkl"
    --test_path "$DEEPSPORTS_DATASET/annotations/test_split_0.pkl"
    --runs_dir "$DEEPSPORTS_RUNS"
    --run_name timesformer         # name of the run folder; another name starts another run
    --loglevel INFO

    # the model
    --model timesformer            # or c3d, i3d, with their own weight file
    --pretrained_model "$DEEPSPORTS_DATASET/weights/TimeSformer_divST_96x32_224_HowTo100M.pyth"   # or none
    --freeze False
    --topology 512 512             # widths of the hidden layers of the head
    --dropout 0.2 0.2              # one for each of these layers
    --activation LeakyReLU
    --use_decoder False

    # the data
    --frame_num 48
    --frame_method spaced_varied_new
    --spatial_size 224
    --normalize False              # False: normalisation of the weight file; True: statistics of MTL-AQA
    --data_aug True
    --train_val_split_ratio 0.8
    --batch_size 8                 # total over all GPUs

    # the loss and the optimizer
    --loss_mse_weight 1
    --loss_spcoef_weight 0         # above 0 adds a differentiable rank correlation over the batch: use a large batch
    --epochs 200
    --optimizer AdamW
    --amsgrad True
    --learning_rate 0.00001
    --weight_decay 0.00001
    --momentum 0.9

    # after training
    --evaluate True                # evaluate the best epoch's model on the test split, once
    --output losses.png
)

builtin source "$DEEPSPORTS_HOME/job_files/with_flags.sh"
