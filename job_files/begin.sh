# Sourced by every training job, in the folder of its code, with deepsports_job naming its folder (runs/<name>/jobs/<job id>):
# refuses a restart that leads nowhere, and finds a port for the training processes to meet at.

export DEEPSPORTS_JOB="$deepsports_job" # launch.job writes there how each process ended
deepsports_begin="$(python -m launch.begin "$deepsports_job")" || exit 2
eval "$deepsports_begin"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch since Slurm 22.05
