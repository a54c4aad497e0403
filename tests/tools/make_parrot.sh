#!/bin/bash
# Builds the model of parrot.c with the tokenizer and the chat template of one of the checkpoints in tests/data.
# Usage: make_parrot.sh PARROT FLUTE_QUANTIZE DATA_FOLDER OUT.flt
set -eu
parrot=$1 quantize=$2 from=$3 out=$4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Where an answer begins, and what ends it. The escape sequence must never reach a terminal.
case $from in
*/docs-llama2) start=please answer='Good day to you' end='</s>' ;;
*/docs-llama3) start=$'\n\n' answer=$'Good \e[31mday to you' end='<|eot_id|>' ;;
*/docs-gemma2) start=$'\n' answer='Good day to you' end='<end_of_turn>' ;;
esac

for file in tokenizer.model tokenizer.json; do
    if [[ -f $from/$file ]]; then cp "$from/$file" "$folder"; fi
done
sed -E 's/("(hidden_size|intermediate_size)": )[0-9]+/\164/' "$from/config.json" >"$folder/config.json"
"$parrot" "$folder" "$start" "$answer" "$end"
"$quantize" --quiet --bits 16 -o "$out" "$folder"
