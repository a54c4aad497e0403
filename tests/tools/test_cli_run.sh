#!/bin/bash
# flute-run as its users meet it: what --help promises, on the default model, on one whose words are known (parrot.c) and on
# a tiny one without tokenizer.
# Usage: test_cli_run.sh BUILD ROOT
set -u
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
run=$build/flute-run
parrot=$build/tests/tools/parrot-llama2.flt
tiny=$build/tests/engine/tiny-llama2.flt

# ---- Drawing tokens, with the default model

draw() { "$run" -t 1 -n 8 --seed 5 "$@" 2>err.txt; }

text=$(draw -p 'A regular expression is' --greedy)
check 'the default model is found, and text comes' test -n "$text"
check 'the last line on standard error tells the speed' \
    grep -Eq '^prompt 5 tokens, [0-9.]+ tokens/s; decode 7 tokens, [0-9.]+ tokens/s, [0-9.]+ GB/s, [0-9]+ % of' err.txt
check '--greedy is deterministic, whatever the seed' same "$text" "$(draw -p 'A regular expression is' --greedy --seed 6 -t 2)"
check '--temp 0 is greedy' same "$text" "$(draw -p 'A regular expression is' --temp 0)"
check '--top-k 1 is greedy' same "$text" "$(draw -p 'A regular expression is' --top-k 1)"
other=$(draw -p 'A regular expression is' --greedy --presence-penalty 100 --frequency-penalty 1 --repeat-penalty 1.5)
check 'penalties change the text' test "$other" != "$text"
drawn=$(draw -p 'A regular expression is' --temp 2 --top-k 0 --top-p 1 --min-p 0)
check 'a seed draws the same text again' same "$drawn" "$(draw -p 'A regular expression is' --temp 2 --top-k 0 --top-p 1 --min-p 0)"
other=$(draw -p 'A regular expression is' --temp 2 --top-k 0 --top-p 1 --min-p 0 --seed 6)
check 'another seed draws another text' test "$drawn" != "$other"

# ---- Prompts

say() { "$run" -m "$parrot" -t 1 -n 12 "$@" 2>err.txt; }

check 'the model says what it was made to say' same "$(say -p 'Hello please')" ' Good day to you'
printf 'Hello please\n' >prompt.txt
check '-f reads the prompt, less its newline' same "$(say -f prompt.txt)" ' Good day to you'
check '-p - reads standard input' same "$(say -p - <prompt.txt)" ' Good day to you'
check '-f - does, too' same "$(say -f - <prompt.txt)" ' Good day to you'
printf 'Hello please\r\n' >prompt.txt
check 'the newline may be \r\n' same "$(say -f prompt.txt)" ' Good day to you'
check 'an empty prompt is a prompt' say -p ''
check '-n 0 reads the prompt only' test -z "$(say -p 'Hello please' -n 0)"
check 'and tells nothing of decoding' grep -Eq '^prompt 5 tokens, [0-9.]+ tokens/s$' err.txt

# ---- JSON, and where a text ends

say -p 'Hello please' --json >json.txt
for key in text tokens prompt_tokens prefill_tokens_per_second decode_tokens_per_second finish seed model; do
    check "--json has $key" has_key json.txt "$key"
done
check '--json prints one line' test "$(wc -l <json.txt)" -eq 1
check 'text is the text' same "$(value json.txt text)" '" Good day to you"'
check 'prompt_tokens counts BOS' same "$(value json.txt prompt_tokens)" 5
check 'the EOS token ends the text' same "$(value json.txt finish)" '"eos"'
ids=$(value json.txt tokens)
say -p 'Hello please' --json --ignore-eos >json.txt
check '--ignore-eos goes on' same "$(value json.txt finish)" '"length"'
check 'with EOS among the ids' same "$(value json.txt tokens)" "${ids%]},2,2,2,2,2,2]"
say -p 'Hello please' --json --stop 'to y' --stop 'no such text' >json.txt
check '--stop ends the text before its own' same "$(value json.txt text)" '" Good day "'
check 'and is what ended it' same "$(value json.txt finish)" '"stop"'
say -p 'Hello please' --json -c 7 >json.txt
check 'a full context ends the text' same "$(value json.txt finish)" '"context"'
say -p 'Hello please' -c 7 >/dev/null
check 'and is said' grep -q '^\[the context of 7 tokens is full\]$' err.txt

# ---- Conversations from a pipe; test_chat_terminal.c has them on a terminal

