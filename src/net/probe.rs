//! Which driver this machine can have, asked once at start; and where io_uring is refused, by whom, and how to
//! lift that. It opens a small ring and closes it again.

use std::io;

use io_uring::{Probe, opcode};

use super::DriverKind;
use super::uring::new_ring;
use crate::config::IoChoice;

/// Why io_uring cannot be used. Its text says who refuses it and how to lift that.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The sysctl forbids it.
    #[error(
        "io_uring is disabled by kernel.io_uring_disabled = {0}; 'sysctl -w kernel.io_uring_disabled=0' lifts it \
         (1 allows it to privileged processes and io_uring_group only)"
    )]
    Sysctl(u8),
    /// A seccomp filter forbids it.
    #[error(
        "io_uring is refused by a seccomp filter ({0}); run with a profile that allows io_uring_setup, \
         io_uring_enter and io_uring_register (docker run --security-opt seccomp=PROFILE)"
    )]
    Seccomp(io::Error),
    /// The kernel does not have what is needed.
    #[error("this kernel is too old for the io_uring driver, which needs Linux 6.1 ({0})")]
    TooOld(String),
    /// Something else.
    #[error("io_uring cannot be set up: {0}")]
    Other(io::Error),
}

/// The driver for a choice: io_uring where it works, for `auto` epoll where it does not, with the reason.
///
/// # Errors
/// Where io_uring was asked for by name and is refused.
pub fn choose(choice: IoChoice) -> Result<(DriverKind, Option<Refused>), Refused> {
    match choice {
        IoChoice::Epoll => Ok((DriverKind::Epoll, None)),
        IoChoice::Uring => probe().map(|kind| (kind, None)),
        IoChoice::Auto => match probe() {
            Ok(kind) => Ok((kind, None)),
            Err(refused) => Ok((DriverKind::Epoll, Some(refused))),
        },
    }
}

/// Tries all that the driver needs.
///
/// # Errors
/// Where something is refused.
pub fn probe() -> Result<DriverKind, Refused> {
    let ring = new_ring(8, 16).map_err(explain)?;
    let mut operations = Probe::new();
    ring.submitter().register_probe(&mut operations).map_err(explain)?;
    let needed = [
        ("accept", opcode::Accept::CODE),
        ("receive", opcode::Recv::CODE),
        ("send", opcode::Send::CODE),
        ("poll", opcode::PollAdd::CODE),
        ("cancel", opcode::AsyncCancel::CODE),
    ];
    if let Some((name, _)) = needed.iter().find(|(_, code)| !operations.is_supported(*code)) {
        return Err(Refused::TooOld(format!("it has no {name} operation")));
    }
    let try_buffers = |incremental| super::uring::try_buffers(&ring, incremental);
    if try_buffers(true).is_ok() {
        return Ok(DriverKind::Uring { incremental: true });
    }
    try_buffers(false).map_err(explain)?;
    Ok(DriverKind::Uring { incremental: false })
}

fn explain(error: io::Error) -> Refused {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    diagnose(error, sysctl.trim().parse().unwrap_or(0), has_seccomp_filter())
}

/// Who is to blame. The sysctl gives EPERM; seccomp profiles give EPERM or ENOSYS.
fn diagnose(error: io::Error, sysctl: u8, seccomp: bool) -> Refused {
    match error.raw_os_error() {
        Some(libc::EPERM) if sysctl > 0 => Refused::Sysctl(sysctl),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) if seccomp => Refused::Seccomp(error),
        Some(libc::ENOSYS | libc::EINVAL) => Refused::TooOld(error.to_string()),
        _ => Refused::Other(error),
    }
}

/// Whether this process runs under a seccomp filter (`Seccomp: 2`, proc_pid_status(5)).
fn has_seccomp_filter() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_who_refuses_and_how_to_lift_it() {
        let error = io::Error::from_raw_os_error;
        let text = |refused: Refused| refused.to_string();
        assert!(text(diagnose(error(libc::EPERM), 2, true)).contains("sysctl -w kernel.io_uring_disabled=0"));
        assert!(text(diagnose(error(libc::EPERM), 0, true)).contains("seccomp="));
        assert!(text(diagnose(error(libc::ENOSYS), 0, true)).contains("seccomp="));
        assert!(text(diagnose(error(libc::ENOSYS), 0, false)).contains("needs Linux 6.1"));
        assert!(text(diagnose(error(libc::EINVAL), 0, false)).contains("needs Linux 6.1"));
        assert!(text(diagnose(error(libc::ENOMEM), 0, false)).contains("cannot be set up"));
    }
}
