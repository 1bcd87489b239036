#!/usr/bin/env bash
# Pretrains OFA on all eight objectives on this machine: creates the virtual environment, builds the
# embedded data set, trains for about ten minutes on two cores and prints one row per objective.
# A second call continues from the last checkpoint and repeats nothing.
#
#   bash launch/local.sh [--gin.NAME=value ...]
#   bash launch/local.sh full [--gin.NAME=value ...]
#
# `full` trains the ResNet on the nouns in images, then the model in five curriculum stages: nouns,
# matching, questions, regions, all objectives (84 minutes at most); evaluates it by generation on
# images that it has not seen, and writes results/scenes.md.
#
# OFA_DATA_DIR (default: data) holds the data set.
set -euo pipefail
cd "$(dirname "$0")/.."
gin_file=pretrain_scenes
if [[ "${1:-}" == full ]]; then
  gin_file=scenes_stage5_all
  shift
fi
command="bash launch/local.sh full${*:+ $*}"
source launch/environment.sh
export OFA_DATA_DIR="${OFA_DATA_DIR:-data}"

python -m tools.build_scenes --data_dir="$OFA_DATA_DIR"
if [[ "$gin_file" == scenes_stage5_all ]]; then
  model_dir="runs/pretrain_scenes_full"
  for option in "$@"; do
    # The directory on the command line, without gin's quotes.
    if [[ "$option" == --gin.MODEL_DIR=* ]]; then
      model_dir="$(tr -d "'\"" <<< "${option#*=}")"
    fi
  done
  python -m tools.pretrain_resnet --data_dir="$OFA_DATA_DIR"
  initial="--gin.INITIAL_RESNET_PATH='$OFA_DATA_DIR/scenes/resnet.pt'"
  stage_dirs=()
  # Each stage, and how earlier versions ended the name of its directory: it is continued there.
  for names in stage1_nouns:names stage2_matching:agreement stage3_questions:statements \
    stage4_regions:which; do
    stage="${names%:*}"
    stage_dir="${model_dir}_$stage"
    former_dir="${model_dir%_full}_${names#*:}"
    if [[ ! -d "$stage_dir" && -d "$former_dir" ]]; then
      stage_dir="$former_dir"
    fi
    python -m ofa_jax.train --gin_file="gin_configs/runs/scenes_$stage.gin" \
      "$initial" "$@" "--gin.MODEL_DIR='$stage_dir'"
    initial="--gin.INITIAL_CHECKPOINT_PATH='$stage_dir'"
    stage_dirs+=("$stage_dir")
  done
  set -- "$initial" "$@"
fi
python -m ofa_jax.train --gin_file="gin_configs/runs/$gin_file.gin" "$@"
if [[ "$gin_file" == scenes_stage5_all ]]; then
  python -m tools.report_scenes --model_dir="$model_dir" --train_command="$command" \
    --stage_dirs "${stage_dirs[@]}"
fi
