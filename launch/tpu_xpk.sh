#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster with xpk. NOT RUN YET: it was written without access to one;
# --dry_run prints what it would do.
#
#   export CLUSTER=my-cluster PROJECT=my-project ZONE=us-west4-a WORKLOAD=ofa
#   export TPU_TYPE=v5litepod-256 SLICES=2 IMAGE=us-docker.pkg.dev/my-project/ofa/ofa_jax
#   bash launch/tpu_xpk.sh [--dry_run] run --gin_file=... --gin.MODEL_DIR="'gs://...'"
#   bash launch/tpu_xpk.sh [--dry_run] list
#   bash launch/tpu_xpk.sh [--dry_run] delete
#
# Settings (environment):
#   CLUSTER, PROJECT, ZONE  made with `xpk cluster create`
#   WORKLOAD                how the job is called
#   TPU_TYPE, SLICES        one slice's type, and how many (1)
#   IMAGE                   made by `launch/build_image.sh tpu`
#   CACHE_DIR               gs://... for compiled programs; without it they are recompiled
#   XPK_FLAGS               more flags for `xpk workload create`, e.g. --priority=high
#
# Needs `pip install xpk`. MODEL_DIR and data must be where all hosts can reach them (gs://...). In
# every pod a supervisor starts the run again after a crash. A pod that is preempted saves and ends
# with code 75, and the workload begins again from that checkpoint, as it does for lost nodes, up to
# --max-restarts times. xpk itself restarts after the codes 42 and 127 to 255 only, so not after a
# mistake in the configuration (2).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/dry_run.sh
action="${1:-}"
[[ $# -gt 0 ]] && shift
need CLUSTER PROJECT ZONE
place=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")

case "$action" in
  run)
    need WORKLOAD TPU_TYPE IMAGE
    train=(python -m ofa_jax.train --distributed "$@")
    if [[ "${SLICES:-1}" -gt 1 ]]; then
      train+=(--gin.Partitioner.slices="$SLICES")
    fi
    inside="$(printf '%q ' env JAX_COMPILATION_CACHE_DIR="${CACHE_DIR:-}" \
      python -m launch.supervisor --stopped_exit_code=75 -- "${train[@]}")"
    # shellcheck disable=SC2086  several flags
    run xpk workload create "${place[@]}" --workload="$WORKLOAD" --tpu-type="$TPU_TYPE" \
      --num-slices="${SLICES:-1}" --docker-image="$IMAGE" --max-restarts=100 \
      --restart-on-exit-codes=75 --termination-grace-period-seconds=330 ${XPK_FLAGS:-} --command="$inside"
    ;;
  list) run xpk workload list "${place[@]}" ;;
  delete)
    need WORKLOAD
    run xpk workload delete "${place[@]}" --workload="$WORKLOAD"
    ;;
  *)
    echo "error: the action is '$action'; give run, list or delete." >&2
    exit 2
    ;;
esac
