//! A cgroup of version 2 that gives the relay a part of a CPU. Only a group of its own is made and removed again;
//! what exists is not changed, so the `cpu` controller must be delegated to where this process may make groups.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// A group with a CPU limit. Dropping it removes it, once its processes have ended.
#[derive(Debug)]
pub struct CpuLimit {
    path: PathBuf,
}

/// A quarter of a CPU: 25 ms of each 100 ms.
const CPU_MAX: &str = "25000 100000";
const ROOT: &str = "/sys/fs/cgroup";

impl CpuLimit {
    /// Makes a group below this process's own, or beside it.
    ///
    /// # Errors
    ///
    /// A sentence on why there can be none here.
    pub fn new() -> anyhow::Result<Self> {
        let root = Path::new(ROOT);
        anyhow::ensure!(
            root.join("cgroup.controllers").exists(),
            "cgroups of version 2 are not mounted at {ROOT}"
        );
        let groups =
            std::fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup cannot be read")?;
        let own = own_group(&groups).context("this process is in no cgroup of version 2")?;
        let own = root.join(own.trim_start_matches('/'));
        let beside = own.parent().filter(|parent| parent.starts_with(root)).map(Path::to_owned);
        let mut refusal = None;
        for parent in std::iter::once(own).chain(beside) {
            match Self::below(&parent) {
                Ok(group) => return Ok(group),
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.expect("at least one place was tried"))
    }

    fn below(parent: &Path) -> anyhow::Result<Self> {
        let path = parent.join(format!("loadgen-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let group = Self { path };
        let limit = group.path.join("cpu.max");
        anyhow::ensure!(limit.exists(), "the cpu controller is not delegated to {}", parent.display());
        std::fs::write(&limit, CPU_MAX).with_context(|| format!("{} cannot be written", limit.display()))?;
        Ok(group)
    }

    /// Moves a process into it.
    ///
    /// # Errors
    ///
    /// A sentence if that is not allowed.
    pub fn add(&self, process: u32) -> anyhow::Result<()> {
        let procs = self.path.join("cgroup.procs");
        std::fs::write(&procs, process.to_string())
            .with_context(|| format!("the relay cannot be moved into {}", self.path.display()))
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        // A group that is still busy stays, empty of meaning; it goes with the machine.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// The path behind `0::`, the line of version 2.
fn own_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_version_2_is_found() {
        assert_eq!(own_group("4:memory:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(own_group("4:memory:/a\n"), None);
    }
}
