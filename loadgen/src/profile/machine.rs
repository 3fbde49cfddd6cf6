//! Where and with what a profile was run: figures mean nothing without it.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine and the versions. What cannot be read is `unknown`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The model of its CPU.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory in bytes; 0 if unknown.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Load averages over 1, 5 and 15 minutes before the first run: whether others were at work.
    pub load_averages: String,
    /// What the relay says of its version.
    pub relay_version: String,
    /// This program's version, and whether it was built with optimisation for release.
    pub loadgen_version: String,
}

impl Machine {
    /// This machine, with the relay at this path.
    pub fn look(relay: Option<&Path>) -> Self {
        let version = |path: &Path| {
            let output = Command::new(path).arg("--version").output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        Self {
            cpu: cpu_model(&read("/proc/cpuinfo")),
            cpus: cpus(),
            memory_bytes: memory_bytes(&read("/proc/meminfo")),
            kernel: or_unknown(read("/proc/sys/kernel/osrelease").trim()),
            load_averages: or_unknown(&first_words(&read("/proc/loadavg"), 3)),
            relay_version: or_unknown(&relay.and_then(version).unwrap_or_default()),
            loadgen_version: format!("{} ({profile})", env!("CARGO_PKG_VERSION")),
        }
    }

    /// Names and values for people.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("CPU", format!("{} × {}", self.cpus, self.cpu)),
            ("memory, GB", format!("{:.1}", self.memory_bytes as f64 / 1e9)),
            ("kernel", self.kernel.clone()),
            ("load averages before", self.load_averages.clone()),
            ("relay", self.relay_version.clone()),
            ("loadgen", self.loadgen_version.clone()),
        ]
    }
}

/// CPUs that this process may use; 1 if unknown.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() { "unknown".to_owned() } else { text.to_owned() }
}

fn first_words(text: &str, count: usize) -> String {
    text.split_ascii_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

/// x86 has a `model name`, aarch64 only numbers.
fn cpu_model(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let part = || Some(format!("implementer {} part {}", value("CPU implementer")?, value("CPU part")?));
    value("model name").or_else(part).unwrap_or_else(|| "unknown".to_owned())
}

fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_tells_is_understood() {
        let x86 = "processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: AMD EPYC\n";
        assert_eq!(cpu_model(x86), "AMD EPYC");
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n";
        assert_eq!(
            (cpu_model(arm).as_str(), cpu_model("").as_str()),
            ("implementer 0x41 part 0xd40", "unknown")
        );
        assert_eq!(memory_bytes("MemTotal:       2048 kB\nMemFree: 1 kB\n"), 2 << 20);
        assert!(Machine::look(None).cpus > 0);
    }
}
