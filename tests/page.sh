#!/usr/bin/env bash
# Looks at the page at / of the admin port in a headless Chromium: that its figures are those of /metrics, that it asks
# nobody but its relay, breaks no rule of its policy and says nothing on the console, that it fits a phone and can be
# read by day and by night, and that every bad state is said in words. Takes a screenshot of each.
#
#   tests/page.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/. loadgen is beside it.
#
# The pictures are in target/page/. PAGE_LOAD_SECONDS=300 tests/page.sh sends for so long before the picture of normal
# load is taken, and puts it into docs/page.png.
#
# Exit code 0: all is well; 77: it did not run, since there is no Chromium; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."

source tests/lib/find_relay.sh
source tests/lib/apt.sh

skip() {
    printf '\n#### THE PAGE WAS NOT LOOKED AT: %s\n\n' "$1" >&2
    exit 77
}

command -v python3 >/dev/null || skip "there is no python3"
have_packages chromium chromium fonts-dejavu-core ||
    skip "chromium is missing; install it (apt-get install chromium)"

loadgen=$(dirname "$relay")/loadgen
[[ -x $loadgen ]] || { echo "there is no loadgen beside $relay; run cargo build --workspace first" >&2; exit 1; }
exec python3 tests/page/check.py "$relay" "$loadgen" chromium "$target/page"
