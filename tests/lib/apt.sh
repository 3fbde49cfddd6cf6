# Sourced by the scripts in tests/ and by the gate: what they need from Debian's packages.

# apt_get ARGUMENT…: for scripts that run at the same time, one after the other; else all but the first would fail.
apt_get() {
    flock /var/lib/dpkg apt-get "$@"
}

# install_packages PACKAGE…: where we may.
install_packages() {
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 1
    # Some packages would start a service of their own (RUNLEVEL=1); nothing here wants that.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    { apt_get update && apt_get install --yes --no-install-recommends "$@"; } >/dev/null 2>&1
}

# have_packages COMMAND PACKAGE…: installs the packages where the command is missing; says no if it is missing still.
have_packages() {
    command -v "$1" >/dev/null || install_packages "${@:2}" || true
    command -v "$1" >/dev/null
}
