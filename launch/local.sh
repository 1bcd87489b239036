#!/usr/bin/env bash
# Pretrains OFA on all eight objectives on this machine: makes the virtual environment, builds the
# embedded data set, trains for about ten minutes on two cores and prints one row per objective.
# Called again, it continues from the last checkpoint and does nothing twice.
#
#   bash launch/local.sh [--gin.NAME=value ...]
#
# OFA_DATA_DIR (default: data) holds the data set.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
export OFA_DATA_DIR="${OFA_DATA_DIR:-data}"

python -m tools.build_scenes --data_dir="$OFA_DATA_DIR"
python -m ofa_jax.train --gin_file=gin_configs/runs/pretrain_scenes.gin "$@"
