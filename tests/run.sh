#!/usr/bin/env bash
# bash tests/run.sh            lint and every test but the slow ones
# bash tests/run.sh slow       only the slow ones
# bash tests/run.sh PATH ...   lint and what pytest finds there (pytest's own options work too)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

selection=("$@")
if [[ "${1:-}" == slow ]]; then
  selection=(--slow "${@:2}")
fi
ruff check .
python -m pytest -q "${selection[@]}"
