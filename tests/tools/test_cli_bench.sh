#!/bin/bash
# flute-bench: that it measures, in small, what its JSON has, and what it draws.
# Usage: test_cli_bench.sh BUILD ROOT
# shellcheck disable=SC2317 # `check` calls the functions
set -u
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
bench=$build/flute-bench
tiny=$build/tests/engine/tiny-llama2.flt
# One thread: two of them wait for each other on a busy machine.
# shellcheck disable=SC2054 # commas are part of the values
small=(-m "$tiny" -t 1 --prompt-lengths 4,8 -c 4 --batches 1,2 -n 2 --repeat 1)
# shellcheck disable=SC2054
kernels=(kernels -t 1 --shapes 64x128 --types lut4,lut2 --rows 1,8 --group 64 --repeat 1)

# documented WHAT: the keys that --help lists behind "WHAT:", up to the next such line.
"$bench" --help >help.txt
documented() {
    awk -v what="$1:" '
        /^JSON keys/ { inside = 1 }
        inside && $1 ~ /^[a-z]+:$/ { on = $1 == what; $1 = "" }
        /^Bytes are/ { on = 0 }
        on' help.txt
}
# Whether every record of the array WHAT in json.txt has the documented keys, in the documented order.
has_documented_keys() {
    local keys record n=0
    keys=$(documented "$1" | xargs)
    while read -r record; do
        same "$(grep -o '"[a-z0-9_]*":' <<<"$record" | tr -d '":' | xargs)" "$keys" || return 1
        n=$((n + 1))
    done < <(grep -o "\"$1\":\[[^]]*\]" json.txt | sed 's/^[^[]*//' | grep -o '{[^}]*}')
    [[ -n $keys && $n -gt 0 ]]
}

"$bench" "${small[@]}" >table.txt
for word in 'read bandwidth' prefill decode latency tokens/s GB/s; do
    check "the table tells $word" grep -q "$word" table.txt
done
"$bench" "${small[@]}" --json --plot plot.svg >json.txt
cp json.txt json.full
check '--json prints one line' test "$(wc -l <json.txt)" -eq 1
check '--json parses' python3 -m json.tool json.txt
for key in version command date device read_bandwidth model weights group weight_bytes decode_bytes kv_token_bytes ranks; do
    check "--json has $key" has_key json.txt "$key"
    check "--help tells $key" grep -qw "$key" help.txt
done
for part in prefill decode latency; do check "records of $part have the documented keys" has_documented_keys "$part"; done
check 'two prompts, two batches: four latencies' test "$(grep -o first_ms_p50 json.txt | wc -l)" -eq 4
for part in prefill decode latency; do
    "$bench" "$part" "${small[@]}" --json >json.txt
    same "$(grep -o '"\(prefill\|decode\|latency\)":\[' json.txt)" "\"$part\":[" >part.out
    result $? "$part measures $part only"
done

"$bench" "${kernels[@]}" --plot kernels.html >table.txt
for type in bf16 lut4 lut2; do check "kernels measures $type" grep -Eq "^64x128 +$type " table.txt; done
"$bench" "${kernels[@]}" --json >json.txt
check 'JSON of kernels parses' python3 -m json.tool json.txt
check 'records of kernels have the documented keys' has_documented_keys kernels

# The roofline, three panels of decode, one of prefill, two of latency.
check 'the plot has all panels' test "$(grep -c 'class="panel"' plot.svg)" -eq 7
check 'the plot tells the model' grep -q "<title>$(value json.full model | tr -d '\"') " plot.svg
check 'the plot needs nothing from elsewhere' test "$(grep -Ec 'href|url\(|@import|src=' plot.svg kernels.html | grep -vc ':0$')" -eq 0
check 'no coordinate is nonsense' test "$(grep -Eci '[" ,](-?nan|-?inf)' plot.svg kernels.html | grep -vc ':0$')" -eq 0
check 'the page holds the drawing' test "$(grep -c '</svg>' kernels.html)" -eq 1
if command -v xmllint >/dev/null; then
    check 'the plot is well-formed XML' xmllint --noout plot.svg
    sed -n '/<svg/,/<\/svg>/p' kernels.html >kernels.svg
    check 'so is the one in the page' xmllint --noout kernels.svg
