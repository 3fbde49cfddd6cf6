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
source tests/lib/apt.sh
source tests/lib/jobs.sh

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

# Rounds wait more than they work, so two run at a time; what they say is shown in order.
readonly AT_ONCE=2
said=$(mktemp -d)
end() {
    end_jobs
    rm -rf "$said"
}
trap end EXIT
names=()
pids=()

# start NAME ARGUMENTS…: begins a round as soon as there is room for it.
start() {
    while (($(jobs -rp | wc -l) >= AT_ONCE)); do
        wait -n || true
    done
    "$binaries/loadgen" chaos --relay "$binaries/standpipe" --seed "$seed" "${@:2}" >"$said/${#names[@]}" 2>&1 &
    names+=("$1")
    pids+=("$!")
}

# chaos NAME ARGUMENTS…: what must pass.
chaos() { start "$1" --kills "$kills" "${more[@]}" "${@:2}"; }

# found_out NAME ARGUMENTS…: what must not.
found_out() { start "$1, which must be found out" --kills 6 --settle 5s "${@:2}"; }

# Whether this relay has a flag, or says a word in its help.
has() { "$binaries/standpipe" --help | grep -q -e "$1"; }

clock=$(compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' || true)
if [[ -z $clock ]] && install_packages libfaketime; then
    clock=$(compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' || true)
fi

# With both, its spool is written by io_uring and by plain calls.
readonly DRIVERS=(uring epoll)
readonly POINTS=seal,call.before,call.after,settle,answer
readonly DISK_POINTS=append.before,append.after,fsync.before,fsync.after,remove.before,remove.after
chaos "without a spool" --mode off --points "$POINTS"
chaos "in a hostile crowd" --mode off --slow-loris 1000 --flood 200 --kills 3
if [[ -n $clock ]]; then
    # Without a crowd, which has a round of its own: relays live too shortly here for all of it to come.
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
        chaos "kinesis-adapter: an instance is terminated with records waiting, spool: $mode" --mode $mode \
            --claim instance-terminated
    done
    chaos "one relay behind another, each with a spool" --mode overflow --chain 2 "${faultfs[@]}" \
        --points "$POINTS,$DISK_POINTS"
    chaos "FirehoseSender: no data is lost for problems of the connection" --mode overflow --kills 5 \
        --sync-at delivered --claim connection-problems
    if [[ $(id -u) == 0 ]]; then
        chaos "a spool on a disk that is soon full" --mode always --kills 3 --sync-at stored --small-disk 16MiB
    fi
    if [[ ${#faultfs[@]} != 0 ]]; then
        chaos "a spool on a disk that fails and works again" --mode always --kills 7 --sync-at stored \
            "${faultfs[@]}" --disk-troubles --clients 1 --size 57-300
        for driver in "${DRIVERS[@]}"; do
            MUTATION=skip-fsync found_out "a spool that skips its fsync, $driver" --mode always --away \
                --sync-at stored "${faultfs[@]}" -- --io "$driver"
        done
    fi
fi
chaos "every point in every phase: off" --mode off --points "$POINTS" --sweep
for mode in overflow always; do
    chaos "every point in every phase: $mode" --mode "$mode" --sync-at delivered "${faultfs[@]}" \
        --points "$POINTS,$DISK_POINTS" --sweep
done
if [[ ${#faultfs[@]} != 0 ]]; then
    chaos "into a folder on a disk that forgets" --mode off --destination directory "${faultfs[@]}"
    chaos "into a folder on a slow disk that forgets" --mode off --destination directory "${faultfs[@]}" \
        --kills 3 --faultfs-line 'delay fsync 50ms'
    found_out "a disk that says it has synced and has not" --mode off --destination directory "${faultfs[@]}" \
        --faultfs-line lie
fi
found_out "a relay that delivers nowhere" --mode off --destination null

failed=()
for number in "${!names[@]}"; do
    name=${names[number]}
    status=0
    wait "${pids[number]}" || status=$?
    printf '\n-- %s\n' "$name"
    case $name,$status in
        *' must be found out,1') ;;
        *' must be found out,'*) failed+=("$name, and was not: it ended with $status") ;;
        *,0) cat "$said/$number" ;;
        *) cat "$said/$number" && failed+=("$name") ;;
    esac
done

printf '\n'
if [[ ${#failed[@]} != 0 ]]; then
    printf 'FAIL  %s\n' "${failed[@]}"
    exit 1
fi
echo "every event is accounted for (seed $seed)"