# talk MODEL ANSWER: two messages, both answered in full.
talk() {
    local model=$build/tests/tools/parrot-$1.flt
    printf 'Hello please\nand again please\n' | "$run" -m "$model" -t 1 --chat >out.txt 2>err.txt
    check "$1 answers every message" same "$(<out.txt)" "$2"$'\n'"$2"
    check 'and tells its speed once' same "$(grep -c tokens/s err.txt)" 1
    "$run" -m "$model" -t 1 --chat -p 'Hello please' --json >json.txt 2>err.txt
    check 'one message can be answered as JSON' same "$(value json.txt text)" "\"${2//$'\e'/\\u001B}\""
    check 'which the end of the turn ends' same "$(value json.txt finish)" '"eos"'
    "$run" -m "$model" -t 1 --chat -p 'Hello please' --system 'Be brief.' --json >system.txt 2>err.txt
    check '--system is part of the prompt' test "$(value system.txt prompt_tokens)" -gt "$(value json.txt prompt_tokens)"
}
talk llama2 ' Good day to you'
talk llama3 $'Good \e[31mday to you'
talk gemma2 'Good day to you'

# ---- Ids and logits, with the tiny model

golden() { sed -n "s/.*\"$1\": *\[\([^]]*\)\].*/\1/p" "$data/tiny/llama2/golden.json" | tr -d ' '; }
ids=$(golden ids)
expected=$(golden greedy_ids)
exact=(-t 1 -m "$tiny" --greedy --ignore-eos --kernels ref)
"$run" "${exact[@]}" --prompt-ids "$ids" -n 24 --json >ids.txt 2>/dev/null
check 'the greedy ids are the golden ones' same "$(value ids.txt tokens)" "[$expected]"
"$run" "${exact[@]}" --prompt-ids "$ids" -n 24 >ids.txt 2>/dev/null
check 'without a tokenizer the ids are the text' same "$(<ids.txt)" "${expected//,/ }"
"$run" "${exact[@]}" --prompt-ids "$ids" --logits-out logits.f32 >out.txt 2>/dev/null
check '--logits-out writes a row a position' same "$(stat -c %s logits.f32)" $((48 * 512 * 4))
check '--logits-out generates nothing without -n' test ! -s out.txt
for row in 0 1 20 47; do dd if=logits.f32 bs=2048 skip=$row count=1 status=none; done >rows.f32
largest=$(paste <(od -An -v -w4 -t f4 rows.f32) <(od -An -v -w4 -t f4 "$data/tiny/llama2/logits.f32") | awk '
    { d = $1 - $2; if (d < 0) d = -d; if (d > max) max = d; n++ }
    END { print n == 2048 && max < 1.022e-3 ? "close" : max " in " n }') # the standard deviation is 1.022
check 'the logits are the golden ones' same "$largest" close
"$run" "${exact[@]}" --prompt-ids 1,2,3 --logits-out logits.f32 -n 2 >out.txt 2>/dev/null
check '--logits-out with -n generates, too' same "$(wc -w <out.txt)" 2
check 'and replaces the file' same "$(stat -c %s logits.f32)" $((3 * 512 * 4))

# ---- Ranks

exact=(-m model.flt --prompt-ids "$ids" -n 24 --greedy --ignore-eos --kernels ref -t 1 --device cpu)
mkdir elsewhere
cp "$tiny" model.flt
"$run" "${exact[@]}" --tp 3 >out.txt 2>/dev/null
check 'three ranks say the same' same "$(<out.txt)" "${expected//,/ }"
export MASTER_PORT=$((30000 + RANDOM % 10000)) WORLD_SIZE=2
(cd elsewhere && RANK=1 exec "$run" "${exact[@]}" --load scatter >out.txt 2>err.txt) &
RANK=0 "$run" "${exact[@]}" --load scatter >out.txt 2>/dev/null
wait $!
check 'a rank without the file ends well with --load scatter' same "$?" 0
check 'and helps to say the same' same "$(<out.txt)" "${expected//,/ }"
check 'without a word of its own' test ! -s elsewhere/out.txt -a ! -s elsewhere/err.txt
unset MASTER_PORT WORLD_SIZE

# ---- The world around it

say -p 'Hello please' --verbose >/dev/null
for word in model device context seed; do check "--verbose tells the $word" grep -q "^$word " err.txt; done
"$run" -m "$parrot" -p Hello -n 2000 --ignore-eos 2>err.txt | head -c 1 >/dev/null
status=${PIPESTATUS[0]}
check 'a closed pipe ends it' same "$status" 141
check 'quietly' test ! -s err.txt
check '--version names the program' same "$("$run" --version)" "flute-run $(sed -n "s/^  version: '\(.*\)',/\1/p" "$root/meson.build")"
check '--help is for people' grep -q '^Usage: flute-run' <("$run" --help)
# The progress bar of loading: on a terminal and nowhere else.
script -qec "$build/flute-run -p The -n 1" terminal.out >/dev/null </dev/null
check 'a terminal sees how loading gets on' grep -q '\[=*\] 100%  loading' terminal.out
"$build/flute-run" -v -p The -n 1 >/dev/null 2>errors.txt
check 'a file does not' test "$(grep -c '%  loading' errors.txt)" -eq 0
check '--verbose tells the speed of loading' grep -Eq '^loaded   [0-9.]+ GB in [0-9.]+ s, [0-9.]+ GB/s$' errors.txt
finish