else
    result 0 'the plots are well-formed XML # SKIP xmllint (package libxml2-utils) is missing'
fi
check 'no temporary files' no_leftovers

"$bench" decode -m "$tiny" -t 1 --batches 1 --repeat 1 --json >json.txt # a context of 512
check 'default lengths beyond the context are left out' same "$(grep -o '"context":[0-9]*' json.txt)" '"context":32'

# Degrees of tensor parallelism.
"$bench" decode "${small[@]}" --device cpu --tp 2,1 >table.txt
check 'a list of --tp measures each degree' same "$(grep -c '^ *context ' table.txt)" 2
check 'and says how they scale: the first one is what the others are compared with' \
    same "$(awk '/^scaling/ { on = 1 } on && $1 == "decode" { print $2, $3, $4, $6 == "100.0" }' table.txt | xargs)" \
    '4 1 2 1 4 1 1 0 4 2 2 1 4 2 1 0'
"$bench" "${small[@]}" --device cpu --tp 1,2 --json >json.txt
check '--json of a list prints one line' test "$(wc -l <json.txt)" -eq 1
check 'which parses' python3 -m json.tool json.txt
check 'records of scaling have the documented keys' has_documented_keys scaling
check 'records of sums have the documented keys' has_documented_keys sums
check 'both degrees are there' same "$(grep -o '"ranks":[0-9],"prefill"' json.txt | xargs)" 'ranks:1,prefill ranks:2,prefill'
check 'the share of collectives is one' test "$(grep -o '"collectives_share":0\.0*[1-9]' json.txt | wc -l)" -eq 2

refuses 2 "what to measure: 'nothing' is none of all, prefill, decode, latency, sums, kernels; *" "$bench" nothing
refuses 2 "'more' is one argument too many; *" "$bench" decode more
refuses 2 "--prompt-lengths: '0' is not a whole number from *" "$bench" --prompt-lengths 0
refuses 2 "--batches: '1,,2' is not a list like 1,2,3; *" "$bench" --batches 1,,2
refuses 2 "--plot: 'plot.png' ends neither in .svg nor in .html; *" "$bench" --plot plot.png
refuses 2 '--plot draws one degree: *' "$bench" decode --tp 1,2 --plot plot.svg
refuses 2 "--tp: '0' is not a whole number from *" "$bench" --tp 1,0
refuses 1 'there is one rank, and nothing to sum up; *' "$bench" sums "${small[@]}" --tp 1,2 --json
refuses 2 "--shapes: '64' is not a shape like 4096x4096; *" "$bench" kernels --shapes 64
refuses 2 "--types: 'f32' is none of *" "$bench" kernels --types f32
refuses 2 "--group: '48' is none of 32, 64, 128, 256; *" "$bench" kernels --group 48
# With and without CUDA in the build.
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    result 0 'kernels --device cuda is refused without a GPU # SKIP there is one'
else
    refuses 1 '*CUDA*' "$bench" kernels --device cuda
fi
refuses 2 '--repeats: there is no such option; *' "$bench" --repeats 3
refuses 1 '*ask for shorter ones' "$bench" prefill -m "$tiny" --prompt-lengths 100000 --json
refuses 1 '--generate: the time between two tokens takes at least 2' "$bench" latency -m "$tiny" -n 1 --json
refuses 1 'none.flt: cannot open: no such file or directory; *' "$bench" -m none.flt
refuses 1 'nowhere/plot.svg: *' "$bench" prefill "${small[@]}" --plot nowhere/plot.svg --json
finish
