#!/bin/bash
# flute-bench: that it measures, in small, and what its JSON has.
# Usage: test_cli_bench.sh BUILD ROOT
set -u
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
bench=$build/flute-bench
tiny=$build/tests/engine/tiny-llama2.flt
# shellcheck disable=SC2054 # commas are part of the values
small=(--prompts 4 --contexts 4 --batches 1,2 -n 2 --repeats 1)

"$bench" -m "$tiny" "${small[@]}" >table.txt 2>/dev/null
for word in 'read bandwidth' prefill decode tokens/s GB/s; do check "the table tells $word" grep -q "$word" table.txt; done
"$bench" -m "$tiny" "${small[@]}" --json >json.txt 2>/dev/null
for key in model read_bandwidth prefill decode tokens_per_second bytes_per_second bandwidth_share; do
    check "--json has $key" grep -q "\"$key\":" json.txt
done
check '--json prints one line' test "$(wc -l <json.txt)" -eq 1
"$bench" decode -m "$tiny" "${small[@]}" --json >json.txt 2>/dev/null
check 'decode measures decoding only' test "$(grep -c '"prefill":' json.txt)" -eq 0

# shellcheck disable=SC2054
kernels=(kernels --shapes 64x128 --types lut4,lut2 --rows 1,8 --group 64 --repeats 1)
"$bench" "${kernels[@]}" >table.txt 2>/dev/null
for type in bf16 lut4 lut2; do check "kernels measures $type" grep -Eq "^64x128 +$type " table.txt; done
"$bench" "${kernels[@]}" --json >json.txt 2>/dev/null
check 'kernels has JSON, too' has_key json.txt kernels

refuses 2 'which model? *' "$bench"
refuses 2 "'nothing' is none of all, prefill, decode, kernels; *" "$bench" nothing -m "$tiny"
refuses 2 "--prompts: '0' is not a whole number from *" "$bench" -m "$tiny" --prompts 0
refuses 2 "--shapes: '64' is not a shape like 4096x4096; *" "$bench" kernels --shapes 64
refuses 2 "--types: 'f32' is none of *" "$bench" kernels --types f32
refuses 1 'none.flt: cannot open: no such file or directory; *' "$bench" -m none.flt
finish
