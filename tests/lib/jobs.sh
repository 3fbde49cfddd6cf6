# Sourced by scripts that run parts of themselves at the same time: `set -m` gives each job a process group of its own,
# so that what it has started ends with it.

set -m

# Ends the jobs that still run.
end_jobs() {
    local pid
    for pid in $(jobs -rp); do
        kill -- -"$pid" || true
    done
}
