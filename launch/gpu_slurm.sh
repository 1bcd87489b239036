#!/usr/bin/env bash
#SBATCH --job-name=ofa_jax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
# Trains on the GPUs of a SLURM cluster, one process per GPU. NOT RUN YET: it was written without a
# cluster; --dry_run prints what it would do.
#
#   sbatch --nodes=2 launch/gpu_slurm.sh --gin_file=... --gin.MODEL_DIR="'/shared/run'"
#   bash launch/gpu_slurm.sh --dry_run --gin_file=...
#
# Settings: the lines above, or sbatch's flags of the same names, which win. --ntasks-per-node must
# be --gpus-per-node: JAX gives each task of SLURM one GPU.
#   OFA_JAX_VENV  the virtual environment (.venv), with the extra `cuda` installed in it, on a
#                 file system that all nodes share; so must be this folder, MODEL_DIR and the data
#
# A supervisor starts all tasks again after a crash. Five minutes before the time limit, or when the
# job is preempted, SLURM sends SIGTERM: the run saves and ends, and --requeue brings it back.
set -euo pipefail
# sbatch runs a copy of this file from elsewhere.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source launch/dry_run.sh
if ! $dry_run; then
  source launch/environment.sh
fi
command=(python -m launch.supervisor -- srun --kill-on-bad-exit=1
  python -m ofa_jax.train --distributed "$@")
if $dry_run; then
  run "${command[@]}"
else
  exec "${command[@]}"  # so that SIGTERM reaches the supervisor
fi
