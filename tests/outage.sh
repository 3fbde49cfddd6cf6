#!/usr/bin/env bash
# The endpoint goes away for 30 s under 50,000 events a second, with 64 MiB of memory and a spool; a spool is started
# with; everything is written to disk first. Nothing may be lost. How long it all took is printed, and judged only with
# --judge-times: on a machine that does something else, times mean nothing.
#
#   tests/outage.sh                          30 s, and a spool of 100 MB
#   tests/outage.sh --long                   10 minutes, and 5 GiB
#   tests/outage.sh --release --judge-times  figures that count
#
# Exit codes: 0 nothing lost, 1 something was, or a time was missed that was to be judged.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=debug
outage=30s
bytes=100M
seconds=3s
judged=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --long) outage=10m bytes=5GiB seconds=12s ;;
        --release) profile=release ;;
        --judge-times) judged=(--judge-times) ;;
        *) echo "$1 is none of --long, --release, --judge-times" >&2 && exit 2 ;;
    esac
    shift
done

binaries=${CARGO_TARGET_DIR:-target}/$profile
for name in standpipe loadgen; do
    if [[ ! -x $binaries/$name ]]; then
        echo "there is no $name in $binaries; build with: cargo build --workspace" >&2
        exit 2
    fi
done

failed=()
# measure NAME COMMAND ARGUMENTS…
measure() {
    local name=$1
    shift
    printf '\n-- %s\n' "$name"
    "$binaries/loadgen" "$@" "${judged[@]}" || failed+=("$name")
}

measure "an outage of $outage" outage --outage "$outage"
measure "a start with $bytes in the spool" backlog --bytes "$bytes"
measure "everything to disk first" durability --duration "$seconds" --disk-for 1s

if [[ ${#failed[@]} != 0 ]]; then
    printf 'FAIL  %s\n' "${failed[@]}"
    exit 1
fi
echo "nothing was lost"
