#!/bin/bash
# Two ranks with real NCCL, sharing the GPU if there is only one: then they must look like two hosts to NCCL, and
# everything goes through sockets, at milliseconds a sum. TAP.
#   test_nccl.sh TEST_RANKS MODEL.flt...
set -u
test_ranks=$1
shift
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    echo "1..0 # SKIP no NVIDIA GPU on this machine"
    exit 0
fi
n_gpus=$(nvidia-smi -L | grep -c '^GPU')
export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1
if [[ $n_gpus -lt 2 ]]; then export NCCL_MNNVL_ENABLE=0 NCCL_NVLS_ENABLE=0; fi
export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((10000 + RANDOM % 10000))
n=0 failed=0
for model in "$@"; do
    pids=()
    for rank in 1 0; do
        (
            export RANK=$rank
            if [[ $n_gpus -lt 2 ]]; then export NCCL_HOSTID=rank-$rank; fi
            exec "$test_ranks" launched-cuda "$model"
        ) &
        pids+=($!)
    done
    passed=true
    for pid in "${pids[@]}"; do wait "$pid" || passed=false; done
    n=$((n + 1))
    if $passed; then echo "ok $n - $model"; else
        echo "not ok $n - $model"
        failed=1
    fi
    MASTER_PORT=$((MASTER_PORT + 1))
done
echo "1..$n"
exit $failed
