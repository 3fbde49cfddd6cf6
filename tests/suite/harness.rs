//! What the tests stand on: a relay and a sink as processes, which die with their handles; metrics, files and
//! log lines as values; and waiting, which is always for a condition and never for a time to pass.

use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

mod disk;
mod files;
mod http;
mod loadgen;
mod metrics;
mod process;
mod relay;
mod sink;

pub use disk::Disk;
pub use files::Files;
pub use loadgen::{Run, run, send};
pub use metrics::{Metrics, assert_identity};
pub use process::{Ended, Process};
pub use relay::Relay;
pub use sink::Sink;

/// How long anything may take before a test gives up: far longer than anything takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a look at a condition and the next are apart.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` gives something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// One of the two drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    Uring,
    Epoll,
}

impl Io {
    pub fn flag(self) -> &'static str {
        match self {
            Io::Uring => "--io uring",
            Io::Epoll => "--io epoll",
        }
    }

    /// io_uring, unless this machine refuses it: then the tests under it are passed over, and that is said loudly.
    pub fn uring() -> Option<Io> {
        static REFUSED: OnceLock<bool> = OnceLock::new();
        let refused = *REFUSED.get_or_init(|| match standpipe::net::probe::probe() {
            Ok(_) => false,
            Err(refused) => {
                // Written past the test runner, which would show it only where a test fails.
                let text =
                    format!("\n*** THE IO_URING DRIVER IS NOT TESTED ON THIS MACHINE: {refused} ***\n\n");
                let _ = std::io::stderr().write_all(text.as_bytes());
                true
            }
        });
        (!refused).then_some(Io::Uring)
    }
}

/// Makes two tests of every function named: one with `Io::Uring`, one with `Io::Epoll`.
macro_rules! under_both_drivers {
    ($($name:ident),+ $(,)?) => {
        mod uring {
            $(#[test]
            fn $name() {
                if let Some(io) = $crate::suite::harness::Io::uring() {
                    super::$name(io);
                }
            })+
        }
        mod epoll {
            $(#[test]
            fn $name() {
                super::$name($crate::suite::harness::Io::Epoll);
            })+
        }
    };
}
pub(super) use under_both_drivers;

/// A program beside the relay's.
fn beside_relay(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_standpipe")).with_file_name(name);
    assert!(path.exists(), "{} is not built; test with `cargo test --workspace`", path.display());
    path
}

/// A seed that is printed, so that a failure can be repeated: `SEED=… cargo test …` takes it from outside.
pub fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    seed
}
