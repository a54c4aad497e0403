#!/bin/bash
# What flute-run and flute-perplexity refuse: one line that names the thing and the remedy, a status that is not 0, and
# nothing half-written.
# Usage: test_cli_refuse.sh BUILD ROOT
set -u
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
run=$build/flute-run perplexity=$build/flute-perplexity
parrot=$build/tests/tools/parrot-llama2.flt
tiny=$build/tests/engine/tiny-llama2.flt

# ---- Command lines: status 2

for program in "$run" "$perplexity" "$build/flute-quantize"; do
    refuses 2 '--no-such: there is no such option; see * --help' "$program" --no-such
    refuses 2 '-x: there is no such option; see *' "$program" -x
    refuses 2 '--threads: a value must follow it; see *' "$program" --threads
    refuses 2 '--help=3: this option takes no value; see *' "$program" --help=3
done
refuses 2 '-x: there is no such option; see *' "$run" --verbose -xv
refuses 2 '--t: several options begin like this; write it out; see *' "$run" --t
refuses 2 'what should the model continue? *' "$run"
refuses 2 "'more' is one argument too many; *" "$run" -p text more
refuses 2 'give one of -p, -f and --prompt-ids; *' "$run" -p text -f file
refuses 2 '--prompt-ids does not go with --chat; *' "$run" --chat --prompt-ids 1
refuses 2 '--logits-out does not go with --chat; *' "$run" --chat --logits-out file
refuses 2 '--chat with --json answers one message: *' "$run" --chat --json
refuses 2 '--system needs --chat; *' "$run" -p text --system text
refuses 2 '--stop: the text is empty; *' "$run" -p text --stop ''
for value in -2 x '' 1.5 99999999999; do refuses 2 "-n: '$value' is not a whole number from -1 to *" "$run" -p text -n "$value"; done
for value in 0 -1 1025 x; do refuses 2 "-t: '$value' is not a whole number from 1 to 1024; *" "$run" -p text -t "$value"; done
for value in 0 -5 x; do refuses 2 "-c: '$value' is not a whole number from 1 to *" "$run" -p text -c "$value"; done
for value in -1 nan 101 x; do refuses 2 "--temp: '$value' is not a number from 0 to 100; *" "$run" -p text --temp "$value"; done
for option in --top-p --min-p; do refuses 2 "$option: '1.5' is not a number from 0 to 1; *" "$run" -p text $option 1.5; done
refuses 2 "--top-k: '-1' is not a whole number from 0 *" "$run" -p text --top-k -1
refuses 2 "--repeat-penalty: '0' is not a number from *" "$run" -p text --repeat-penalty 0
refuses 2 "--seed: '-1' is not a whole number from 0 to *" "$run" -p text --seed -1
refuses 2 "--device: 'gpu' is none of auto, cpu, cuda; *" "$run" -p text --device gpu
refuses 2 "--kernels: 'fast' is none of auto, ref; *" "$run" -p text --kernels fast
for list in '' -1 1,,2 '1,2,' '1 2' 99999999999 one; do
    refuses 2 '--prompt-ids: number [1-3] of the list is not a token id; write 1,2,3; *' "$run" --prompt-ids "$list"
done
refuses 2 'which text? give -f FILE; *' "$perplexity"
refuses 2 "-c: '1' is not a whole number from 2 to *" "$perplexity" -f text -c 1
refuses 2 "--limit: '0' is not a whole number from 1 to *" "$perplexity" -f text --limit 0

# ---- Prompts and texts: status 1, as all that follows

printf 'ab \xff' >latin1.txt
: >empty.txt
yes 'many words' | head -n 2000 >long.txt
utf8='the text is not valid UTF-8 at byte'
refuses 1 "latin1.txt: $utf8 3 (0xff); convert it to UTF-8" "$run" -m "$parrot" -f latin1.txt
refuses 1 "-p: $utf8 0 (0xff); convert it to UTF-8" "$run" -m "$parrot" -p $'\xff'
refuses 1 "latin1.txt: $utf8 3 (0xff); convert it to UTF-8" "$perplexity" -m "$parrot" -f latin1.txt
refuses 1 'none.txt: cannot open: no such file or directory; *' "$run" -f none.txt
refuses 1 '.: cannot open: is a directory; give a file' "$run" -f .
refuses 1 'the prompt has * tokens, but the context takes 2048; *' "$run" -m "$parrot" -f long.txt
refuses 1 'the prompt has 5 tokens, but the context takes 4; *' "$run" -m "$parrot" -p 'Hello please' -c 4
refuses 1 '*parrot-llama2.flt: a context of 9999 tokens; this model takes 1 to 2048' "$run" -m "$parrot" -p text -c 9999
refuses 1 'token id 512 (number 2) is outside the vocabulary of 0 to 511' "$run" -m "$tiny" --prompt-ids 1,512
refuses 1 '*tiny-llama2.flt: the file has no tokenizer, *' "$run" -m "$tiny" -p text
refuses 1 '*tiny-llama2.flt: the file has no tokenizer, *' "$run" -m "$tiny" --chat
refuses 1 '*tiny-llama2.flt: the file has no tokenizer, *' "$perplexity" -m "$tiny" -f long.txt
refuses 1 'empty.txt: its 0 tokens are fewer than one piece of 511; *' "$perplexity" -m "$parrot" -f empty.txt
refuses 1 'standard input: its 0 tokens are fewer *' "$perplexity" -m "$parrot" -f -
refuses 1 "*: its vocabulary is not that of *; --base takes the same checkpoint at 16 bits" \
    "$perplexity" -m "$parrot" -f long.txt --base "$build/tests/tools/parrot-gemma2.flt"

