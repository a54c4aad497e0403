#!/bin/bash
# What becomes of ranks when one of them fails: all end within 10 seconds, none stays behind, the exit status is not 0,
# and standard error says why. TAP; every line says how long it took.
#   test_faults.sh fork|environment|mpi FLUTE_RUN MODEL.flt OTHER.flt
set -u
mode=$1 run=$(realpath "$2") model=$(realpath "$3") other=$(realpath "$4")
limit=10
dir=$(mktemp -d)
main='' ranks=() # process ids; main is whose exit status counts
n=0 failed=0
trap 'kill -KILL $main ${ranks[@]+"${ranks[@]}"} 2>/dev/null; rm -rf "$dir"' EXIT

if [[ $mode == mpi ]] && { ! command -v mpirun >/dev/null || ! ldd "$run" | grep -q libmpi; }; then
    echo "1..0 # SKIP no mpirun, or a build without MPI"
    exit 0
fi
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT

now() { date +%s%N; }
since() { awk -v t="$1" -v now="$(now)" 'BEGIN { printf "%.1f", (now - t) / 1e9 }'; }

result() { # result PASSED NAME SECONDS
    n=$((n + 1))
    if $1; then echo "ok $n - $2: $3 s"; else
        echo "not ok $n - $2: $3 s"
        failed=1
        sed 's/^/# /' "$dir"/err* 2>/dev/null | tail -n 20
    fi
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    local end=$(($(now) + $1 * 1000000000))
    shift
    until "$@"; do
        [[ $(now) -lt $end ]] || return 1
        sleep 0.05
    done
}

# No process of the list runs; one that has ended and that nobody has waited for yet is a zombie, and does not.
all_gone() {
    local pid state
    for pid in "$@"; do
        state=$(awk '/^State:/ { print $2 }' "/proc/$pid/status" 2>/dev/null)
        [[ -z $state || $state == Z ]] || return 1
    done
}

port=$((20000 + RANDOM % 10000))
next_port() { port=$((port + 1)); }

# start RANKS ARGUMENT...: main and ranks are set when all ranks run. The slow kernels leave time for accidents.
start() {
    local size=$1 rank
    shift
    next_port
    rm -f "$dir"/out* "$dir"/err*
    ranks=()
    case $mode in
    fork)
        "$run" -m "$model" --kernels ref --tp "$size" -v "$@" >"$dir/out" 2>"$dir/err" &
        main=$!
        ;;
    environment)
        for ((rank = size - 1; rank >= 0; rank--)); do
            RANK=$rank WORLD_SIZE=$size MASTER_PORT=$port "$run" -m "$model" --kernels ref -v "$@" \
                >"$dir/out$rank" 2>"$dir/err$rank" &
            ranks=($! ${ranks[@]+"${ranks[@]}"})
        done
        main=${ranks[0]}
        ;;
    mpi)
        MASTER_PORT=$port mpirun --oversubscribe -x MASTER_PORT -n "$size" "$run" -m "$model" --kernels ref -v "$@" \
            >"$dir/out" 2>"$dir/err" &
        main=$!
        ;;
    esac
    if [[ $mode != environment ]]; then
        has_children() { [[ $(pgrep -P $main -f -- "$run" | wc -l) -eq $size ]]; }
        wait_for 20 has_children
        mapfile -t ranks < <(pgrep -P $main -f -- "$run" | sort -n)
    fi
}

long_prompt=$(seq 1 430 | tr '\n' ' ')
loaded() { cat "$dir"/err* | grep -q '^seed'; }
talks() { [[ -s $dir/out || -s $dir/out0 ]]; }

# accident NAME VICTIM SIGNAL MESSAGE
accident() {
    local name=$1 victim=$2 signal=$3 message=$4 begin status passed=true
    begin=$(now)
    kill "-$signal" "$victim"
    wait_for 20 all_gone "$main" "${ranks[@]}"
    local took
    took=$(since "$begin")
    wait "$main" 2>/dev/null
    status=$?
    [[ $status -ne 0 ]] || passed=false
    all_gone "$main" "${ranks[@]}" || passed=false
    awk -v took="$took" -v limit=$limit 'BEGIN { exit !(took <= limit) }' || passed=false
    [[ -z $message ]] || cat "$dir"/err* | grep -q "$message" || passed=false
    result $passed "$name" "$took"
    [[ $(cat "$dir"/err* | grep -c "has died") -le 1 ]] || echo "# several ranks said so"
    wait 2>/dev/null
}

kill_each_rank() {
    local size=$1 message=$2 rank
    for ((rank = 0; rank < size; rank++)); do
        start "$size" -p "$long_prompt" -n 1
        wait_for 30 loaded
        sleep 0.4
        accident "kill -9 of rank $rank in prefill" "${ranks[$rank]}" KILL "$message"
        start "$size" -p "The" -n 1000 --ignore-eos
        wait_for 30 talks
        accident "kill -9 of rank $rank in decode" "${ranks[$rank]}" KILL "$message"
    done
}

