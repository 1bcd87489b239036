#!/usr/bin/env bash
# Trains on this machine as several processes that communicate over loopback, as the hosts of a pod
# do. Crashed processes are restarted; SIGTERM saves a checkpoint and ends the run.
#
#   bash launch/local_processes.sh [--dry_run] PROCESSES [--gin_file=... --gin.NAME=value ...]
#   bash launch/local_processes.sh 2 --gin.MODEL_DIR="'runs/two_processes'" --gin.TRAIN_STEPS=100
#
# Without a --gin_file this is the run of gin_configs/runs/pretrain_scenes.gin. XLA_FLAGS with
# --xla_force_host_platform_device_count=N gives every process N simulated devices.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/dry_run.sh
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: the first argument is the number of processes, e.g. 2." >&2
  exit 2
fi
processes="$1"
shift
options=("$@")
if [[ " $* " != *" --gin_file"* ]]; then
  options=(--gin_file=gin_configs/runs/pretrain_scenes.gin "$@")
fi
export OFA_DATA_DIR="${OFA_DATA_DIR:-data}"
if ! $dry_run; then
  source launch/environment.sh
fi
command=(python -m ofa_jax.train "${options[@]}")

if [[ "${options[*]}" == *pretrain_scenes* || "${options[*]}" == *scenes_stage* ]]; then
  run python -m tools.build_scenes --data_dir="$OFA_DATA_DIR"
fi
run python -m launch.supervisor --processes="$processes" -- "${command[@]}"
