# shellcheck shell=bash
# What the tests of the programs share: TAP output and a scratch folder. Sourced by bash under `set -u`, with the build
# folder and the root of the sources as arguments. Nothing here needs more than bash, coreutils, awk, sed and grep.

# shellcheck disable=SC2034 # for those who source this
build=$1 root=$2
# shellcheck disable=SC2034
data=$root/tests/data
export LC_ALL=C
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1

n_tests=0 n_failed=0

# result STATUS NAME
result() {
    n_tests=$((n_tests + 1))
    if [[ $1 -eq 0 ]]; then
        printf 'ok %d - %s\n' "$n_tests" "$2"
    else
        n_failed=$((n_failed + 1))
        printf 'not ok %d - %s\n' "$n_tests" "$2"
    fi
}

note() { sed 's/^/# /'; }

# check NAME COMMAND...
check() {
    local name=$1 status=0
    shift
    "$@" >check.out 2>&1 </dev/null || status=$?
    if [[ $status -ne 0 ]]; then
        printf '# status %d: %s\n' "$status" "$*"
        note <check.out
    fi
    result "$status" "$name"
}

# refuses STATUS PATTERN PROGRAM ARGUMENT...: it ends with STATUS, has nothing to say on standard output, and one line on
# standard error, which begins with the program's name and matches the glob PATTERN.
refuses() {
    local expected=$1 pattern=$2 status=0 bad=0 message
    shift 2
    "$@" >refusal.out 2>refusal.err </dev/null || status=$?
    message=$(<refusal.err)
    [[ $status -eq $expected ]] || bad=1
    [[ ! -s refusal.out && $(wc -l <refusal.err) -eq 1 ]] || bad=1
    # shellcheck disable=SC2053 # a pattern
    [[ $message == "${1##*/}: "$pattern ]] || bad=1
    if [[ $bad -ne 0 ]]; then
        printf '# status %d, not %d, or the message is not %s\n' "$status" "$expected" "$pattern"
        note <refusal.err
    fi
    result "$bad" "${1##*/} ${*:2}"
}

# has_key FILE KEY: the last line of FILE is a JSON object with KEY. Texts in it hold no quotes that matter here.
has_key() {
    tail -n 1 "$1" | grep -q "^{.*\"$2\":.*}\$"
}

# value FILE KEY: what stands behind KEY, with its quotes or brackets.
value() {
    tail -n 1 "$1" | sed -n "s/.*\"$2\":\(\[[^]]*\]\|\"[^\"]*\"\|[^,}]*\).*/\1/p"
}

# no_leftovers [FOLDER]: no temporary file is there.
no_leftovers() {
    local found
    found=$(find "${1:-.}" -name '.*.??????' -type f)
    [[ -z $found ]] || { printf '%s\n' "$found" && return 1; }
}

same() { [[ $1 == "$2" ]] || { printf 'not the same:\n%s\n%s\n' "$1" "$2" && return 1; }; }

finish() {
    printf '1..%d\n' "$n_tests"
    [[ $n_failed -eq 0 ]]
    exit
}
