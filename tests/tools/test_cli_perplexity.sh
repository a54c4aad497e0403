#!/bin/bash
# flute-perplexity: its figures on the default model, and its JSON.
# Usage: test_cli_perplexity.sh BUILD ROOT
set -u
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
perplexity=$build/flute-perplexity quantize=$build/flute-quantize
parrot=$build/tests/tools/parrot-llama2.flt

score() { "$perplexity" -t 2 -f "$data/eval.txt" -c 64 --limit 2 --json "$@" 2>/dev/null; }
# shellcheck disable=SC2317 # called by check
between() { awk -v a="$1" -v x="$2" -v b="$3" 'BEGIN { exit !(a <= x && x <= b) }'; }

score >alone.txt
for key in perplexity stderr tokens kl top1; do check "--json has $key" has_key alone.txt "$key"; done
check '--json prints one line' test "$(wc -l <alone.txt)" -eq 1
check 'two pieces of 63 tokens are scored' same "$(value alone.txt tokens)" 126
check 'the perplexity is that of a trained model' between 2 "$(value alone.txt perplexity)" 60
check 'and has a standard error' between 0.01 "$(value alone.txt stderr)" 30
check 'without --base there is no KL divergence' same "$(value alone.txt kl) $(value alone.txt top1)" 'null null'
check '-f - reads standard input' same "$(value alone.txt perplexity)" \
    "$(value <(score -f - <"$data/eval.txt") perplexity)"
check '-t 1 gives the same figures' same "$(value alone.txt perplexity)" "$(value <(score -t 1) perplexity)"
reference=$(value <(score --kernels ref) perplexity)
check '--kernels ref agrees to 0.2 %' awk -v a="$(value alone.txt perplexity)" -v b="$reference" \
    'BEGIN { exit !(b > 0 && a / b > 0.998 && a / b < 1.002) }'

# The model that says one thing, beside itself and beside itself at 2 bits.
folder=$scratch/folder
mkdir "$folder"
cp "$data/docs-llama2/tokenizer.model" "$folder"
sed -E 's/("(hidden_size|intermediate_size)": )[0-9]+/\164/' "$data/docs-llama2/config.json" >"$folder/config.json"
"$build/tests/tools/parrot" "$folder" please 'Good day to you' '</s>'
"$quantize" --quiet --bits 2 --group 32 --embed-bits 4 -o coarse.flt "$folder"
score -m "$parrot" --base "$parrot" >same.txt
check 'a model does not diverge from itself' same "$(value same.txt kl) $(value same.txt top1)" '0.0 1.0'
score -m coarse.flt --base "$parrot" >coarse.txt
check 'a coarse one does' between 0.0001 "$(value coarse.txt kl)" 1000
check 'and agrees on a share of the tokens' between 0 "$(value coarse.txt top1)" 1

"$perplexity" -m "$parrot" -f "$data/eval.txt" -c 64 --limit 3 --base "$parrot" >people.txt 2>/dev/null
check 'people read the perplexity' grep -Eq '^perplexity [0-9.e+]+ ± [0-9.e+]+ over 189 tokens in pieces of 63, ' people.txt
check 'and the divergence' grep -Eq '^KL divergence from the base 0.0+ ± .* same likeliest token 100.00 %$' people.txt
finish
