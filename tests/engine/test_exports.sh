#!/bin/sh
# The shared library exports what flute.h and error.h declare with FLUTE_API, and nothing else.
#   test_exports.sh LIBFLUTE.so SOURCE_ROOT
set -eu
exported=$(nm -D --defined-only "$1" | awk '{print $3}' | sort)
declared=$(cat "$2/engine/flute.h" "$2/engine/base/error.h" | tr '\n' ' ' | grep -o 'FLUTE_API [^(;]*(' |
    grep -o 'flute_[a-z0-9_]*($' | tr -d '(' | sort)
for name in $exported; do
    echo "$declared" | grep -qx "$name" || { echo "$name is exported but not declared" && failed=1; }
done
for name in $declared; do
    echo "$exported" | grep -qx "$name" || { echo "$name is declared but not exported" && failed=1; }
done
[ -z "${failed:-}" ] && echo "$(echo "$exported" | wc -l) functions"
