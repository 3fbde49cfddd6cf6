#!/usr/bin/env bash
# Relays into moto, an independent emulator of Firehose, STS and S3, and compares what S3 holds byte for byte: of one
# account in one region, then of two accounts in two regions.
#
#   tests/moto.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: the same; 77: it did not run, since moto could not be installed; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."

source tests/lib/find_relay.sh
source tests/lib/venv.sh

skip() {
    echo "moto: DID NOT RUN: $1" >&2
    echo "moto: NOTHING WAS COMPARED WITH AN INDEPENDENT FIREHOSE" >&2
    exit 77
}

make_venv moto || skip "$why_not"
"$python" tests/moto/check.py "$relay"
"$python" tests/moto/accounts.py "$relay"
