#!/usr/bin/env bash
# Builds the Dockerfile's image on a base of its own, with the relay that was built already, and runs it: with the
# seccomp profile of deploy/, with one that refuses io_uring, and on a root file system that cannot be written to.
#
#   tests/container.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: all of that works; 77: it did not run, for want of packages or of root; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/lib/find_relay.sh
source tests/lib/apt.sh
source tests/lib/base.sh

DEADLINE=60
scratch=$(mktemp -d)
containers=()

skip() {
    echo "container: DID NOT RUN: $1" >&2
    echo "container: NOTHING IS KNOWN ABOUT THE IMAGE AND THE SECCOMP PROFILE" >&2
    exit 77
}

fail() {
    echo "container: $1" >&2
    [[ ! -s $scratch/log ]] || tail -n 20 "$scratch/log" >&2
    exit 1
}

images() {
    buildah --root "$scratch/images" --runroot "$scratch/run" --storage-driver vfs "$@"
}

clean_up() {
    [[ -z ${relay_process:-} ]] || kill -KILL "$relay_process" 2>/dev/null || true
    for container in "${containers[@]}"; do images umount "$container" && images rm "$container"; done >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap clean_up EXIT

# until_true WHAT COMMAND…: waits until the command succeeds.
until_true() {
    local what=$1 end=$((SECONDS + DEADLINE))
    shift
    until "$@"; do
        ((SECONDS < end)) || fail "waited $DEADLINE s in vain for $what"
        sleep 0.05
    done
}

build_image() {
    local container context=$scratch/context
    container=$(images from scratch)
    images add --quiet "$container" "$base" / >/dev/null
    images commit --quiet "$container" localhost/standpipe-base >/dev/null
    images rm "$container" >/dev/null
    # The whole context as a user has it, with a binary in the place that the Dockerfile names.
    mkdir -p "$context/prebuilt"
    cp -r Dockerfile .dockerignore Cargo.toml Cargo.lock build.rs LICENSE src benches tests loadgen asg-lifecycle fuzz "$context"
    strip -o "$context/prebuilt/standpipe" "$relay"
    images build --quiet --format docker --isolation chroot --tag localhost/standpipe \
        --build-arg BUILD_BASE=localhost/standpipe-base --build-arg RUNTIME_BASE=localhost/standpipe-base \
        --build-arg PREBUILT=prebuilt/standpipe "$context" >/dev/null
}

# What the image says of itself.
check_image() {
    images inspect --type image localhost/standpipe | python3 -c '
import json, sys
image = json.load(sys.stdin)["Docker"]["config"]
assert image["User"] == "10001:10001", image["User"]
assert image["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/standpipe", "health"], image["Healthcheck"]
assert image["StopSignal"] == "SIGTERM" and set(image["ExposedPorts"]) == {"15555/tcp", "9155/tcp"}, image
'
}

# start COMMAND…: starts a relay, sets relay_process, address and admin once it is ready.
start() {
    # Emptied here and now: the relay before this one has said that it is ready, too.
    : >"$scratch/log"
    "$@" >>"$scratch/log" 2>&1 &
    relay_process=$!
    until_true "the relay to be ready" is_ready
    address=$(sed -nE 's/.*ready listen=[0-9.]+:([0-9]+) .*/\1/p' "$scratch/log")
    admin=$(sed -nE 's/.* admin=[0-9.]+:([0-9]+) .*/\1/p' "$scratch/log")
}

is_ready() {
    kill -0 "$relay_process" 2>/dev/null || fail "the relay ended at once"
    grep -q 'ready listen=' "$scratch/log"
}

# delivers STATE: an event that is sent over loopback is on disk below STATE.
delivers() {
    echo "clicks $1" >"/dev/tcp/127.0.0.1/$address"
    until_true "the event to be delivered" grep -qrs "$1" "$1/standpipe-data/clicks"
}

# stop: SIGTERM to the relay itself, and a clean end.
stop() {
    local code=0
    kill -TERM "$(relay_below "$relay_process")"
    wait "$relay_process" || code=$?
    relay_process=
    [[ $code == 0 ]] || fail "the relay ended with exit code $code"
}

# The process of the relay among the descendants of what started it.
relay_below() {
    local process=$1 child
    [[ $(cat "/proc/$process/comm") != standpipe ]] || { echo "$process" && return; }
    for child in $(pgrep -P "$process"); do relay_below "$child"; done
}

# runs_with DRIVER SECCOMP: the image runs with this profile and reads its sockets with this driver.
runs_with() {
    local driver=$1 profile=$2 container root
    container=$(images from --isolation chroot --security-opt "seccomp=$profile" localhost/standpipe)
    containers+=("$container")
    root=$(images mount "$container")
    local run=(images run --isolation chroot --network host --user 10001:10001
        --env STANDPIPE_LISTEN=127.0.0.1:0 --env STANDPIPE_ADMIN=127.0.0.1:0 --env STANDPIPE_LINGER=100ms)
    start "${run[@]}" "$container" -- /usr/local/bin/standpipe
    grep -q " io=$driver" "$scratch/log" || fail "the relay should read its sockets with $driver"
    [[ $driver == uring ]] || grep -q 'docker run --security-opt seccomp=' "$scratch/log" ||
        fail "the relay should say how io_uring is allowed"
    "${run[@]}" "$container" -- /usr/local/bin/standpipe health --admin "127.0.0.1:$admin"
    ! "${run[@]}" "$container" -- /usr/local/bin/standpipe health --admin 127.0.0.1:1 2>/dev/null ||
        fail "a relay that does not answer should be unhealthy"
    delivers "$root/var/lib/standpipe"
    stop
    echo "container: runs as 10001 with $driver under $(basename "$profile")"
}

# On a root that is mounted for reading only, with a volume for its state alone.
runs_on_a_read_only_root() {
    local container root=$scratch/root state=$scratch/state
    container=$(images from localhost/standpipe)
    containers+=("$container")
    mkdir -p "$root" "$state" && chown 10001:10001 "$state"
    start unshare --mount bash -ec '
        mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && mount --bind "$3" "$2/var/lib/standpipe"
        ! touch "$2/written" 2>/dev/null
        exec chroot --userspec=10001:10001 "$2" /bin/sh -c "cd /var/lib/standpipe && exec /usr/local/bin/standpipe \
            --listen 127.0.0.1:0 --admin 127.0.0.1:0 --linger 100ms"
    ' -- "$(images mount "$container")" "$root" "$state"
    delivers "$state"
    stop
    echo "container: runs on a read-only root"
}

[[ $(id -u) == 0 ]] || skip "it needs root to make a base image"
have_packages buildah buildah || skip "there is no buildah"
have_packages strip binutils || skip "there is no strip"
command -v python3 >/dev/null || skip "there is no python3"
make_base || skip "$why_not"
build_image
check_image || fail "the image is not as it should be"
python3 -c '
import json, sys
profile = json.load(open("deploy/seccomp.json"))
profile["syscalls"] = [rule for rule in profile["syscalls"] if "io_uring_setup" not in rule["names"]]
json.dump(profile, sys.stdout)' >"$scratch/seccomp-without-io-uring.json"
runs_with uring "$PWD/deploy/seccomp.json"
runs_with epoll "$scratch/seccomp-without-io-uring.json"
runs_on_a_read_only_root
