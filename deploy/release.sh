#!/usr/bin/env bash
# Makes what a release consists of, in dist/ or $DIST: an archive and a Debian package for this machine's architecture,
# and their check sums.
#
#   deploy/release.sh [BINARY]     BINARY: a relay that was built already; else it is built
#
# The helper for Auto Scaling groups, which stands beside the relay where it was built, is a part of both.
#
# The binary is linked with this machine's glibc and must not need a newer one than 2.34, so that it runs on Amazon
# Linux 2023, Debian 12, RHEL 9, Ubuntu 22.04 and whatever is newer. It needs no other library. The same commit gives
# the same files on the same machine.
set -euo pipefail
cd "$(dirname "$0")/.."

GLIBC_MAX=2.34
dist=${DIST:-dist}
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
architecture=$(dpkg --print-architecture)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

binary=${1:-}
if [[ -z $binary ]]; then
    cargo build --release --locked --package standpipe --package standpipe-asg-lifecycle --bins
    binary=${CARGO_TARGET_DIR:-target}/release/standpipe
fi

# The newest version of glibc whose symbols the binary needs, and any library that is not glibc's or the compiler's.
needed=$(objdump -T "$binary" | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort --unique --version-sort | tail -n 1)
if [[ $(printf '%s\n' "$needed" "$GLIBC_MAX" | sort --version-sort | tail -n 1) != "$GLIBC_MAX" ]]; then
    echo "the binary needs glibc $needed, and should run with $GLIBC_MAX: build it on an older system" >&2
    exit 1
fi
foreign=$(objdump -p "$binary" | sed -n 's/^ *NEEDED *//p' | grep -vE '^(libc|libm|libgcc_s|ld-linux-.*)\.so' || true)
if [[ -n $foreign ]]; then
    echo "the binary needs libraries that a system may not have: $foreign" >&2
    exit 1
fi

# lay_out ROOT: the files as a system has them.
lay_out() {
    local root=$1
    install -D --strip "$binary" "$root/usr/bin/standpipe"
    [[ ! -x $binary-asg-lifecycle ]] || install -D --strip "$binary-asg-lifecycle" "$root/usr/bin/standpipe-asg-lifecycle"
    install -D --mode 644 --target-directory "$root/usr/lib/systemd/system" deploy/systemd/*
    install -d "$root/etc/standpipe"
    "$binary" config >"$root/etc/standpipe/standpipe.toml"
    install -d "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions" \
        "$root/usr/share/zsh/vendor-completions" "$root/usr/share/fish/vendor_completions.d"
    "$binary" man | gzip --no-name --best >"$root/usr/share/man/man1/standpipe.1.gz"
    "$binary" completions bash >"$root/usr/share/bash-completion/completions/standpipe"
    "$binary" completions zsh >"$root/usr/share/zsh/vendor-completions/_standpipe"
    "$binary" completions fish >"$root/usr/share/fish/vendor_completions.d/standpipe.fish"
    install -D --mode 644 --target-directory "$root/usr/share/doc/standpipe" README.md CHANGELOG.md docs/*.md
    install -D --mode 644 LICENSE "$root/usr/share/doc/standpipe/copyright"
    install -D --mode 644 --target-directory "$root/usr/share/standpipe" deploy/seccomp.json deploy/sysctl.conf
}

debian_package() {
    local root=$work/deb
    lay_out "$root"
    mkdir "$root/DEBIAN"
    cat >"$root/DEBIAN/control" <<CONTROL
Package: standpipe
Version: $version
Architecture: $architecture
Section: net
Priority: optional
Depends: libc6 (>= $GLIBC_MAX), libgcc-s1
Recommends: ca-certificates
Installed-Size: $(du --summarize --block-size 1K "$root" | cut -f 1)
Maintainer: Standpipe <standpipe@localhost>
Description: event relay: TCP lines in, Amazon Data Firehose calls out
 Many hosts send events over TCP as lines. Standpipe packs them by stream and
 delivers them to Amazon Data Firehose, and accounts for every one of them.
CONTROL
    echo /etc/standpipe/standpipe.toml >"$root/DEBIAN/conffiles"
    # The service is not enabled: its configuration has to be written first.
    cat >"$root/DEBIAN/postinst" <<'POSTINST'
#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
POSTINST
    chmod 755 "$root/DEBIAN/postinst"
    find "$root" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group --build "$root" "$dist/standpipe_${version}_$architecture.deb" >/dev/null
}

archive() {
    local name=standpipe-$version-linux-$architecture
    lay_out "$work/$name"
    tar --create --sort name --owner 0 --group 0 --numeric-owner --mtime "@$SOURCE_DATE_EPOCH" \
        --directory "$work" "$name" | gzip --no-name --best >"$dist/$name.tar.gz"
}

mkdir -p "$dist"
debian_package
archive
(cd "$dist" && sha256sum -- *.deb *.tar.gz >SHA256SUMS && cat SHA256SUMS)
