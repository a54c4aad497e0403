#!/bin/bash
# flute-quantize: what it writes, what it refuses, and that nothing half-written is ever left.
# Usage: test_cli_quantize.sh BUILD ROOT
set -u
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
quantize=$build/flute-quantize run=$build/flute-run

# checkpoint NAME [FROM]: a copy of a tiny one to break.
checkpoint() {
    rm -rf "$1"
    cp -r "$data/tiny/${2:-llama2}" "$1"
    chmod -R u+w "$1"
}

# ---- What it writes

checkpoint tiny
"$quantize" tiny >table.txt 2>err.txt
check 'the defaults convert' test $? -eq 0
check 'into a file named after the checkpoint' test -s tiny-lut4-g128.flt
check 'the table has every matrix' same "$(grep -Ec '^(embedding|head|layers\.[01]\.(qkv|o_proj|gate_up|down_proj)) ' table.txt)" 10
check 'with its type, bytes and error' grep -Eq '^layers.0.qkv +384x128 +lut4 +25344 +0\.0[0-9]+$' table.txt
check 'and a sum' grep -Eq '^tiny-lut4-g128.flt: 0.459 million weights in 0.303 MB, 5.28 bits a weight, relative error' table.txt
check '--quiet says nothing' test -z "$("$quantize" --quiet tiny 2>&1)"
check 'a tokenizer that is missing is said' grep -q '^tiny: neither tokenizer.model nor tokenizer.json is there' err.txt
"$quantize" --quiet -o again.flt -t 1 tiny
check 'the same bytes with any number of threads' cmp tiny-lut4-g128.flt again.flt

# shellcheck disable=SC2317 # called by check
check_model() { "$run" -t 1 -m "$1" --prompt-ids 1,2,3 -n 2 --greedy; }
for bits in 2 3 4 8 16; do
    check "--bits $bits converts" "$quantize" --bits $bits --group 64 -o bits.flt tiny
    check "and runs" check_model bits.flt
done
for group in 32 64 128; do check "--group $group converts" "$quantize" --group $group -o group.flt tiny; done
for table in opt nf int lloyd; do check "--table $table converts" "$quantize" --table $table -o table.flt tiny; done
echo '-1 -0.3 0.25 1' >table.txt
check '--table FILE converts' "$quantize" --bits 2 --table table.txt -o table.flt tiny
check 'and runs' check_model table.flt
# error OPTION...: the relative error that the last line tells.
error() { "$quantize" "$@" -o error.flt tiny 2>/dev/null | sed -n '$s/.*relative error //p'; }
# shellcheck disable=SC2317
better() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && b > 0 && a < b) }'; }
check 'the search is better than --absmax' better "$(error --table nf)" "$(error --table nf --absmax)"
check 'four bits are better than three' better "$(error)" "$(error --bits 3)"
check '--head-bits changes the head only' same "$("$quantize" --head-bits 4 -o head.flt tiny 2>/dev/null |
    awk '$1 == "head" || $1 == "embedding" { printf "%s %s ", $1, $3 }')" 'embedding int8 head lut4 '
check '--embed-bits changes the embedding only' same "$("$quantize" --embed-bits 16 -o head.flt tiny 2>/dev/null |
    awk '$1 == "head" || $1 == "embedding" { printf "%s %s ", $1, $3 }')" 'embedding f16 head int8 '
checkpoint tied llama32-tied
check 'a tied head is stored once' same "$("$quantize" --head-bits 3 -g 64 -o tied.flt tied 2>/dev/null |
    awk '$1 == "head" || $1 == "embedding" { printf "%s %s ", $1, $3 }')" 'embedding lut3 '
for name in llama31 gemma1 gemma2 gemma3; do
    check "$name converts" "$quantize" -g 32 -o other.flt "$data/tiny/$name"
    check 'and runs' check_model other.flt
done

# ---- Command lines

refuses 2 'which checkpoint? give its folder; *' "$quantize"
refuses 2 "'b' is one argument too many; *" "$quantize" a b
refuses 2 '--random llama-3-8b and the folder tiny exclude each other; *' "$quantize" --random llama-3-8b tiny
refuses 2 'no shape is called "x"; these are known: llama-3-8b, llama-3.2-1b, llama-3-70b, gemma-2-9b, gemma-2-27b; *' \
    "$quantize" --random x
