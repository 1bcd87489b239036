#!/usr/bin/env bash
# Trains on a Kubernetes cluster with kubectl alone: a Job on the GPUs of one host, a JobSet on those of
# several, a JobSet on TPU slices of GKE. NOT RUN YET: it was written without a cluster; --dry_run
# prints the manifest, which is one of launch/kubernetes_*.yaml with the settings filled in.
#
#   export NAME=ofa IMAGE=us-docker.pkg.dev/my-project/ofa/ofa_jax
#   HOSTS=2 CLAIM=shared bash launch/kubernetes.sh [--dry_run] run gpu --gin_file=... \
#     --gin.MODEL_DIR="'/shared/run'"
#   TPU_ACCELERATOR=tpu-v5-lite-podslice TPU_TOPOLOGY=16x16 \
#     bash launch/kubernetes.sh [--dry_run] run tpu --gin_file=... --gin.MODEL_DIR="'gs://...'"
#   bash launch/kubernetes.sh [--dry_run] logs       # of all hosts
#   bash launch/kubernetes.sh [--dry_run] delete     # saves, then ends; `run` resumes
#
# Settings (environment):
#   NAME             how the run is called
#   IMAGE            made by `launch/build_image.sh cuda` or `tpu`; the nodes must be allowed to pull it
#   NAMESPACE        default
#   CHIPS            GPUs (8) or TPU chips (4) of each host
#   CACHE_DIR        for compiled programs; without it they are recompiled
#  GPU:
#   HOSTS            how many (1); several need JobSet in the cluster
#   CLAIM            PersistentVolumeClaim that all hosts can write, mounted at /shared: for MODEL_DIR
#                    and the data
#  TPU:
#   TPU_ACCELERATOR  GKE's name, e.g. tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
#   TPU_TOPOLOGY     of a slice, e.g. 16x16
#   SLICES           how many slices (1), each in a node pool of its own
#
# In every pod a supervisor starts the run again after a crash. A pod that is preempted saves and ends
# with code 75, and the Job or JobSet begins again from that checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/dry_run.sh
action="${1:-}"
[[ $# -gt 0 ]] && shift
need NAME
kubectl=(kubectl --namespace="${NAMESPACE:-default}")

case "$action" in
  run)
    manifest="$(python3 -m launch.manifest "$@")"
    if $dry_run; then
      echo "$manifest"
    else
      "${kubectl[@]}" apply --filename=- <<< "$manifest"
    fi
    ;;
  logs)
    selector="jobset.sigs.k8s.io/jobset-name=$NAME"
    if ! $dry_run && "${kubectl[@]}" get job "$NAME" > /dev/null 2>&1; then
      selector="batch.kubernetes.io/job-name=$NAME"
    fi
    run "${kubectl[@]}" logs --selector="$selector" --follow --prefix --tail=100 \
      --max-log-requests=1000
    ;;
  delete)
    run "${kubectl[@]}" delete job "$NAME" --ignore-not-found
    # There is no such kind of resource without JobSet.
    if $dry_run || "${kubectl[@]}" get crd jobsets.jobset.x-k8s.io > /dev/null 2>&1; then
      run "${kubectl[@]}" delete jobset "$NAME" --ignore-not-found
    fi
    ;;
  *)
    echo "error: the action is '$action'; give run, logs or delete." >&2
    exit 2
    ;;
esac
