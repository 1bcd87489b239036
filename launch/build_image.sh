#!/usr/bin/env bash
# Builds the Docker image that the cloud launchers run, and pushes it.
#
#   IMAGE=us-docker.pkg.dev/my-project/ofa/ofa_jax bash launch/build_image.sh [--dry_run] tpu
#
# The argument is the accelerator: tpu, cuda or cpu. NOT RUN YET: there is no Docker where it was
# written.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/dry_run.sh
need IMAGE
accelerator="${1:-}"
case "$accelerator" in
  tpu | cuda | cpu) ;;
  *)
    echo "error: the accelerator is '$accelerator'; give tpu, cuda or cpu." >&2
    exit 2
    ;;
esac
run docker build --file=launch/Dockerfile --build-arg=ACCELERATOR="$accelerator" --tag="$IMAGE" .
run docker push "$IMAGE"
