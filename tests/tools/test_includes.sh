#!/bin/sh
# The include rule: floors from the top are tools, engine, models, kernels and tokenizer, engine/base. Nothing includes
# upward or reaches into another room's private folders, and our own includes are written from the root.
# Usage: test_includes.sh ROOT
set -eu

# Prints "FILE: INCLUDE: reason" for every include that breaks the rule.
violations() {
    cd "$1"
    find engine kernels models tokenizer tools -type f \
        \( -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \) -exec awk '
    function room(path) {
        if (path ~ /^engine\/base\//) return "base"
        sub(/\/.*/, "", path)
        return path
    }
    function reason(file, target,    from, to) {
        from = room(file)
        to = room(target)
        if (to !~ /^(base|engine|models|kernels|tokenizer|tools)$/) return "not written from the root"
        if (to == from || to == "base") return ""
        if (from == "tools") {
            # These two exist to exercise what lies below the public header.
            if (target == "engine/flute.h" || file ~ /^tools\/(flute_)?(quantize|bench)/) return ""
            return "tools use engine/flute.h"
        }
        if (from == "engine") {
            if (to == "tools") return "includes upward"
            return target ~ /^[a-z]+\/[^\/]+\.h$/ ? "" : "reaches into a private folder"
        }
        if (from == "models" && target ~ /^kernels\/[^\/]+\.h$/) return ""
        return from " must not include " to
    }
    /^[ \t]*#[ \t]*include[ \t]*"/ {
        split($0, part, "\"")
        why = reason(FILENAME, part[2])
        if (why != "") print FILENAME ": " part[2] ": " why
    }' {} +
}

# The checker itself: what it must find, and what it must not.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/engine/base" "$scratch/kernels/cpu" "$scratch/models" "$scratch/tokenizer" "$scratch/tools"
echo '#include "kernels/layout.h"' >"$scratch/engine/base/up.c"
echo '#include "models/arch.h"' >"$scratch/kernels/cpu/up.c"
echo '#include "kernels/layout.h"' >"$scratch/tokenizer/side.c"
echo '#include "kernels/cpu/gemm.h"' >"$scratch/models/private.c"
echo '# include "kernels/cpu/gemm.h"' >"$scratch/engine/private.c"
echo '#include "kernels/layout.h"' >"$scratch/tools/run.c"
echo '#include "layout.h"' >"$scratch/kernels/bare.c"
printf '#include "kernels/layout.h"\n#include "engine/base/fail.h"\n' >"$scratch/models/good.c"
printf '#include "kernels/layout.h"\n#include <yyjson.h>\n' >"$scratch/tools/bench_good.c"
found=$(violations "$scratch" | wc -l)
if [ "$found" -ne 7 ]; then
    echo "the checker finds $found of 7 planted violations:"
    violations "$scratch"
    exit 1
fi

found=$(violations "$1")
if [ -n "$found" ]; then
    echo "$found"
    exit 1
fi
