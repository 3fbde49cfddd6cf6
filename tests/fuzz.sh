#!/usr/bin/env bash
# Every fuzz target for a while, beginning with what is kept in fuzz/corpus: the frame parser and control frames at
# any split, a shard, answers of the endpoint, configurations. A target that crashes leaves its input in
# fuzz/artifacts.
#
#   tests/fuzz.sh                       a short smoke
#   tests/fuzz.sh --seconds 3600        longer
#   tests/fuzz.sh --seconds 60 frames   one target
#
# Built without a sanitizer: what is fuzzed has no unsafe code, and the dependencies need not be built twice as
# slowly for it. Exit codes: 0 nothing found, 1 something found, 77 could not run here.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly CARGO_FUZZ_VERSION=0.13.2
seconds=5
if [[ ${1-} == --seconds ]]; then
    seconds=$2
    shift 2
fi
targets=("$@")
if [[ ${#targets[@]} == 0 ]]; then
    mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)
fi

skip() {
    printf '\n#### NOTHING WAS FUZZED: %s\n\n' "$1" >&2
    exit 77
}

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# cargo-fuzz wants flags that only a nightly compiler takes, unless it is told so.
export RUSTC_BOOTSTRAP=1
unset CARGO_TARGET_DIR
root=$target/ci/cargo-fuzz-$CARGO_FUZZ_VERSION
if ! cargo fuzz --version 2>/dev/null && [[ ! -x $root/bin/cargo-fuzz ]]; then
    echo "cargo-fuzz is not installed; building version $CARGO_FUZZ_VERSION, once"
    CARGO_TARGET_DIR=$root/build cargo install --quiet --locked --debug --root "$root" \
        --version "$CARGO_FUZZ_VERSION" cargo-fuzz || skip "cargo-fuzz could not be installed"
    rm -rf "$root/build"
fi
PATH=$PATH:$root/bin
# The relay's own lock file holds for the targets too; what they add to it is fetched only here, so a registry that
# cannot be reached shows now.
cp Cargo.lock fuzz/Cargo.lock
cargo fetch --quiet --manifest-path fuzz/Cargo.toml || skip "its dependencies could not be fetched"
cargo fuzz build --dev --sanitizer none --target-dir "$target/fuzz"

triple=$(rustc -vV | sed -n 's/^host: //p')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()
for name in "${targets[@]}"; do
    mkdir -p "$scratch/$name" "fuzz/artifacts/$name"
    # New inputs go to the first folder, so that the corpus stays as small as it is.
    if "$target/fuzz/$triple/debug/$name" "$scratch/$name" "fuzz/corpus/$name" -max_total_time="$seconds" \
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
