#!/bin/bash
# What `meson install` puts in place works there: the programs with the default model, and the library for a C program that
# knows it by pkg-config.
# Usage: test_install.sh BUILD ROOT SANITIZERS CC...
set -u
# shellcheck source=tests/tools/tap.sh
source "$2/tests/tools/tap.sh" "$1" "$2"
sanitizers=$3
shift 3
compiler=("$@")
[[ $sanitizers == none ]] || compiler+=("-fsanitize=$sanitizers") # what a sanitized library needs

check 'meson install' meson install -C "$build" --no-rebuild --destdir "$scratch/stage"
prefix=$(dirname "$(find "$scratch/stage" -name bin -type d)")
bin=$prefix/bin
for program in flute-run flute-quantize flute-perplexity flute-bench; do
    check "$program is installed" test "$("$bin/$program" --version)" = "$("$build/$program" --version)"
done
model=$prefix/share/flute/docs-llama2-q4.flt
check 'the default model is' cmp "$model" "$root/models/docs-llama2-q4.flt"
mv "$prefix" elsewhere # nothing may lead back to the build
bin=$scratch/elsewhere/bin
model=$scratch/elsewhere/share/flute/docs-llama2-q4.flt
"$bin/flute-run" --verbose -p 'A regular expression is' -n 4 --greedy >out.txt 2>err.txt
check 'flute-run finds it' test $? -eq 0 -a -s out.txt
check 'by its place' grep -q '^model    docs-llama2 ' err.txt

library=$(dirname "$(find elsewhere -name libflute.so.0)")
check 'the library has its soname' test -L "$library/libflute.so.0" -a -L "$library/libflute.so"
version=$("$bin/flute-run" --version)
pc=$library/pkgconfig/flute.pc
check 'pkg-config tells its version' same "$(sed -n 's/^Version: //p' "$pc")" "${version#flute-run }"

flags=$(PKG_CONFIG_PATH=$library/pkgconfig pkg-config --define-variable=prefix="$scratch/elsewhere" --cflags --libs flute)
# shellcheck disable=SC2086 # flags are words
check 'the example compiles' "${compiler[@]}" -o example "$root/tests/engine/example.c" $flags
LD_LIBRARY_PATH=$library ./example "$model" 'A regular expression is' >example.txt 2>err.txt
check 'and runs' test $? -eq 0 -a -s example.txt
check 'with the words of flute-run' same "$(head -c 60 example.txt)" \
    "$("$bin/flute-run" -p 'A regular expression is' -n 32 --greedy 2>/dev/null | head -c 60)"
finish
