# Sourced by the scripts in tests/, after find_relay.sh: Python packages in an environment of the script's own.

# make_venv NAME: installs tests/NAME/requirements.txt and sets `python`; where that fails it sets `why_not` and says no.
make_venv() {
    local name=$1 requirements=tests/$1/requirements.txt
    local venv=$target/$name/venv log=$target/$name/install.log
    python=$venv/bin/python
    why_not="there is no python3"
    command -v python3 >/dev/null || return 1
    ! cmp --silent "$requirements" "$venv/installed.txt" || return 0
    mkdir -p "$target/$name" && rm -rf "$venv"
    if python3 -m venv "$venv" &&
        "$python" -m pip install --disable-pip-version-check --retries 1 --timeout 20 --requirement "$requirements" &&
        cp "$requirements" "$venv/installed.txt"; then
        return 0
    fi >"$log" 2>&1
    why_not="$name: packages could not be installed: $(tail -n 1 "$log") (all of it: $log)"
    return 1
}
