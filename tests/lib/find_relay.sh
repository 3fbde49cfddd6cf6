# Sourced by the scripts in tests/, in the root of the repository: sets `target`, and `relay` to the binary under
# test: the argument, else $STANDPIPE, else the one that was built in target/.

target=${CARGO_TARGET_DIR:-target}
relay=${1:-${STANDPIPE:-}}
for built in "$target/debug/standpipe" "$target/release/standpipe"; do
    [[ -n $relay || ! -x $built ]] || relay=$built
done
if [[ ! -x $relay ]]; then
    echo "there is no relay at '${relay:-$target/debug/standpipe}'; run cargo build first" >&2
    exit 1
fi
