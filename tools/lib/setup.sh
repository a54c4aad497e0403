# shellcheck shell=bash
# What tools/quickstart and tools/check share: messages, packages, configuring and building. Sourced by bash under
# `set -euo pipefail`. Nothing here hides an error: long output goes to build-log/, its tail is shown on failure.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
log_dir=$root/build-log # beside the build folders, because `meson setup --wipe` empties those

build_packages=(build-essential meson ninja-build pkg-config libsentencepiece-dev libpcre2-dev libxxhash-dev libcmocka-dev)
# Line editing in --chat; tests/simt; xmllint; CPU ranks on several hosts, and tests of mpirun.
optional_packages=(libedit-dev libboost-context-dev libxml2-utils libopenmpi-dev openmpi-bin procps)

say() { printf '== %s\n' "$*"; }

# die WHAT_FAILED REMEDY
die() {
    printf '%s: %s\n%s: %s\n' "${0##*/}" "$1" "${0##*/}" "$2" >&2
    exit 1
}

# logged NAME COMMAND... keeps the output in build-log/NAME.log and shows its end when the command fails.
logged() {
    local log=$log_dir/$1.log
    shift
    mkdir -p "$log_dir"
    if "$@" >"$log" 2>&1 </dev/null; then return 0; fi
    printf -- '---- the last lines of %s ----\n' "$log" >&2
    tail -n 30 "$log" >&2
    printf -- '----\n' >&2
    return 1
}

is_installed() {
    [[ $(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null || true) == ii* ]]
}

# Prints those of its arguments that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        is_installed "$package" || printf '%s\n' "$package"
    done
}

# as_root COMMAND...
as_root() {
    if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

# Fresh machines have no package lists, and old lists name versions that are gone: refresh once a run.
lists_are_fresh=false
apt_install() {
    if ! $lists_are_fresh; then
        logged apt-update as_root apt-get update || return 1
        lists_are_fresh=true
    fi
    logged apt-install as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# ensure_packages PACKAGE... installs what is missing, and only that.
ensure_packages() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "not a Debian system: expecting the equivalents of $* to be there"
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -gt 0 ]] || return 0
    local by_hand="apt-get install ${missing[*]}"
    if [[ $(id -u) -ne 0 ]]; then
        command -v sudo >/dev/null || die "packages are missing: ${missing[*]}" "as root, run: $by_hand"
        # The password is asked for here, where it is seen, and not behind a log file.
        sudo -v || die "packages are missing: ${missing[*]}" "sudo did not work; as root, run: $by_hand"
    fi
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" || die "apt-get failed" "see the messages above; then, as root, try: $by_hand"
}

# Packages that flute can do without.
ensure_optional_packages() {
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || return 0
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -gt 0 ]] || return 0
    say "installing ${missing[*]} (optional)"
    apt_install "${missing[@]}" || say "going on without ${missing[*]}"
}

ensure_build_packages() {
    ensure_packages "${build_packages[@]}"
    ensure_optional_packages "${optional_packages[@]}"
    local program
    for program in meson ninja cc c++ pkg-config; do
        command -v "$program" >/dev/null ||
            die "$program is not on the PATH" "install the equivalents of: ${build_packages[*]}"
    done
}

# The GPU architecture to compile for: that of the GPU here, or Hopper's where there is none; all only for one that needs PTX.
# (All of them take minutes; releases have them, see meson_options.txt.)
gpu_arch() {
    local capability
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr -d . | tr '\n' ' ') || true
    case $capability in
    '' | '90 ') echo 90a ;;
    '80 ' | '86 ' | '89 ') echo "${capability% }" ;;
    *) echo all ;;
    esac
}

# configure FOLDER [MESON_OPTION...]: sets it up, refreshes one that is there, starts over with one that is broken.
configure() {
    local dir=$1 name
    shift
    name=${dir##*/}
    if [[ -f $dir/build.ninja && -f $dir/meson-private/coredata.dat ]]; then
        say "refreshing $name/"
        logged "$name-configure" meson setup --reconfigure "$dir" "$root" "$@" 2>/dev/null && return 0
        say "$name/ is broken: configuring it anew"
        rm -rf "$dir"
    else
        say "configuring $name/"
    fi
    logged "$name-configure" meson setup "$dir" "$root" "-Dgpu_arch=$(gpu_arch)" "$@" ||
        die "Meson could not configure $name/" "see the messages above; the whole log is $log_dir/$name-configure.log"
}

# build FOLDER [TARGET...]
build() {
    local dir=$1 name
    shift
    name=${dir##*/}
    say "building $name/ ($(nproc) at a time)"
    logged "$name-build" ninja -C "$dir" -j "$(nproc)" "$@" ||
        die "$name/ did not build" "the whole log is $log_dir/$name-build.log; removing $name/ starts over"
}
