#!/usr/bin/env bash
# The relay against faults, at full size: a million events against an endpoint that fails, an outage of 20 seconds
# at 64 MiB, low-rate streams over two shards, and an idle relay. Takes some minutes; prints a table; ends with 1 where
# anything failed.
#
#   tests/faults.sh [DIRECTORY OF THE BINARIES, default target/debug]
#
# `loadgen run` starts relay and sink, verifies every event and fails by itself where one is lost, repeated beyond
# what was counted as possible, damaged or not accounted for. Here its exit code and a few figures are judged. All of
# it waits more than it works, so both drivers and the shards have their turn at the same time.
set -uo pipefail
cd "$(dirname "$0")/.."

binaries=$(realpath "${1:-target/debug}")
all=$(mktemp -d)
scratch=$all
relay=
failed=0
end_relay() { if [[ -n $relay ]]; then kill -KILL "$relay" 2>/dev/null; fi; }
trap 'end_relay; rm -rf "$all"' EXIT

for name in standpipe loadgen; do
    if [[ ! -x $binaries/$name ]]; then
        echo "there is no $name in $binaries; build with: cargo build --workspace" >&2
        exit 2
    fi
done

# row NAME OK FIGURES
row() {
    local mark=ok
    if [[ $2 != 0 ]]; then mark=FAIL failed=1; fi
    printf '%-4s  %-44s  %s\n' "$mark" "$1" "$3" | tee -a "$scratch/rows"
}

# number FILE KEY: the first number of that key in a report
number() { grep -o "\"$2\": *[0-9][0-9.]*" "$1" | head -1 | grep -o '[0-9.]*$' || echo 0; }

# run NAME LOADGEN-ARGUMENTS -- RELAY-ARGUMENTS: leaves the report in $report and the exit code in $code
run() {
    local name=$1
    shift
    report=$scratch/report.json
    rm -f "$report"
    "$binaries/loadgen" run --relay "$binaries/standpipe" --settle 300s --patience 120s --json "$report" "$@" \
        >"$scratch/log" 2>&1
    code=$?
    if [[ $code != 0 ]]; then
        echo "--- $name ended with $code:"
        tail -60 "$scratch/log"
    fi
    touch "$report"
}

# start ARGUMENTS: a relay of its own, $relay, whose port is left in $port
start() {
    "$binaries/standpipe" --listen 127.0.0.1:0 --admin 127.0.0.1:0 --destination null --linger 100ms "$@" \
        >/dev/null 2>"$scratch/relay.log" &
    relay=$!
    for _ in {1..200}; do
        port=$(sed -n 's/.*ready listen=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$scratch/relay.log")
        if [[ -n $port ]] || ! kill -0 "$relay" 2>/dev/null; then break; fi
        sleep 0.05
    done
    [[ -n $port ]]
}

# stop: SIGTERM; the exit code is left in $code
stop() {
    kill -TERM "$relay" 2>/dev/null
    wait "$relay"
    code=$?
    relay=
}

drivers=(uring epoll)
if ! start --io uring; then
    echo "*** THE IO_URING DRIVER IS NOT TESTED ON THIS MACHINE: $(cat "$scratch/relay.log") ***" >&2
    drivers=(epoll)
fi
stop

faults=(--fail-records 0.3 --fail-calls 0.1 --latency 1ms-50ms)
broken=(--cut 0.03 --cut-early 0.03 --garbage 0.03 --error-500 0.03 --miscount 0.03)
load=(--events 1000000 --connections 64 --streams 16)
small_records=(--max-record-events 100 --retry-base 20ms --retry-max 2s)

# An endpoint that fails: IO SEED.
faults() {
    run "faults" "${load[@]}" "${faults[@]}" --seed "$2" -- --io "$1" "${small_records[@]}"
    duplicates=$(number "$report" duplicates)
    row "$1: 30 % of records, 10 % 503, latency" $((code != 0 || duplicates != 0)) \
        "seed $2, $(number "$report" records_failed) records failed, $duplicates duplicates"

    run "broken" "${load[@]}" "${faults[@]}" "${broken[@]}" --seed "$2" -- --io "$1" "${small_records[@]}"
    row "$1: and cuts, broken answers, 500" $code \
        "seed $2, $(number "$report" duplicates) duplicates of $(number "$report" possible_duplicates) possible"
}

# An outage of 20 s: the limit on resident memory is the plan and a tenth.
most=$((64 * 1024 * 1024 * 11 / 10))
outage() {
    for on_full in wait drop; do
        allow=()
        if [[ $on_full = drop ]]; then allow=(--allow-drops); fi
        run "outage" --events 400000 --size 1000 --rate 20k --connections 16 --streams 16 --refuse 2-22 \
            --stuck-timeout 120s "${allow[@]}" -- --io "$1" --memory 64MiB --on-full "$on_full" --retry-max 2s
        peak=$(number "$report" resident_peak_bytes)
        row "$1: 20 s outage at 64 MiB, $on_full" $((code != 0 || peak == 0 || peak > most)) \
            "peak $((peak / 1048576)) MiB of $((most / 1048576)), $(number "$report" dropped) dropped"
    done
}

# Idle: 100 connections that sent one line each, ten seconds. CPU in ticks of 10 ms, switches over all threads.
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$relay/stat"; }
switches() { awk '/^voluntary_ctxt/ { sum += $2 } END { print sum }' /proc/"$relay"/task/*/status; }
idle() {
    start --io "$1"
    descriptors=()
    for _ in {1..100}; do
        exec {descriptor}<>"/dev/tcp/127.0.0.1/$port"
        echo "clicks 1" >&"$descriptor"
        descriptors+=("$descriptor")
    done
    sleep 3
    before=$(ticks) switches_before=$(switches)
    sleep 10
    cpu=$(($(ticks) - before)) woken=$(($(switches) - switches_before))
    # Half a percent of ten seconds is 5 ticks. Threads may look at the clock ten times a second, no more.
    row "$1: idle for 10 s with 100 connections" $((cpu >= 5 || woken > 100)) "$((cpu * 10)) ms CPU, $woken switches"
    for descriptor in "${descriptors[@]}"; do exec {descriptor}>&-; done
    stop
    row "$1: and ends with 0" $code "exit code $code"
}

# Two shards must not cost a call each where one would do.
calls() {
    run "shards" --events 40000 --rate 4k --connections 16 --streams 8 -- --shards "$1" --linger 500ms
    shard_calls=$(number "$report" calls)
}
shards() {
    calls 1
    one=$shard_calls one_code=$code
    calls 2
    row "two shards: calls of low-rate streams" \
        $((one_code != 0 || code != 0 || one == 0 || shard_calls * 10 > one * 11 + 80)) \
        "$one with one, $shard_calls with two"
}

driver() {
    faults "$1" "$2"
    outage "$1"
    idle "$1"
}

# part NAME COMMAND…: begins it, in a shell and a folder of its own. What it says is shown once it has ended.
source tests/lib/jobs.sh
trap 'end_jobs; rm -rf "$all"' EXIT
parts=()
part() {
    scratch=$all/$1
    mkdir "$scratch"
    parts+=("$scratch")
    (
        trap end_relay EXIT
        "${@:2}"
        exit $failed
    ) >"$scratch/said" 2>&1 &
    pids+=("$!")
}
pids=()
for io in "${drivers[@]}"; do
    part "$io" driver "$io" $RANDOM
done
part shards shards
for index in "${!pids[@]}"; do
    wait "${pids[index]}" || failed=1
    cat "${parts[index]}/said"
done

echo
cat "${parts[@]/%//rows}"
exit $failed
