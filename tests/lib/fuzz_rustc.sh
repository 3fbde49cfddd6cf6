#!/bin/sh
# The compiler for what tests/fuzz.sh fuzzes, as RUSTC_WORKSPACE_WRAPPER: "$1" is rustc. Cargo runs it for the packages
# of the workspace alone and keeps their builds apart from the usual ones, so the fuzzer sees the branches and the
# comparisons of our own code, and what that stands on is the same as in the tests and built only once. The flags are
# those that cargo-fuzz gives. Build scripts and the file system of the tests are no part of that: they run without the
# fuzzer that the others are linked with.
case " $* " in
    *" --crate-name build_script_build "* | *" --crate-name faultfs "* | *" --crate-name mounted "*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing -Copt-level=2 -Ccodegen-units=16 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0
