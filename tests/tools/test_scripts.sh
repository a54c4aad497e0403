#!/bin/sh
# The scripts parse their arguments, and shellcheck, where it is installed, has nothing to say about them.
# Usage: test_scripts.sh ROOT
set -eu
cd "$1"
for script in tools/quickstart tools/check; do
    "$script" --help | grep -q "^Usage: $script"
    status=0
    message=$("$script" --no-such-option 2>&1) || status=$?
    if [ "$status" -ne 2 ] || [ "$message" != "${script#tools/}: --no-such-option: there is no such option; see $script --help" ]; then
        echo "$script --no-such-option ends with $status and says: $message"
        exit 1
    fi
done
if tools/check --fuzz-seconds soon >/dev/null 2>&1; then
    echo "tools/check --fuzz-seconds takes a word"
    exit 1
fi
if command -v shellcheck >/dev/null; then
    shellcheck -x tools/quickstart tools/check tools/gpu-check tools/lib/setup.sh .ci/run tests/tools/*.sh
fi
