#!/usr/bin/env bash
#SBATCH --job-name=ofa_jax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@330
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
# A supervisor starts all tasks again after a crash. 330 seconds before the time limit SLURM sends
# SIGUSR1: the run saves, and this script puts the job back into the queue. After a preemption or the
# loss of a node SLURM does so itself (--requeue); a preempted run saves if the partition's GraceTime
# is long enough. After `scancel --signal=TERM --batch JOB` the run saves and stays ended.
set -euo pipefail
# sbatch runs a copy of this file from elsewhere.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source launch/dry_run.sh
if ! $dry_run; then
  source launch/environment.sh
fi
command=(python -m launch.supervisor --stopped_exit_code=75 -- srun --kill-on-bad-exit=1
  python -m ofa_jax.train --distributed "$@")
if $dry_run; then
  run "${command[@]}"
  exit
fi
at_limit=false
trap 'at_limit=true; kill -TERM "$supervisor"' USR1
trap 'kill -TERM "$supervisor"' TERM
"${command[@]}" &
supervisor=$!
# A signal ends `wait` before the supervisor has ended, with 128 and its number.
while
  code=0
  wait "$supervisor" || code=$?
  ((code == 128 + 10 || code == 128 + 15))
do :; done
if $at_limit && ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
