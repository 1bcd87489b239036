#!/usr/bin/env bash
# Trains on a TPU pod slice, or on several, with gcloud alone: queued resources, Docker on every
# host. NOT RUN YET: it was written without access to Cloud TPUs; --dry_run prints what it would do.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=ofa ACCELERATOR_TYPE=v5litepod-256
#   export RUNTIME_VERSION=v2-alpha-tpuv5-lite IMAGE=us-docker.pkg.dev/my-project/ofa/ofa_jax
#   bash launch/tpu_pod_gcloud.sh [--dry_run] create     # requests the slice(s)
#   bash launch/tpu_pod_gcloud.sh [--dry_run] status     # until it says ACTIVE
#   bash launch/tpu_pod_gcloud.sh [--dry_run] run --gin_file=... --gin.MODEL_DIR="'gs://...'"
#   bash launch/tpu_pod_gcloud.sh [--dry_run] logs       # of the first host
#   bash launch/tpu_pod_gcloud.sh [--dry_run] stop       # saves, then ends; `run` resumes
#   bash launch/tpu_pod_gcloud.sh [--dry_run] delete
#
# Settings (environment):
#   PROJECT, ZONE, NAME   where it runs, and how the resource is called
#   ACCELERATOR_TYPE      of one slice, e.g. v4-128, v5litepod-256, v5p-128, v6e-256
#   RUNTIME_VERSION       of the TPU VMs, as Google's table says for the type
#   SLICES                how many slices, joined by the data-centre network; 1
#   IMAGE                 made by `launch/build_image.sh tpu`; the hosts must be allowed to pull it
#   CREATE_FLAGS          more flags for `create`, e.g. --spot or --reserved
#   CACHE_DIR             gs://... for compiled programs; without it they are recompiled
#
# The plan (`python -m ofa_jax.plan`) says beforehand whether a configuration fits. MODEL_DIR and
# data must be where all hosts can reach them (gs://...). On every host a supervisor starts the run
# again after a crash, and Docker starts the supervisor again. A slice that is preempted does not
# come back by itself: `delete`, `create` and `run` continue from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/dry_run.sh
action="${1:-}"
[[ $# -gt 0 ]] && shift
need PROJECT ZONE NAME
place=(--project="$PROJECT" --zone="$ZONE")
resources=(gcloud alpha compute tpus queued-resources)

# on_all_hosts COMMAND: one string, for the shell of every host of every slice.
on_all_hosts() {
  run "${resources[@]}" ssh "$NAME" "${place[@]}" --worker=all --node=all --command="$1"
}

case "$action" in
  create)
    need ACCELERATOR_TYPE RUNTIME_VERSION
    nodes=(--node-id="$NAME")
    if [[ "${SLICES:-1}" -gt 1 ]]; then
      nodes=(--node-count="$SLICES" --node-prefix="$NAME")
    fi
    # shellcheck disable=SC2086  several flags
    run "${resources[@]}" create "$NAME" "${place[@]}" "${nodes[@]}" \
      --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
      ${CREATE_FLAGS:-}
    ;;
  status) run "${resources[@]}" describe "$NAME" "${place[@]}" ;;
  run)
    need IMAGE
    train=(python -m ofa_jax.train --distributed "$@")
    if [[ "${SLICES:-1}" -gt 1 ]]; then
      train+=(--gin.Partitioner.slices="$SLICES")
    fi
    docker=(sudo docker run --detach --name=ofa_jax --restart=on-failure:5 --privileged
      --network=host --stop-timeout=330 --env=JAX_COMPILATION_CACHE_DIR="${CACHE_DIR:-}"
      "$IMAGE" python -m launch.supervisor -- "${train[@]}")
    on_all_hosts "sudo gcloud auth configure-docker ${IMAGE%%/*} --quiet"
    on_all_hosts "sudo docker pull $(printf '%q' "$IMAGE")"
    on_all_hosts "sudo docker rm --force ofa_jax; $(printf '%q ' "${docker[@]}")"
    ;;
  logs)
    run "${resources[@]}" ssh "$NAME" "${place[@]}" --worker=0 --node=0 \
      --command="sudo docker logs --follow --tail=100 ofa_jax"
    ;;
  stop) on_all_hosts "sudo docker stop --time=330 ofa_jax" ;;
  delete) run "${resources[@]}" delete "$NAME" "${place[@]}" --force --quiet ;;
  *)
    echo "error: the action is '$action'; give create, status, run, logs, stop or delete." >&2
    exit 2
    ;;
esac
