#!/usr/bin/env bash
# Makes a release of the relay that was built already, installs its Debian package on a system of its own, and runs it.
#
#   tests/release.sh [RELAY]     RELAY: the relay's binary; else $STANDPIPE, else the one in target/
#
# Exit code 0: it is whole and runs; 77: it did not run, for want of packages or of root; else it failed.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/lib/find_relay.sh
source tests/lib/apt.sh
source tests/lib/base.sh

skip() {
    echo "release: DID NOT RUN: $1" >&2
    exit 77
}

[[ $(id -u) == 0 ]] || skip "it needs root to install a package"
command -v dpkg-deb >/dev/null || skip "there is no dpkg-deb"
have_packages objdump binutils || skip "there is no objdump"
make_base || skip "$why_not"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

DIST=$scratch/once deploy/release.sh "$relay" >/dev/null
DIST=$scratch/again deploy/release.sh "$relay" >/dev/null
(cd "$scratch/once" && sha256sum --check --quiet SHA256SUMS)
cmp "$scratch/once/SHA256SUMS" "$scratch/again/SHA256SUMS"

cp -a "$base" "$scratch/system"
cp "$scratch"/once/*.deb "$scratch/system/standpipe.deb"
chroot "$scratch/system" dpkg --install /standpipe.deb >/dev/null
chroot "$scratch/system" standpipe --version
chroot "$scratch/system" standpipe check /etc/standpipe/standpipe.toml | grep '^listen' >/dev/null
# What an operator has changed survives an upgrade.
echo 'linger = "2s"' >"$scratch/system/etc/standpipe/standpipe.toml"
chroot "$scratch/system" dpkg --install /standpipe.deb >/dev/null
grep -qx 'linger = "2s"' "$scratch/system/etc/standpipe/standpipe.toml"
chroot "$scratch/system" dpkg --purge standpipe >/dev/null
[[ ! -e $scratch/system/usr/bin/standpipe && ! -e $scratch/system/etc/standpipe/standpipe.toml ]]
tar --list --gzip --file "$scratch"/once/*.tar.gz | grep '/usr/share/man/man1/standpipe.1.gz$' >/dev/null
echo "release: the package installs, upgrades and goes; the same commit gives the same files"
