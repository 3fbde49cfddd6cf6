#!/usr/bin/env bash
# Has an instance of an Auto Scaling group terminated, with moto as Auto Scaling and a stub of the instance's metadata,
# and looks on as `standpipe asg-lifecycle` drains a relay that runs there.
#
#   tests/asg_lifecycle.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: as it should be; 77: it did not run; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."

source tests/lib/find_relay.sh
source tests/lib/venv.sh

skip() {
    echo "asg-lifecycle: DID NOT RUN: $1" >&2
    echo "asg-lifecycle: NO INSTANCE WAS TERMINATED" >&2
    exit 77
}

make_venv moto || skip "$why_not"
if [[ ! -x $(dirname "$relay")/standpipe-asg-lifecycle ]]; then
    echo "there is no standpipe-asg-lifecycle beside $relay; run cargo build --workspace first" >&2
    exit 1
fi
exec "$python" tests/moto/asg_lifecycle.py "$relay"
