//! A cgroup that gives the relay a part of a CPU, of version 2 or, where the `cpu` controller is still there, of
//! version 1. Only a group of its own is made and removed again; what exists is not changed, so the controller must
//! be delegated to where this process may make groups.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// A group with a CPU limit. Dropping it removes it, once its processes have ended.
#[derive(Debug)]
pub struct CpuLimit {
    path: PathBuf,
}

/// A quarter of a CPU: 25 ms of each 100 ms. What is written to which file of a group, in this order.
const FILES_V2: &[(&str, &str)] = &[("cpu.max", "25000 100000")];
const FILES_V1: &[(&str, &str)] = &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "25000")];

/// Where this process stands in one hierarchy: where that is mounted, and its path in there.
#[derive(Debug, PartialEq)]
struct Place {
    mount: PathBuf,
    path: String,
    files: &'static [(&'static str, &'static str)],
}

impl CpuLimit {
    /// Makes a group below this process's own, or beside it.
    ///
    /// # Errors
    ///
    /// A sentence on why there can be none here.
    pub fn new() -> anyhow::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("the mounts cannot be read")?;
        let groups = std::fs::read_to_string("/proc/self/cgroup").context("the cgroups cannot be read")?;
        let mut refusal = anyhow::anyhow!("no cgroups with a cpu controller are mounted");
        for Place { mount, path, files } in places(&mounts, &groups) {
            let own = mount.join(path.trim_start_matches('/'));
            let beside = own.parent().filter(|parent| parent.starts_with(&mount)).map(Path::to_owned);
            for parent in std::iter::once(own).chain(beside) {
                match Self::below(&parent, files) {
                    Ok(group) => return Ok(group),
                    Err(error) => refusal = error,
                }
            }
        }
        Err(refusal)
    }

    fn below(parent: &Path, files: &[(&str, &str)]) -> anyhow::Result<Self> {
        let path = parent.join(format!("loadgen-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let group = Self { path };
        for (file, value) in files {
            let file = group.path.join(file);
            anyhow::ensure!(file.exists(), "the cpu controller is not delegated to {}", parent.display());
            std::fs::write(&file, value).with_context(|| format!("{} cannot be written", file.display()))?;
        }
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

/// Where a CPU limit may be had, version 2 first: from `/proc/self/mountinfo` and `/proc/self/cgroup`, whose lines
/// are described in proc_pid_mountinfo(5) and cgroups(7).
fn places(mounts: &str, groups: &str) -> Vec<Place> {
    let of_mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        let (files, is_ours): (_, fn(&str) -> bool) = match kind {
            "cgroup2" => (FILES_V2, str::is_empty),
            "cgroup" if has_cpu(options) => (FILES_V1, has_cpu),
            _ => return None,
        };
        let group = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            fields
                .next()
                .filter(|controllers| is_ours(controllers))
                .and_then(|_| fields.next().map(str::to_owned))
        };
        let path = groups.lines().find_map(group)?;
        Some(Place { mount: left.split(' ').nth(4)?.into(), path, files })
    };
    let mut places: Vec<Place> = mounts.lines().filter_map(of_mount).collect();
    places.sort_by_key(|place| place.files.len());
    places
}

fn has_cpu(controllers: &str) -> bool {
    controllers.split(',').any(|controller| controller == "cpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(mount: &str, path: &str, files: &'static [(&'static str, &'static str)]) -> Place {
        Place { mount: mount.into(), path: path.to_owned(), files }
    }

    #[test]
    fn both_versions_are_found_with_version_2_first() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      32 25 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
                      33 25 0:29 / /tmp rw - tmpfs tmpfs rw";
        let groups = "4:memory:/a\n3:cpu,cpuacct:/d:e\n2:cpuset:/f\n0::/b/c\n";
        let cpu = place("/sys/fs/cgroup/cpu", "/d:e", FILES_V1);
        assert_eq!(places(mounts, groups), [place("/sys/fs/cgroup/unified", "/b/c", FILES_V2), cpu]);
        assert_eq!(places(mounts, "4:memory:/a\n"), []);
        assert_eq!(places("", groups), []);
    }
}