# refused NAME BEGIN MESSAGE PID...: these end by themselves, one with that message.
refused() {
    local name=$1 begin=$2 message=$3 passed=true took pid
    shift 3
    wait_for 20 all_gone "$@" || passed=false
    took=$(since "$begin")
    for pid in "$@"; do
        if wait "$pid"; then passed=false; fi
    done
    cat "$dir"/err* | grep -q "$message" || passed=false
    awk -v took="$took" -v limit=$limit 'BEGIN { exit !(took <= limit) }' || passed=false
    result $passed "$name" "$took"
}

# rank RANK SIZE FOLDER ARGUMENT...: one rank of the environment; its id is in $!.
rank() {
    (
        cd "$3" || exit 1
        export RANK=$1 WORLD_SIZE=$2 MASTER_PORT=$port
        shift 3
        exec "$run" "$@"
    ) >"$dir/out$1" 2>"$dir/err$1" &
}

# another_file NAME MESSAGE: rank 1 has what lies in $dir/b, rank 0 the model.
another_file() {
    local begin first
    next_port
    rm -f "$dir"/err*
    begin=$(now)
    rank 0 2 "$dir/a" -m model.flt -p x -n 1
    first=$!
    rank 1 2 "$dir/b" -m model.flt -p x -n 1
    wait $! # rank 1 itself ends as it is told, with 0: it has not failed
    refused "$1" "$begin" "$2" "$first"
}

case $mode in
fork)
    kill_each_rank 3 'has died'
    start 3 -p The -n 1000 --ignore-eos
    wait_for 30 talks
    accident "kill -9 of the process that watches" "$main" KILL ''
    start 3 -p The -n 1000 --ignore-eos
    wait_for 30 talks
    accident "Ctrl-C" "$main" INT ''
    start 3 -p "$long_prompt" -n 1
    wait_for 30 loaded
    accident "SIGTERM in prefill" "$main" TERM ''
    ;;
mpi)
    kill_each_rank 2 'has died\|exited on signal 9'
    start 4 -p The -n 1000 --ignore-eos
    wait_for 30 talks
    accident "SIGINT of mpirun with 4 ranks" "$main" INT ''
    ;;
environment)
    kill_each_rank 2 'has died'
    mkdir "$dir/a" "$dir/b"
    cp "$model" "$dir/a/model.flt"
    head -c 1000000 "$model" >"$dir/b/model.flt"
    another_file "a truncated file on one rank" "rank 1 on .*truncated"
    rm "$dir/b/model.flt"
    another_file "no file on one rank" "rank 1 on .*no such file"
    cp "$model" "$dir/b/model.flt"
    printf x | dd of="$dir/b/model.flt" bs=1 seek=$(($(stat -c %s "$model") - 100000)) conv=notrunc 2>/dev/null
    another_file "a damaged file on one rank" "fails its checksum"
    cp "$other" "$dir/b/model.flt"
    another_file "another file on one rank" "rank 1 on .*not that of rank 0"
    next_port
    rm -f "$dir"/err*
    begin=$(now)
    rank 0 2 "$dir/a" -m model.flt -p x -n 1 --tp-timeout 3
    waiting=$!
    sleep 0.5
    mv "$dir/err0" "$dir/err-waiting" # the open file goes along
    in_use=$(now)
    rank 0 2 "$dir/a" -m model.flt -p x -n 1
    refused "a port in use" "$in_use" "port $port: Address already in use; set MASTER_PORT" $!
    refused "a rank that never comes" "$begin" "rank 1 did not come" $waiting
    next_port
    begin=$(now)
    rank 1 2 "$dir/a" -m model.flt -p x -n 1 --tp-timeout 2
    refused "rank 0 never comes" "$begin" "found no rank 0" $!
    next_port
    begin=$(now)
    rank 0 2 "$dir/a" -m model.flt -p x -n 1
    first=$!
    rank 1 3 "$dir/a" -m model.flt -p x -n 1
    refused "another world size" "$begin" "is one of 3 ranks, rank 0 one of 2" $first $!
    next_port
    begin=$(now)
    rank 0 2 "$dir/a" -m model.flt -p x -n 1
    first=$!
    hello() { # of a flute 9.9.9
        printf 'FLUTErnk9.9.9'
        head -c 27 /dev/zero
        printf '\1\0\0\0\2\0\0\0'
        head -c 272 /dev/zero
    }
    strange() { exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null
    wait_for 10 strange
    echo "GET / HTTP/1.0" >&3 # a stranger does no harm
    exec 3>&-
    exec 4<>"/dev/tcp/127.0.0.1/$port"
    hello >&4
    refused "another version" "$begin" "is flute 9.9.9, rank 0 is flute" $first
    exec 4>&-
    ;;
esac
echo "1..$n"
exit $failed
