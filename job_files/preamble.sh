# Sourced first by every job file and by the batch script of launch.submit. Changes to the folder of the code that this file
# belongs to (the repository, or the job's copy), and sources environment.sh. $1 is the command to use without Slurm.

if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: this is a job file: submit it with sbatch; without Slurm: $1" >&2
    exit 2
fi
builtin cd "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
builtin source job_files/environment.sh || exit 2
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # since Slurm 22.05 srun does not take it from sbatch
