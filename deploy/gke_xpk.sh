#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster that xpk made. A volume that all hosts see, such as
# a bucket (`xpk storage attach`), has to be mounted at SHARED.
#   CLUSTER=hand SHARED=/mnt/hand deploy/gke_xpk.sh hamba-1 configs/hamba.py
set -euo pipefail
workload=${1:?usage: deploy/gke_xpk.sh WORKLOAD CONFIG [FLAGS]}
config=${2:?}
shift 2
: "${CLUSTER:?}" "${SHARED:?a directory that all hosts see}"

xpk workload create --cluster "$CLUSTER" --workload "$workload" \
    --tpu-type "${TYPE:-v5litepod-64}" --num-slices "${SLICES:-1}" --max-restarts 100 \
    --base-docker-image "${IMAGE:-python:3.12}" --script-dir . \
    --command "pip install '.[tpu]' && HANDJAX_DATA=$SHARED/data python -m handjax.train \
    --config $config --workdir $SHARED/runs/$workload --distributed $*"
