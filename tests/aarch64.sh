#!/usr/bin/env bash
# The same code on 64-bit ARM: the workspace is built for aarch64-unknown-linux-gnu, and the unit tests of the pure
# parts run under qemu-user, where both are to be had.
#
#   tests/aarch64.sh            builds and tests
#   tests/aarch64.sh --check    only checks, without a linker or an emulator
#
# The standard library for the target comes from the toolchain in use (rustup target add), or else, for root on
# Debian, from the packages of rustc-web: they are unpacked below the target folder and nothing is installed of them.
# Exit codes: 0 passed, 1 failed, 77 could not run here.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/lib/apt.sh

readonly TARGET=aarch64-unknown-linux-gnu
# Apart from the host's build: another compiler would make cargo build all of that anew.
CARGO_TARGET_DIR="$(realpath -m "${CARGO_TARGET_DIR:-target}")/aarch64"
export CARGO_TARGET_DIR
# Tests that open no ring, start no process and signal nobody.
readonly PURE_PARTS="batch:: buffer:: config:: connection:: delivery:: encode:: frame:: linger:: memory:: metrics::
    sha256:: stream::"

skip() {
    printf '\n#### AARCH64 WAS NOT %s: %s\n\n' "$1" "$2" >&2
    exit 77
}

has_target() {
    compgen -G "$("$1" --print sysroot)/lib/rustlib/$TARGET/lib/libstd-*" >/dev/null
}

# Is $1 a version not below the one that Cargo.toml asks for?
is_recent() {
    local least
    least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    [[ $(printf '%s\n' "$least" "$1" | sort -V | head -1) == "$least" ]]
}

# Unpacks Debian's compiler, its libraries and the standard library for both machines into $1.
unpack_debian_toolchain() {
    local root=$1 state=$1/apt version
    mkdir -p "$state/lists/partial" "$state/archives/partial" "$state/debs"
    cat >"$state/conf" <<CONF
Dir::State "$state";
Dir::State::status "/dev/null";
Dir::Cache "$state";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "root";
CONF
    export APT_CONFIG="$state/conf"
    apt-get update >/dev/null 2>&1 || return 1
    version=$(apt-cache policy rustc-web | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
    is_recent "${version:-0}" || return 1
    local std=libstd-rust-web-${version%.*} llvm
    llvm=$(apt-cache depends "$std" | sed -n 's/^ *Depends: \(libllvm.*\)/\1/p' | head -1)
    (cd "$state/debs" && apt-get download rustc-web:amd64 "$std":amd64 libstd-rust-web-dev:amd64 \
        libstd-rust-web-dev:arm64 "$llvm":amd64) >/dev/null 2>&1 || return 1
    unset APT_CONFIG
    local package
    for package in "$state"/debs/*.deb; do dpkg -x "$package" "$root" || return 1; done
    rm -r "$state"
}

if ! has_target rustc; then
    debian="$CARGO_TARGET_DIR/toolchain"
    if [[ ! -x $debian/usr/bin/rustc && $(id -u) == 0 && $(uname -m) == x86_64 ]] &&
        command -v dpkg apt-get >/dev/null; then
        unpack_debian_toolchain "$debian" || rm -rf "$debian"
    fi
    [[ -x $debian/usr/bin/rustc ]] ||
        skip "CHECKED" "there is no standard library for it; install one with 'rustup target add $TARGET'"
    export RUSTC="$debian/usr/bin/rustc"
    export LD_LIBRARY_PATH="$debian/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    has_target "$RUSTC" || skip "CHECKED" "Debian's compiler has no standard library for it"
fi
"${RUSTC:-rustc}" --version
have_packages aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross ||
    skip "CHECKED" "its C compiler is missing; install gcc-aarch64-linux-gnu"

# Nobody debugs these builds, and the tests take seconds: the least that a compiler can do. Cargo.toml asks more of jemalloc.
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_INCREMENTAL=0
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
cargo_for_target() {
    cargo "$1" --quiet --target "$TARGET" --config 'profile.dev.package.tikv-jemalloc-sys.opt-level=0' \
        --config 'profile.dev.build-override.opt-level=0' "${@:2}"
}

if [[ ${1-} == --check ]]; then
    cargo_for_target check --workspace
    echo "checked for $TARGET"
    exit 0
fi
# A build in place of a check: the tests need the dependencies built, and checking them as well would take as long again.
cargo_for_target test --workspace --lib --bins --no-run
echo "built for $TARGET"
have_packages qemu-aarch64-static qemu-user-static || skip "TESTED, only built" "qemu-user-static is missing"
# What random inputs find, they find on the host: here they are to run at all. The one that is left out tries every word
# at every setting, which takes a minute here and has nothing to do with the machine.
# shellcheck disable=SC2086
PROPTEST_CASES=16 cargo_for_target test --workspace --lib --bins -- --skip no_word_makes_a_setting_panic $PURE_PARTS
