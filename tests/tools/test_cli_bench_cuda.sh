#!/bin/bash
# flute-bench on a GPU that is emulated: kernels and decode, in small. Speeds mean nothing here.
# Usage: test_cli_bench_cuda.sh BUILD ROOT FLUTE_BENCH MODEL.flt
# shellcheck disable=SC2317 # `check` calls the functions
set -u
program=$(realpath "$3") model=$(realpath "$4")
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
ln -s "$program" flute-bench # its name, in messages
bench=./flute-bench
# shellcheck disable=SC2054 # commas are part of the values
kernels=(kernels --shapes 64x128 --repeat 1)

"$bench" "${kernels[@]}" --device cuda --types lut3,int8 --rows 1,70 --plot kernels.svg >table.txt 2>errors.txt
result $? 'kernels on a GPU'
note <errors.txt
for type in bf16 lut3 int8; do
    check "kernels measures $type" test "$(grep -Ec "^64x128 +$type +[0-9]+ +(1|70) +[0-9.]+ " table.txt)" -eq 2
done
check 'the plot is drawn' grep -q '</svg>' kernels.svg
check 'no number is nonsense' test "$(grep -Eci '[" ,](-?nan|-?inf)' table.txt kernels.svg | grep -vc ':0$')" -eq 0
"$bench" "${kernels[@]}" --types lut4 --rows 1 --path wide --json >json.txt
check 'kernels take the GPU without being told' grep -q '"device":"[^"]* SMs' json.txt
"$bench" decode -m "$model" -c 4 --batches 1 -n 2 --repeat 1 --json >json.txt
check 'decode on a GPU' grep -q '"device":"cuda: .*"decode":\[{"context":4,' json.txt

refuses 1 'the reference kernels run on the CPU: *' "$bench" kernels --device cuda --kernels ref
refuses 1 '--path chooses among kernels of a GPU' "$bench" kernels --device cpu --path gemv
refuses 2 "--path: 'slow' is none of auto, gemv, tile, wide, ampere; *" "$bench" kernels --path slow
finish
