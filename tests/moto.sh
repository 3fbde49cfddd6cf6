#!/usr/bin/env bash
# Relays into moto, an independent emulator of Firehose and S3, and compares what S3 holds byte for byte.
#
#   tests/moto.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: the same; 77: it did not run, since moto could not be installed; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."

source tests/lib/find_relay.sh

venv=$target/moto/venv
log=$target/moto/install.log

install() {
    rm -rf "$venv"
    python3 -m venv "$venv" &&
        "$venv/bin/python" -m pip install --disable-pip-version-check --retries 1 --timeout 20 \
            --requirement tests/moto/requirements.txt &&
        cp tests/moto/requirements.txt "$venv/installed.txt"
}

skip() {
    echo "moto: DID NOT RUN: $1" >&2
    echo "moto: NOTHING WAS COMPARED WITH AN INDEPENDENT FIREHOSE" >&2
    exit 77
}

mkdir -p "$target/moto"
command -v python3 >/dev/null || skip "there is no python3"
if ! cmp --silent tests/moto/requirements.txt "$venv/installed.txt"; then
    install >"$log" 2>&1 || skip "moto could not be installed: $(tail -n 1 "$log") (all of it: $log)"
fi
exec "$venv/bin/python" tests/moto/check.py "$relay"
