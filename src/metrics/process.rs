//! What the system counts of this process, under the names that Prometheus' client libraries share. What cannot be
//! read is left out, and nothing else with it.

use procfs::process::{LimitValue, Process, Stat};

/// What the system says of the process. Each is absent where it cannot be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time of all its threads, user and system, in seconds.
    pub cpu_seconds: Option<f64>,
    /// When it started, in seconds since 1970.
    pub start_time_seconds: Option<f64>,
    /// Its threads.
    pub threads: Option<u64>,
    /// Memory resident in all, in bytes.
    pub resident_bytes: Option<u64>,
    /// Its address space, in bytes.
    pub virtual_bytes: Option<u64>,
    /// Files and sockets that it has open.
    pub open_fds: Option<u64>,
    /// How many it may have; absent where there is no limit.
    pub max_fds: Option<u64>,
}

impl Usage {
    /// What is so now.
    pub fn now() -> Self {
        let Ok(process) = Process::myself() else { return Self::default() };
        let stat = process.stat().ok();
        let limit = process.limits().ok().map(|limits| limits.max_open_files.soft_limit);
        Self {
            cpu_seconds: stat.as_ref().map(|stat| seconds(stat.utime + stat.stime)),
            start_time_seconds: stat.as_ref().and_then(started_at),
            threads: stat.as_ref().and_then(|stat| u64::try_from(stat.num_threads).ok()),
            resident_bytes: stat.as_ref().map(|stat| stat.rss * procfs::page_size()),
            virtual_bytes: stat.as_ref().map(|stat| stat.vsize),
            open_fds: process.fd_count().ok().map(|count| count as u64),
            max_fds: limit.and_then(|limit| match limit {
                LimitValue::Value(files) => Some(files),
                LimitValue::Unlimited => None,
            }),
        }
    }
}

/// Absent where the system hides its own start, as systemd's `ProcSubset=pid` does.
fn started_at(stat: &Stat) -> Option<f64> {
    Some(procfs::boot_time_secs().ok()? as f64 + seconds(stat.starttime))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}
