#!/bin/sh
# The program of the README: it continues a prompt, the same way twice, and says what is wrong when it cannot.
# Usage: test_example.sh EXAMPLE MODEL.flt
set -eu
text=$("$1" "$2" "The function returns")
[ "$(printf '%s' "$text" | wc -w)" -ge 10 ] || { echo "too little text: $text" && exit 1; }
[ "$text" = "$("$1" "$2" "The function returns")" ] || { echo "two runs differ" && exit 1; }
if message=$("$1" missing.flt x 2>&1); then
    echo "example opens a model that does not exist"
    exit 1
fi
case $message in
"example: missing.flt: "*) ;;
*) echo "not what is wrong: $message" && exit 1 ;;
esac
