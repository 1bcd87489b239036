#!/usr/bin/env bash
# Pretrains OFA on all eight objectives on this machine: creates the virtual environment, builds the
# embedded data set, trains, evaluates the model by generation on images that it has not seen, and
# prints what it has reached and where to look at it. At most 20 minutes on two cores.
# A second call continues from the last checkpoint and repeats nothing.
#
#   bash launch/local.sh [--gin.NAME=value ...]
#   bash launch/local.sh full [--gin.NAME=value ...]
#
# `full` trains for longer after that (90 minutes at most, all included), evaluates on all test images
# and on those of another style, with controls, and writes results/scenes.md.
#
# OFA_DATA_DIR (default: data) holds the data set.
set -euo pipefail
started="$(date +%s)"
cd "$(dirname "$0")/.."
kind=first
model_dir=runs/pretrain_scenes
if [[ "${1:-}" == full ]]; then
  kind=full
  model_dir=runs/pretrain_scenes_full
  shift
fi
command="bash launch/local.sh"
[[ "$kind" == full ]] && command+=" full"
command+="${*:+ $*}"
source launch/environment.sh
export OFA_DATA_DIR="${OFA_DATA_DIR:-data}"
for option in "$@"; do
  # The directory on the command line, without gin's quotes.
  if [[ "$option" == --gin.MODEL_DIR=* ]]; then
    model_dir="$(tr -d "'\"" <<< "${option#*=}")"
  fi
done

python -m tools.build_scenes --data_dir="$OFA_DATA_DIR"
initial="$OFA_DATA_DIR/scenes/encoder"
python -m tools.pretrain_encoder --data_dir="$OFA_DATA_DIR" --output="$initial"
gin_file=scenes_first_run
stage_dirs=()
if [[ "$kind" == full ]]; then
  # Each stage continues from the one before; the first is a first run of its own.
  for stage in first_run full_objectives full_matching; do
    stage_dir="${model_dir}_${stage#full_}"
    python -m ofa_jax.train --gin_file="gin_configs/runs/scenes_$stage.gin" \
      "--gin.INITIAL_CHECKPOINT_PATH='$initial'" "$@" "--gin.MODEL_DIR='$stage_dir'"
    initial="$stage_dir"
    stage_dirs+=("$stage_dir")
  done
  gin_file=scenes_full
fi
python -m ofa_jax.train --gin_file="gin_configs/runs/$gin_file.gin" \
  "--gin.INITIAL_CHECKPOINT_PATH='$initial'" "$@"
if [[ "$kind" == full ]]; then
  python -m tools.report_scenes --model_dir="$model_dir" --train_command="$command" \
    --stage_dirs "${stage_dirs[@]}"
fi
python -m tools.summarise_scenes --model_dir="$model_dir" --kind="$kind" \
  --train_command="$command" --started="$started"
