#!/usr/bin/env bash
# bash tests/run.sh            checks (style, types, documentation) and every test but the slow ones
# bash tests/run.sh slow       only the slow ones
# bash tests/run.sh chaos      only the one that breaks a run in ten ways (one of the slow ones)
# bash tests/run.sh fuzz       random damage to all files of users, for ten minutes (CONTRIBUTING.md)
# bash tests/run.sh PATH ...   the checks, and what pytest finds there (pytest's options work too)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
# What only the demo and the offline jobs need, without their bounds on other packages; see there.
python -c 'import gradio, uvicorn' 2> /dev/null ||
  pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
python -c 'import importlib.metadata as m; m.version("apache-beam"), m.version("google-crc32c")' \
  2> /dev/null || pip install --quiet --disable-pip-version-check --no-deps -r requirements-beam.txt

if [[ "${1:-}" == fuzz ]]; then
  export PYTHONPATH="tests:tests/helpers:.${PYTHONPATH:+:$PYTHONPATH}"
  exec nice -n 10 python -m fuzz "${@:2}"
fi

# Most tests compile small programs, which keeps one core busy: two modules at a time.
workers=(--numprocesses=2 --dist=loadfile --no-loadscope-reorder)
selection=("$@")
if [[ "${1:-}" == slow ]]; then
  selection=(--slow "${@:2}")
elif [[ "${1:-}" == chaos ]]; then
  selection=(--slow -m chaos "${@:2}")
fi

ruff check .
ruff format --check --quiet .
mypy

site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
# The plugins' notices about the future of MkDocs are not about these pages.
export NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true
mkdocs build --quiet --strict --site-dir "$site"

python -m pytest -q "${workers[@]}" "${selection[@]}"
