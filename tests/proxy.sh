#!/usr/bin/env bash
# Relays to Firehose over TLS through a forward proxy: HTTPS_PROXY with a password, NO_PROXY, SSL_CERT_FILE. The proxy
# is tinyproxy, Firehose is moto; both on the loopback interface.
#
#   tests/proxy.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: as it should be; 77: it did not run; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."

source tests/lib/find_relay.sh
source tests/lib/venv.sh
source tests/lib/apt.sh

skip() {
    echo "proxy: DID NOT RUN: $1" >&2
    echo "proxy: NO EVENT WENT THROUGH A PROXY" >&2
    exit 77
}

have_packages tinyproxy tinyproxy-bin || skip "there is no tinyproxy"
have_packages openssl openssl || skip "there is no openssl"
make_venv moto || skip "$why_not"
exec "$python" tests/moto/proxy.py "$relay" "$(command -v tinyproxy)"
