#!/usr/bin/env bash
# One process on each of some hosts that ssh reaches; the first one coordinates.
#   deploy/hosts.sh "gpu1 gpu2" configs/hamba.py /shared/runs/hamba
# Every host has the code in the same directory, and sees the same workdir and data.
set -euo pipefail
read -r -a hosts <<<"${1:?usage: deploy/hosts.sh 'HOST HOST ...' CONFIG WORKDIR [FLAGS]}"
config=${2:?}
workdir=${3:?}
shift 3

trap 'kill $(jobs -p) 2>/dev/null || true' INT TERM
for number in "${!hosts[@]}"; do
    # -tt: when this script ends, so do they.
    ssh -tt "${hosts[$number]}" "cd $PWD && python -m handjax.train --config $config \
        --workdir $workdir --coordinator ${hosts[0]}:8476 \
        --num_processes ${#hosts[@]} --process_id $number $*" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "$status"
