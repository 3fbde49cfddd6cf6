//! Threads whose CPU time is measured from outside, and CPUs to pin them to.

use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use core_affinity::CoreId;

/// The CPU that is the `index`th of those allowed to this process, or the last one where there are fewer.
///
/// They are looked up once, by whoever asks first: a pinned thread, and all that it starts, sees only its own.
pub fn core(index: usize) -> Option<CoreId> {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    let cores = CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default());
    cores.get(index).or(cores.last()).copied()
}

/// Keeps the calling thread on one CPU, where the system allows that.
pub fn pin(index: usize) {
    if let Some(core) = core(index) {
        core_affinity::set_for_current(core);
    }
}

/// A thread whose CPU time others may ask for.
#[derive(Debug)]
pub struct Measured {
    schedstat: String,
}

impl Measured {
    /// Starts a thread.
    pub fn spawn(body: impl FnOnce() + Send + 'static) -> (Self, JoinHandle<()>) {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            // Whoever started this waits for it.
            let _ = tell.send(rustix::thread::gettid());
            body();
        });
        let id = told.recv().expect("the thread tells its id first").as_raw_nonzero();
        (Self { schedstat: format!("/proc/self/task/{id}/schedstat") }, thread)
    }

    /// The CPU time used, once the thread sleeps: what a running thread has used is known to the kernel only up to
    /// its last tick.
    pub fn when_idle(&self) -> Duration {
        let mut before = self.used();
        loop {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.used();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// The first field, in nanoseconds (Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat").
    fn used(&self) -> Duration {
        let text = std::fs::read_to_string(&self.schedstat).expect("the thread lives while it is measured");
        let field = text.split(' ').next().and_then(|field| field.parse().ok());
        Duration::from_nanos(field.expect("the first field is a number"))
    }
}
