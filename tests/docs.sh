#!/usr/bin/env bash
# Compares the documentation with the relay: the configuration, the metrics with their types and labels, the links
# between pages, and what dashboards/ makes of the metrics.
#
#   tests/docs.sh [--write] [RELAY]     --write: puts the configuration of this relay into docs/configuration.md
set -euo pipefail
cd "$(dirname "$0")/.."
mode=--check
[[ ${1:-} != --write ]] || { mode=--write && shift; }
source tests/lib/find_relay.sh
exec python3 tests/docs/check.py "$mode" "$relay"