refuses 2 "--bits: '5' is none of 2, 3, 4, 8, 16; *" "$quantize" --bits 5 tiny
refuses 2 "--group: '96' is none of 32, 64, 128, 256; *" "$quantize" --group 96 tiny
refuses 2 "--head-bits: '7' is none of *" "$quantize" --head-bits 7 tiny
refuses 2 '--table: tables are for 2, 3 and 4 bits, not for --bits 8; *' "$quantize" --bits 8 --table nf tiny
refuses 2 '--absmax does not go with --bits 16, *' "$quantize" --bits 16 --absmax tiny
refuses 2 '--absmax does not go with --random, *' "$quantize" --random llama-3-8b --absmax
refuses 2 '--seed is for --random only; *' "$quantize" --seed 1 tiny
refuses 2 "this model's head is its embedding, stored once: --head-bits 4 and --embed-bits 8 contradict *" \
    "$quantize" --head-bits 4 --embed-bits 8 tied

# ---- Checkpoints: x.flt must never appear

to_x=("$quantize" --quiet -o x.flt)
# refuses_broken FROM MESSAGE: what is done to the copy is the function break_it.
refuses_broken() {
    checkpoint broken "$1"
    break_it
    refuses 1 "$2" "${to_x[@]}" broken
}
refuses 1 'none/config.json: cannot open: no such file or directory; *' "${to_x[@]}" none
refuses 1 'again.flt: is a file; give the folder of a checkpoint, *' "${to_x[@]}" again.flt
break_it() { rm broken/config.json; }
refuses_broken llama2 'broken/config.json: cannot open: no such file *'
break_it() { echo '{' >broken/config.json; }
refuses_broken llama2 'broken/config.json: not valid JSON at byte 2: *'
break_it() { echo '[' >broken/generation_config.json; }
refuses_broken llama2 'broken/generation_config.json: not valid JSON *'
break_it() { sed -i 's/LlamaForCausalLM/MistralForCausalLM/' broken/config.json; }
refuses_broken llama2 'broken/config.json: the architecture MistralForCausalLM is not supported; these are: LlamaForCausalLM, *'
break_it() { sed -i 's/"rope_type": "default"/"rope_type": "yarn"/' broken/config.json; }
refuses_broken llama2 'broken/config.json: the RoPE type "yarn" is not supported; default, linear and llama3 are'
break_it() { sed -i '1s/{/{"quantization_config": {"quant_method": "gptq"},/' broken/config.json; }
refuses_broken llama2 'broken/config.json: the checkpoint is quantized already (gptq); convert the original *'
break_it() { rm broken/model-00003-of-00005.safetensors; }
refuses_broken llama31 'broken/model-00003-of-00005.safetensors: this shard is missing, though *; fetch it *'
break_it() { truncate -s 1000 broken/model-00003-of-00005.safetensors; }
refuses_broken llama31 'broken/model-00003-of-00005.safetensors: truncated: *; fetch the file again'
break_it() { truncate -s 20 broken/model.safetensors; }
refuses_broken llama2 'broken/model.safetensors: not a safetensors file, or cut off *'
break_it() { echo 'version https://git-lfs.github.com/spec/v1' >broken/model.safetensors; }
refuses_broken llama2 'broken/model.safetensors: a Git LFS pointer, *; run * there'
break_it() { mv broken/model.safetensors broken/pytorch_model.bin; }
refuses_broken llama2 'broken: holds PyTorch files only, *; save the model as safetensors first *'
break_it() { rm broken/model.safetensors; }
refuses_broken llama2 'broken: neither model.safetensors nor model.safetensors.index.json is there; *'
break_it() { sed -i 's/"F16"/"I16"/' broken/model.safetensors; } # the header keeps its length
refuses_broken llama2 'broken/model.safetensors: * has the dtype I16; F32, F16 and BF16 can be read: *'
break_it() { sed -i 's/"hidden_size": 128/"hidden_size": 256/' broken/config.json; }
refuses_broken llama2 'broken/model.safetensors: model.norm.weight is (128), but config.json makes it (1, 256)'
break_it() { echo garbage >broken/tokenizer.model; }
refuses_broken llama2 'broken/tokenizer.model: neither a sentencepiece model nor a tiktoken file; *'
break_it() { echo '{"model": 1}' >broken/tokenizer.json; }
refuses_broken llama2 'broken/tokenizer.json: *'
break_it() { cp "$data/docs-llama2/tokenizer.model" broken; }
refuses_broken llama2 'broken/tokenizer.model: the tokenizer has 4096 tokens, the model only 512; *'
refuses 1 'tiny: embedding: K=128 is not a multiple of the group size 256; choose a smaller --group' "${to_x[@]}" -g 256 tiny
refuses 1 'none.txt: cannot open: no such file or directory; *' "${to_x[@]}" --table none.txt tiny
refuses 1 'table.txt: a table for these weights has 16 numbers, this file has 4' "${to_x[@]}" --table table.txt tiny
check 'no refusal left a file' test ! -e x.flt
check 'nor a part of one' no_leftovers

