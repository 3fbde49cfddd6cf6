# Sourced by the scripts in tests/, after find_relay.sh and apt.sh: a small Debian in a directory, made once.

base=$(realpath -m "$target/base-bookworm")

# make_base: makes it where it is missing; where that fails it sets `why_not` and says no.
make_base() {
    [[ ! -e $base.done ]] || return 0
    why_not="there is no debootstrap"
    have_packages debootstrap debootstrap || return 1
    rm -rf "$base"
    mkdir -p "$(dirname "$base")"
    why_not="a base could not be made (see $base.log)"
    debootstrap --variant=minbase --include=ca-certificates bookworm "$base" >"$base.log" 2>&1 || return 1
    rm -rf "$base"/var/cache/apt/archives/*.deb "$base"/var/lib/apt/lists/*
    touch "$base.done"
}
