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

# Whether this relay has a flag, or says a word in its help.
has() { "$binaries/standpipe" --help | grep -q -e "$1"; }

clock=$(compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' || true)
if [[ -z $clock && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    (apt-get update && apt-get install --yes --no-install-recommends libfaketime) >/dev/null 2>&1 || true
    clock=$(compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' || true)
fi

readonly POINTS=seal,call.before,call.after,settle,answer
readonly DISK_POINTS=append.before,append.after,fsync.before,fsync.after,remove.before,remove.after
chaos "without a spool" --mode off --points "$POINTS"
chaos "in a hostile crowd" --mode off --slow-loris 1000 --flood 200 --kills 3
if [[ -n $clock ]]; then
    chaos "with a clock that jumps" --mode off --faketime "$clock" --kills 5
else
    echo "*** NO CLOCK JUMPS HERE: libfaketime is missing ***" >&2
fi
if has 'relay:'; then
    chaos "one relay behind another" --mode off --chain 2 --points "$POINTS"
fi
if has --spool-mode; then
    for mode in overflow always; do
        chaos "spool: $mode" --mode $mode "${faultfs[@]}" --points "$POINTS,$DISK_POINTS"
        chaos "spool: $mode, deleted at each kill" --mode $mode --delete-spool
    done
    if [[ ${#faultfs[@]} != 0 ]]; then
        found_out "a spool on a disk that says it has synced and has not" --mode always --sync-at stored \
            "${faultfs[@]}" --faultfs-line lie
    fi
fi
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