# ---- Outputs

refuses 1 'none/x.flt: its folder does not exist; *' "$quantize" --quiet -o none/x.flt tiny
refuses 1 'tiny: cannot write: is a directory; give a file' "$quantize" --quiet -o tiny tiny
refuses 1 '/dev/null: is not a regular file; *' "$quantize" --quiet -o /dev/null tiny
cp -r tiny before
for file in model.safetensors config.json golden.json; do
    refuses 1 "tiny/$file: is there already and is no .flt file, so it stays; *" "$quantize" --quiet -o "tiny/$file" tiny
done
check 'the checkpoint is as it was' diff -r before tiny
cp again.flt x.flt
(ulimit -f 100 && "$quantize" --quiet -o x.flt tiny) 2>err.txt
check 'a file-size limit fails as a full disk does' same "$?:$(sed 's/cannot write.*: //' err.txt)" \
    '1:flute-quantize: x.flt: larger than the file-size limit (ulimit -f) or the file system allows; raise it or choose another place'
check 'and the model of before is still there' cmp x.flt again.flt
check 'no part of the new one is' no_leftovers
"$quantize" -o x.flt tiny >/dev/full 2>err.txt
check 'a table that cannot be printed fails' same "$?:$(tail -n 1 err.txt)" \
    '1:flute-quantize: standard output: No space left on device'
mkdir locked && chmod 555 locked
if [[ $(id -u) -eq 0 ]]; then # root may write everywhere: be nobody
    mkdir bin && cp "$quantize" bin # the build folder may be out of nobody's reach
    chmod 755 . && chmod -R a+rX tiny
    setpriv --reuid=65534 --clear-groups bin/flute-quantize --quiet -o locked/x.flt tiny 2>err.txt
    check 'a folder that may not be written to is refused' test $? -eq 1
    check 'and said so' grep -q '^flute-quantize: locked/x.flt: cannot write: permission denied; ' err.txt
else
    refuses 1 'locked/x.flt: cannot write: permission denied; *' "$quantize" --quiet -o locked/x.flt tiny
fi

# ---- Random models: every shape is known, and its first bytes are refused by a file-size limit

for name in llama-3-8b llama-3.2-1b llama-3-70b gemma-2-9b gemma-2-27b; do
    (ulimit -f 8 && "$quantize" --quiet --random "$name" --bits 2 -o random.flt) 2>err.txt
    check "--random $name begins" grep -q '^flute-quantize: random.flt: cannot write: .* (ulimit -f)' err.txt
done
check 'and leaves nothing' no_leftovers

# ---- Signals. `set -m` gives children the default actions, which a script's background jobs do not have; but not what
# the script itself ignores, which is HUP where the tests run under nohup.

set -m
start=(env --default-signal=HUP)
# interrupt SIGNAL...: starts a conversion and sends it the signals, one after the other, once its file is there.
interrupt() {
    local pid signal
    "${start[@]}" "$quantize" --quiet --random llama-3.2-1b --bits 2 -o big.flt 2>err.txt &
    pid=$!
    for ((i = 0; i < 1000; i++)); do
        [[ -n $(find . -name '.big.flt.*' -size +0) ]] && break
        sleep 0.01
    done
    for signal; do
        kill -s "$signal" $pid
        sleep 0.02
    done
    wait $pid
    status=$?
} 2>/dev/null # bash tells how its jobs end
for signal in INT TERM HUP; do
    interrupt $signal
    check "SIG$signal ends it" same "$(kill -l $((status - 128)))" $signal
    check 'and leaves nothing' no_leftovers
done
trap '' HUP # as nohup does
start=()
interrupt HUP TERM
check 'under nohup SIGHUP does not' same "$(kill -l $((status - 128)))" TERM
check 'no model came of any' test ! -e big.flt
finish
