#!/usr/bin/env bash
# Runs the example clients, and syslog daemons with the example configurations, against a relay.
#
#   tests/senders.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: what could be run delivers what it was given; the rest is named. 77: nothing could be run.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/lib/find_relay.sh
source tests/lib/apt.sh

# The daemons are unpacked instead of installed: Debian lets only one of them be installed, and would start it.
unpack() {
    local into=$PWD/$target/senders/$1
    [[ $target != /* ]] || into=$target/senders/$1
    shift
    [[ ! -e $into.done ]] || return 0
    rm -rf "$into" && mkdir -p "$into/debs"
    (cd "$into/debs" && apt-get download "$@" && for each in *.deb; do dpkg -x "$each" ..; done) \
        >"$into.log" 2>&1 || return 1
    touch "$into.done"
}

command -v python3 >/dev/null || { echo "senders: DID NOT RUN: there is no python3" >&2 && exit 77; }
mkdir -p "$target/senders"
if [[ ! -e $target/senders/rsyslog.done || ! -e $target/senders/syslog-ng.done ]]; then
    # Without lists of packages nothing can be downloaded; where they cannot be had, the daemons do not run below.
    apt_get update >"$target/senders/update.log" 2>&1 || true
fi
unpack rsyslog rsyslog libestr0 libfastjson4 liblognorm5 || true
unpack syslog-ng syslog-ng-core libivykis0 libjson-c5 libnet1 libpcre3 libwrap0 || true
exec python3 tests/senders/check.py "$relay" "$target/senders"
