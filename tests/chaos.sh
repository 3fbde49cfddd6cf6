#!/usr/bin/env bash
# Relays are killed again and again while clients send with !sync and the endpoint misbehaves; then every event is
# accounted for. Where a FUSE file system can be mounted (root, /dev/fuse), the disk forgets at each kill what was
# not synced. The seed is printed, and given back with --seed it repeats what is drawn.
#
#   tests/chaos.sh                  10 kills in each round
#   tests/chaos.sh --kills 200      more
#   tests/chaos.sh --seed 7
#
# Other flags go to `loadgen chaos` as they are. Exit codes: 0 all accounted for, 1 not, 77 could not run here.
set -euo pipefail
cd "$(dirname "$0")/.."

kills=10
seed=$((RANDOM * 32768 + RANDOM))
more=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --kills) kills=$2 && shift 2 ;;
        --seed) seed=$2 && shift 2 ;;
        *) more+=("$1") && shift ;;
    esac
done

binaries=${CARGO_TARGET_DIR:-target}/debug
for name in standpipe loadgen faultfs; do
    if [[ ! -x $binaries/$name ]]; then
        echo "there is no $name in $binaries; build with: cargo build --workspace" >&2
        exit 2
    fi
done
faultfs=(--faultfs "$binaries/faultfs")
if [[ $(id -u) != 0 || ! -w /dev/fuse ]]; then
    echo "*** NO DISK WILL FORGET ANYTHING HERE: mounting needs root and /dev/fuse ***" >&2
    faultfs=()
fi

failed=()
# chaos NAME ARGUMENTS…
chaos() {
    local name=$1
    shift
    printf '\n-- %s\n' "$name"
    "$binaries/loadgen" chaos --relay "$binaries/standpipe" --kills "$kills" --seed "$seed" "${more[@]}" "$@" ||
        failed+=("$name")
}

# found_out NAME ARGUMENTS…: what must not pass.
found_out() {
    local name=$1
    shift
    printf '\n-- %s, which must be found out\n' "$name"
    if "$binaries/loadgen" chaos --relay "$binaries/standpipe" --kills 3 --seed "$seed" --settle 5s "$@" \
        >/dev/null 2>&1; then
        failed+=("$name was not found out")
    fi
}

readonly POINTS=seal,call.before,call.after,settle,answer
chaos "without a spool" --mode off --points "$POINTS"
chaos "without a spool, among 1,000 connections of a byte a second" --mode off --slow-loris 1000 --kills 3
if [[ ${#faultfs[@]} != 0 ]]; then
    chaos "into a folder on a disk that forgets" --mode off --destination directory "${faultfs[@]}"
    chaos "into a folder on a slow disk that forgets" --mode off --destination directory "${faultfs[@]}" \
        --kills 3 --faultfs-line 'delay fsync 50ms'
    found_out "a disk that says it has synced and has not" --mode off --destination directory "${faultfs[@]}" \
        --faultfs-line lie
fi
found_out "a relay that delivers nowhere" --mode off --destination null

printf '\n'
if [[ ${#failed[@]} != 0 ]]; then
    printf 'FAIL  %s\n' "${failed[@]}"
    exit 1
fi
echo "every event is accounted for (seed $seed)"
