#!/usr/bin/env bash
# The dashboard, the rules and the alerts against the real Prometheus: promtool checks rules, their cases and the
# exposition; Prometheus scrapes two relays that are given trouble, and every query must find something.
#
#   tests/prometheus.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: all well; 77: it did not run, since Prometheus could not be installed; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."

source tests/lib/find_relay.sh
source tests/lib/apt.sh

skip() {
    echo "prometheus: DID NOT RUN: $1" >&2
    echo "prometheus: NOTHING IS KNOWN OF THE QUERIES IN dashboards/" >&2
    exit 77
}

command -v python3 >/dev/null || skip "there is no python3"
have_packages promtool prometheus || skip "there is no prometheus, and it could not be installed"
loadgen=$(dirname "$relay")/loadgen
if [[ ! -x $loadgen ]]; then
    echo "there is no loadgen beside $relay; run cargo build --workspace first" >&2
    exit 1
fi
exec python3 tests/prometheus/check.py "$relay" "$loadgen"
