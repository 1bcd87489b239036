#!/usr/bin/env bash
# Pretrains OFA on all eight objectives on this machine: makes the virtual environment, builds the
# embedded data set, trains for about ten minutes on two cores and prints one row per objective.
# Called again, it continues from the last checkpoint and does nothing twice.
#
#   bash launch/local.sh [--gin.NAME=value ...]
#   bash launch/local.sh full [--gin.NAME=value ...]
#
# `full` teaches the ResNet what images show, then the model, one lesson after another, what things
# are called, whether words and image agree, what is asked and said of an image, which of several
# things is meant, and everything (84 minutes at most for the five); asks it about images it has
# never seen, and writes results/scenes.md.
#
# OFA_DATA_DIR (default: data) holds the data set.
set -euo pipefail
cd "$(dirname "$0")/.."
run=pretrain_scenes
if [[ "${1:-}" == full ]]; then
  run=pretrain_scenes_full
  shift
fi
asked="bash launch/local.sh full${*:+ $*}"
source launch/environment.sh
export OFA_DATA_DIR="${OFA_DATA_DIR:-data}"

python -m tools.build_scenes --data_dir="$OFA_DATA_DIR"
if [[ "$run" == pretrain_scenes_full ]]; then
  model_dir="runs/$run"
  for option in "$@"; do
    # Where the run was told to go, without gin's quotes.
    if [[ "$option" == --gin.MODEL_DIR=* ]]; then
      model_dir="$(tr -d "'\"" <<< "${option#*=}")"
    fi
  done
  python -m tools.pretrain_resnet --data_dir="$OFA_DATA_DIR"
  begin="--gin.INITIAL_RESNET_PATH='$OFA_DATA_DIR/scenes/resnet.pt'"
  lesson_dirs=()
  for lesson in names agreement statements which; do
    lesson_dir="${model_dir%_full}_$lesson"
    python -m ofa_jax.train --gin_file="gin_configs/runs/pretrain_scenes_$lesson.gin" \
      "$begin" "$@" "--gin.MODEL_DIR='$lesson_dir'"
    begin="--gin.INITIAL_CHECKPOINT_PATH='$lesson_dir'"
    lesson_dirs+=("$lesson_dir")
  done
  set -- "$begin" "$@"
fi
python -m ofa_jax.train --gin_file="gin_configs/runs/$run.gin" "$@"
if [[ "$run" == pretrain_scenes_full ]]; then
  python -m tools.report_scenes --model_dir="$model_dir" --train_command="$asked" \
    --lesson_dirs "${lesson_dirs[@]}"
fi
