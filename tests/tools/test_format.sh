#!/bin/sh
# Every source is as clang-format leaves it. Versions differ in details: only 14 (Debian 12) counts, others skip (77).
# Usage: test_format.sh ROOT
set -eu
cd "$1"
for name in clang-format-14 clang-format; do
    case $("$name" --version 2>/dev/null || true) in
    *version\ 14.*)
        find engine kernels models tokenizer tools tests -type f \
            \( -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) \
            -exec "$name" --dry-run -Werror {} +
        exit
        ;;
    esac
done
echo "clang-format 14 is not installed"
exit 77
