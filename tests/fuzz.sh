#!/usr/bin/env bash
# Every fuzz target for a while, beginning with what is kept in fuzz/corpus: the frame parser and control frames at
# any split, a shard, answers of the endpoint, configurations, a spool that is taken over. A target that crashes
# leaves its input in fuzz/artifacts.
#
#   tests/fuzz.sh                       a short smoke
#   tests/fuzz.sh --seconds 3600        longer
#   tests/fuzz.sh --seconds 60 frames   one target
#
# Built without a sanitizer, since what is fuzzed has no unsafe code, and on top of the dependencies that the tests have
# built (see tests/lib/fuzz_rustc.sh). Exit codes: 0 nothing found, 1 something found, 77 could not run here.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=5
if [[ ${1-} == --seconds ]]; then
    seconds=$2
    shift 2
fi
targets=("$@")
if [[ ${#targets[@]} == 0 ]]; then
    mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)
fi

if ! command -v "${CXX:-c++}" >/dev/null; then
    printf '\n#### NOTHING WAS FUZZED: the fuzzer needs a C++ compiler; install g++ or clang\n\n' >&2
    exit 77
fi

# All of the workspace, and one test of it, which is for what tests need: else most of what they have built would be
# built again with other features.
RUSTC_WORKSPACE_WRAPPER="$PWD/tests/lib/fuzz_rustc.sh" cargo build --quiet --workspace \
    --features standpipe-fuzz/libfuzzer "${targets[@]/#/--bin=fuzz_}" --test mounted

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()
for name in "${targets[@]}"; do
    mkdir -p "$scratch/$name" "fuzz/artifacts/$name"
    # New inputs go to the first folder, so that the corpus stays as small as it is.
    if "${CARGO_TARGET_DIR:-target}/debug/fuzz_$name" "$scratch/$name" "fuzz/corpus/$name" -max_total_time="$seconds" \
        -max_len=8192 -timeout=20 -rss_limit_mb=2048 -artifact_prefix="fuzz/artifacts/$name/" \
        >"$scratch/$name.log" 2>&1; then
        echo "ok    $name: $(grep '^Done' "$scratch/$name.log")"
    else
        failed+=("$name")
        tail -40 "$scratch/$name.log"
        echo "FAIL  $name"
    fi
done
[[ ${#failed[@]} == 0 ]]
