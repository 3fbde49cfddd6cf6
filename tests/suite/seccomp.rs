//! Where a seccomp filter refuses io_uring, as container runtimes do: epoll takes over and says so, or the relay
//! does not start and says why.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::harness::{Process, Relay};

/// Has the kernel refuse `io_uring_setup` with EPERM to the program that this command starts.
#[allow(unsafe_code, reason = "a filter can be put on a child only between fork and exec")]
fn without_io_uring(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(refuse_io_uring) }
}

#[allow(unsafe_code, reason = "prctl takes a pointer to the filter")]
fn refuse_io_uring() -> std::io::Result<()> {
    let statement = |code: u32, jump_if_not: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: jump_if_not,
        k,
    };
    let mut filter = [
        // The number of the system call is the first word of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls get the arguments that prctl(2) wants; `program` and `filter` outlive them.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The sysctl is found to blame first, where it forbids io_uring too.
fn refuser() -> &'static str {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if ["", "0"].contains(&sysctl.trim()) {
        "io_uring is refused by a seccomp filter"
    } else {
        "io_uring_disabled"
    }
}

#[test]
fn auto_falls_back_to_epoll_with_one_warning_that_names_the_refuser() {
    let mut command = Relay::command("--io auto --destination null");
    let relay = Relay::ready(Process::start(without_io_uring(&mut command)));
    relay.send(b"clicks 1\n");
    let metrics = relay.until_settled(1);
    assert_eq!(metrics.sum("standpipe_io_driver_info", &[("driver", "epoll")]), 1);
    let ended = relay.terminate();
    ended.assert_code(0);
    assert_eq!(
        (ended.lines_with(refuser()), ended.lines_with("\"WARN\"")),
        (1, 1),
        "{}",
        ended.log.join("\n")
    );
}

#[test]
fn uring_by_name_is_refused_with_the_same_sentence() {
    let mut command = Relay::command("--io uring --destination null");
    let ended = Process::start(without_io_uring(&mut command)).wait();
    ended.assert_code(1);
    assert_eq!(ended.lines_with(refuser()), 1, "{}", ended.log.join("\n"));
}
