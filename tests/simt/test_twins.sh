#!/bin/sh
# kernels/cuda/device.cuh and its twin in tests/simt declare the same functions, of the same names, types and parameters.
# Usage: test_twins.sh ROOT
set -eu

# Prints the declarations of device functions outside of namespaces, one a line.
declarations() {
    awk '
    /^namespace/ { inside = 1 }
    inside { if (/^}/) inside = 0; next }
    /^(template.*)?(static )?__device__ / { text = ""; open = 1 }
    open {
        text = text " " $0
        if (/\{/) {
            sub(/\{.*/, "", text)
            gsub(/[ \t]+/, " ", text)
            print text
            open = 0
        }
    }' "$1" | sort
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
declarations "$1/kernels/cuda/device.cuh" >"$scratch/device"
declarations "$1/tests/simt/kernels/cuda/device.cuh" >"$scratch/twin"
if [ "$(wc -l <"$scratch/device")" -lt 20 ]; then
    echo "the checker finds only these functions:"
    cat "$scratch/device"
    exit 1
fi
# The checker itself: a parameter that differs, and a function that is missing.
sed 's/bool inside)/int inside)/' "$1/kernels/cuda/device.cuh" >"$scratch/changed"
sed '/keep_in_register/d' "$1/kernels/cuda/device.cuh" >"$scratch/without"
for planted in changed without; do
    if declarations "$scratch/$planted" | cmp -s - "$scratch/device"; then
        echo "the checker does not see what is $planted"
        exit 1
    fi
done

# What stands on the left alone is missing in the twin.
diff "$scratch/device" "$scratch/twin"
