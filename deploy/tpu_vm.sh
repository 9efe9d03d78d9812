#!/usr/bin/env bash
# A TPU slice as a queued resource, and a run on all of its hosts.
#   NAME=hand ZONE=us-west4-a BUCKET=my-bucket REPO=https://... \
#       deploy/tpu_vm.sh configs/hamba.py
set -euo pipefail
config=${1:?usage: deploy/tpu_vm.sh CONFIG [FLAGS]}
shift
: "${NAME:?}" "${ZONE:?}" "${BUCKET:?a bucket for data and workdir}"
: "${REPO:?where git clones this repository from}"
type=${TYPE:-v5litepod-64}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}

gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" --zone "$ZONE" \
    --accelerator-type "$type" --runtime-version "$runtime" --spot
until gcloud compute tpus queued-resources describe "$NAME" --zone "$ZONE" \
    --format 'value(state.state)' | grep -q ACTIVE; do sleep 30; done

everywhere() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker all --command "$1"
}
everywhere "git clone $REPO handjax && cd handjax &&
    pip install '.[tpu]' && sudo mkdir -p /mnt/hand && sudo gcsfuse -o allow_other $BUCKET /mnt/hand"
everywhere "cd handjax && HANDJAX_DATA=/mnt/hand/data python -m handjax.train \
    --config $config --workdir /mnt/hand/runs/$NAME --distributed $*"
