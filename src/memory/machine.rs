//! What the machine and its control group allow this process.

use std::path::{Path, PathBuf};

use super::Machine;

/// Where control groups are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

impl Machine {
    /// Reads what is allowed here. What cannot be read does not bind.
    pub fn detect() -> Self {
        let installed = meminfo_total(&read("/proc/meminfo")).unwrap_or(1 << 30);
        let limit = cgroup_memory_max(Path::new(CGROUP_ROOT), &read("/proc/self/cgroup")).unwrap_or(u64::MAX);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        Self { memory: installed.min(limit), cpus, files }
    }
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// `MemTotal` of /proc/meminfo (proc_meminfo(5)), in bytes.
fn meminfo_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The least `memory.max` from this process's group up to the root (cgroup v2), or the limit of version 1.
fn cgroup_memory_max(root: &Path, own: &str) -> Option<u64> {
    let unified = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let mut folder: PathBuf = root.join(unified.trim_start_matches('/'));
    let mut least: Option<u64> = None;
    while folder.starts_with(root) {
        let limit = read(folder.join("memory.max")).trim().parse::<u64>().ok();
        least = least.into_iter().chain(limit).min();
        if !folder.pop() {
            break;
        }
    }
    least.or_else(|| read(root.join("memory/memory.limit_in_bytes")).trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_memory_is_read_in_bytes() {
        assert_eq!(meminfo_total("MemTotal:       24531044 kB\nMemFree: 1 kB\n"), Some(24_531_044 * 1024));
        assert_eq!(meminfo_total("garbage"), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_binds() {
        let root = tempfile::tempdir().expect("a folder for the test");
        let inner = root.path().join("slice/unit");
        std::fs::create_dir_all(&inner).expect("folders");
        std::fs::write(inner.join("memory.max"), "max\n").expect("a limit");
        std::fs::write(root.path().join("slice/memory.max"), "1048576\n").expect("a limit");
        assert_eq!(cgroup_memory_max(root.path(), "0::/slice/unit\n"), Some(1_048_576));
        assert_eq!(cgroup_memory_max(root.path(), "0::/elsewhere\n"), None);
    }
}
