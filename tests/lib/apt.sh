# Sourced by the scripts in tests/: what they need from Debian's packages.

# have_packages COMMAND PACKAGE…: installs the packages where the command is missing and we may; else it says no.
have_packages() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 1
    # Some packages would start a service of their own (RUNLEVEL=1); nothing here wants that.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >/dev/null 2>&1 && command -v "$command" >/dev/null
}