# ---- Models

# copy NAME OFFSET BYTES: a model with other bytes at OFFSET.
copy() {
    cp "$tiny" "$1"
    printf '%b' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
size=$(stat -c %s "$tiny")
head -c $((size / 2)) "$tiny" >half.flt
head -c 40 "$tiny" >few.flt
{ cat "$tiny" && echo x; } >more.flt
echo 'some text' >text.flt
mkfifo pipe.flt
copy magic.flt 0 'GGUF'
copy version.flt 8 '\x02'
copy swapped.flt 8 '\0\0\0\x01'
copy prefix.flt 44 '\x01'
copy header.flt 200 '#'
copy tensor.flt $((size - 5000)) '#####'
refuses 1 'none.flt: cannot open: no such file or directory; *' "$run" -m none.flt -p text
refuses 1 '.: cannot open: is a directory; give a file' "$run" -m . -p text
refuses 1 'pipe.flt: is a pipe or a device; *' "$run" -m pipe.flt -p text
refuses 1 'text.flt: not a .flt file; *' "$run" -m text.flt -p text
refuses 1 'empty.txt: not a .flt file; *' "$run" -m empty.txt -p text
refuses 1 'magic.flt: not a .flt file; *' "$run" -m magic.flt -p text
refuses 1 "half.flt: truncated: it has $((size / 2)) of $size bytes; *" "$run" -m half.flt -p text
refuses 1 'few.flt: truncated: it has only 40 bytes; *' "$run" -m few.flt -p text
refuses 1 'more.flt: 2 bytes follow where the file should end; *' "$run" -m more.flt -p text
refuses 1 'version.flt: format version 2 is newer than this program*: update flute*' "$run" -m version.flt -p text
refuses 1 'swapped.flt: its numbers have the wrong byte order; *' "$run" -m swapped.flt -p text
refuses 1 'prefix.flt: damaged: the prefix fails its checksum; *' "$run" -m prefix.flt -p text
refuses 1 'header.flt: damaged: the header fails its checksum; *' "$run" -m header.flt -p text
refuses 1 'tensor.flt: damaged: layers.1.* (bytes * to *) fails its checksum; *' "$run" -m tensor.flt -p text
check '--no-verify takes it as it is' "$run" -m tensor.flt --no-verify --prompt-ids 1,2 -n 1
refuses 1 'tensor.flt: damaged: *' "$perplexity" -m "$parrot" -f long.txt --base tensor.flt
if [[ $(id -u) -eq 0 ]]; then # root may read everything: be nobody
    mkdir bin && cp "$run" bin # the build folder may be out of nobody's reach
    chmod 755 . && chmod 000 text.flt
    setpriv --reuid=65534 --clear-groups bin/flute-run -m text.flt -p text 2>err.txt
    check 'a file that may not be read is refused' test $? -eq 1
    check 'and said so' grep -q '^flute-run: text.flt: cannot open: permission denied; ' err.txt
else
    chmod 000 text.flt
    refuses 1 'text.flt: cannot open: permission denied; *' "$run" -m text.flt -p text
fi

# ---- Ranks

ranks=("$run" -m "$parrot" -p text --device cpu)
refuses 2 "--comm: 'tcp' is none of auto, local, mpi, nccl; *" "${ranks[@]}" --comm tcp
refuses 2 "--load: 'disk' is none of map, scatter; *" "${ranks[@]}" --load disk
refuses 1 'NCCL is for GPUs, *' "${ranks[@]}" --tp 2 --comm nccl
refuses 1 '2 ranks on several hosts, or by --comm mpi: start them with mpirun, *' "${ranks[@]}" --tp 2 --comm mpi

# ---- Outputs

logits=("$run" -m "$tiny" --prompt-ids "$(seq -s, 1 40)" --logits-out)
refuses 1 '/dev/full: is not a regular file; choose another output' "${logits[@]}" /dev/full
refuses 1 'none/logits: its folder does not exist; *' "${logits[@]}" none/logits
refuses 1 '.: cannot write: is a directory; give a file' "${logits[@]}" .
refuses 1 '(empty file name): cannot write: *' "${logits[@]}" ''
echo before >logits.f32
(ulimit -f 16 && "${logits[@]}" logits.f32) >out.txt 2>err.txt
check 'a file-size limit is refused as a full disk is' \
    grep -q '^flute-run: logits.f32: cannot write: .* larger than the file-size limit' err.txt
check 'what was there stays' same "$(<logits.f32)" before
check 'and nothing else is left' no_leftovers
for program in "$run" "$perplexity" "$build/flute-quantize"; do
    "$program" --help >/dev/full 2>err.txt
    check "${program##*/} --help on a full disk fails" same "$?:$(<err.txt)" \
        "1:${program##*/}: standard output: No space left on device"
done
"$run" -m "$parrot" -p 'Hello please' -n 4 >/dev/full 2>err.txt
check 'text on a full disk fails' same "$?:$(<err.txt)" '1:flute-run: standard output: No space left on device'
"$run" -m "$parrot" -p 'Hello please' -n 4 --json >&- 2>err.txt
check 'a closed output fails' same "$?:$(<err.txt)" '1:flute-run: standard output: Bad file descriptor'
"$run" -m "$parrot" --chat <&- 2>err.txt
check 'a closed input fails' same "$?:$(<err.txt)" '1:flute-run: standard input: Bad file descriptor'
finish
