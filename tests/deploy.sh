#!/usr/bin/env bash
# Checks the examples in deploy/ against independent schemas and against the relay.
#
#   tests/deploy.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: they are right; 77: something could not be checked; else something is wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/lib/find_relay.sh
source tests/lib/apt.sh
source tests/lib/venv.sh

# What systemd rates as exposed, from 0.0 (nothing) to 10.0 (everything), times ten.
EXPOSURE_MAX=20
skip() {
    echo "deploy: DID NOT RUN: $1" >&2
    exit 77
}

have_packages systemd-analyze systemd || skip "there is no systemd-analyze"
have_packages groff groff-base || skip "there is no groff"
make_venv deploy || skip "$why_not"
systemd-analyze security --offline=true --threshold=$EXPOSURE_MAX --no-pager deploy/systemd/standpipe.service |
    tail -n 1
"$python" tests/deploy/check.py "$relay"
