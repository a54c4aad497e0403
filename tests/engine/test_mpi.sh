#!/bin/bash
# Perplexity of a text to five digits on 2, 3, 4 and 8 ranks; real mpirun with 2 and 4 processes: logits, too. TAP.
#   test_mpi.sh TEST_RANKS TINY.flt FLUTE_PERPLEXITY MODEL.flt TEXT
set -u
if ! command -v mpirun >/dev/null || ! ldd "$3" | grep -q libmpi; then
    echo "1..0 # SKIP no mpirun, or a build without MPI"
    exit 0
fi
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=0 # Open MPI's own are many; test_ranks looks for ours
unset RANK WORLD_SIZE MASTER_ADDR
port=$((10000 + RANDOM % 10000))
n=0 failed=0

ranks() { # ranks N COMMAND...
    local size=$1
    shift
    port=$((port + 1))
    MASTER_PORT=$port mpirun --oversubscribe -x MASTER_PORT -n "$size" "$@"
}

result() { # result NAME STATUS
    n=$((n + 1))
    if [[ $2 -eq 0 ]]; then echo "ok $n - $1"; else
        echo "not ok $n - $1"
        failed=1
    fi
}

# The reference kernels: nothing is rounded but sums in another order.
perplexity() { "$@" -m "$model" -f "$text" -c 128 --limit 2 --kernels ref --json | grep -o '"perplexity":[0-9.]\{7\}'; }

test_ranks=$1 tiny=$2 program=$3 model=$4 text=$5
alone=$(perplexity "$program")
echo "# alone: $alone"
for size in 2 3 4 8; do
    shared=$(perplexity "$program" --tp $size)
    echo "# $size ranks of --tp: $shared"
    [[ $shared == "$alone" ]]
    result "perplexity on $size ranks of --tp" $?
done
for size in 2 4; do
    ranks $size "$test_ranks" launched "$tiny"
    result "logits on $size ranks of mpirun" $?
    shared=$(perplexity ranks $size "$program")
    echo "# $size ranks of mpirun: $shared"
    [[ -n $alone && $shared == "$alone" ]]
    result "perplexity on $size ranks of mpirun" $?
done
echo "1..$n"
exit $failed
