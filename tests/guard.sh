#!/usr/bin/env bash
# The guard of the hot path: instructions per event, from bytes in memory to the outcome of the batch, counted by
# callgrind and held against the numbers in benches/instructions.txt. No socket and no clock takes part (see
# benches/instructions.rs), so a count says the same on a busy machine as on a quiet one: hash seeds and the allocator
# move single counts by up to 0.5 % either way, hence the median of three. Valgrind hides AVX-512 and SHA-NI, so this
# holds the portable path; vector kernels are held by the benches.
#
#   tests/guard.sh            fails where a figure is more than 5 % worse
#   tests/guard.sh --update   writes the figures of this machine into the file
#
# Exit codes: 0 held, 1 worse or broken, 77 could not run here.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/lib/apt.sh

readonly FIGURES=benches/instructions.txt
readonly SIZES="64 250 1000"
readonly STREAMS="1 16 1000"
readonly TOLERANCE=5

skip() {
    printf '\n#### THE INSTRUCTION GUARD DID NOT RUN: %s\n\n' "$1" >&2
    exit 77
}

[[ $(uname -m) == x86_64 ]] || skip "its figures are those of x86-64, and this is $(uname -m)"
grep -qw avx2 /proc/cpuinfo || skip "its figures are those of a CPU with AVX2"
have_packages valgrind valgrind || skip "valgrind is missing; install it (apt-get install valgrind)"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Our own code as in a release. What it stands on is as the tests have built it, where memchr, base64 and the allocator
# are as in a release too: the rest has little part in what is counted beyond what is inlined, and building all of it
# anew would cost the gate minutes.
released=()
for setting in opt-level=3 codegen-units=16 debug-assertions=false overflow-checks=false; do
    released+=(--config "profile.dev.package.standpipe.$setting")
done
CARGO_INCREMENTAL=0 cargo build --quiet --workspace --example instructions "${released[@]}"
program="${CARGO_TARGET_DIR:-target}/debug/examples/instructions"

# Instructions per event of one case, in a file of its own. The function that is counted must exist, or nothing would
# be.
count() {
    local events counted name="$out/$1.$2.$3"
    if ! events=$(valgrind --tool=callgrind --callgrind-out-file="$name.callgrind" --log-file="$name.log" \
        --collect-atstart=no --toggle-collect='instructions::measured*' "$program" "$1" "$2"); then
        cat "$name.log" >&2
        return 1
    fi
    counted=$(awk '$1 == "totals:" { print $2 }' "$name.callgrind")
    if [[ -z $counted || $counted == 0 ]]; then
        echo "callgrind counted nothing: is there still a function 'measured' in benches/instructions.rs?" >&2
        return 1
    fi
    awk -v counted="$counted" -v events="$events" 'BEGIN { printf "%.1f\n", counted / events }' >"$name.count"
}

toolchain="$(rustc --version); $(valgrind --version); glibc $(getconf GNU_LIBC_VERSION | cut -d' ' -f2)"
cases=()
for size in $SIZES; do for streams in $STREAMS; do cases+=("$size $streams"); done; done
export out program
export -f count
# As many at once as there are CPUs: what is counted does not depend on it.
printf '%s\n' "${cases[@]/%/ 1}" "${cases[@]/%/ 2}" "${cases[@]/%/ 3}" |
    xargs -L 1 -P "$(nproc)" bash -c 'count "$@"' count
for case in "${cases[@]}"; do
    echo "$case $(cat "$out/${case/ /.}".?.count | sort -n | sed -n 2p)" >>"$out/figures"
done

if [[ ${1-} == --update ]]; then
    {
        echo "# Instructions per event, written by tests/guard.sh --update and held by tests/guard.sh."
        echo "# Taken with: $toolchain"
        echo "# octets of payload, streams, instructions per event"
        cat "$out/figures"
    } >"$FIGURES"
    cat "$FIGURES"
    exit 0
fi

[[ -f $FIGURES ]] || { echo "$FIGURES is missing; tests/guard.sh --update writes it" >&2; exit 1; }
taken_with=$(sed -n 's/^# Taken with: //p' "$FIGURES")
if [[ $taken_with != "$toolchain" ]]; then
    echo "note: the figures were taken with '$taken_with', and this is '$toolchain'"
fi

awk -v tolerance="$TOLERANCE" '
    /^#/ { next }
    FNR == NR { kept[$1 " " $2] = $3; next }
    {
        case_of = $1 " " $2
        if (!(case_of in kept)) { printf "%5d B %5d streams: no figure is kept for it\n", $1, $2; bad = 1; next }
        ratio = $3 / kept[case_of]
        verdict = "held"
        if (ratio > 1 + tolerance / 100) { verdict = "WORSE"; worse = 1 }
        if (ratio < 1 - tolerance / 100) { verdict = "BETTER"; better = 1 }
        printf "%5d B %5d streams: %8.1f instructions per event, %8.1f kept, ratio %.3f  %s\n",
            $1, $2, $3, kept[case_of], ratio, verdict
    }
    END {
        if (better) print "\n#### SOME FIGURES ARE MORE THAN " tolerance " % BETTER: keep them with tests/guard.sh --update\n"
        if (worse) print "\n#### THE HOT PATH NEEDS MORE THAN " tolerance " % MORE INSTRUCTIONS: see the figures above\n"
        exit bad || worse
    }
' "$FIGURES" "$out/figures"
