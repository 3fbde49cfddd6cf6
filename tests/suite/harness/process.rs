//! A child process whose standard error is kept line by line. Dropping the handle kills the child.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, wait_for};

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

/// What a child left behind.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard error.
    pub log: Vec<String>,
}

impl Ended {
    /// The lines that contain `text`.
    pub fn lines_with(&self, text: &str) -> usize {
        self.log.iter().filter(|line| line.contains(text)).count()
    }

    /// Asserts the exit code, and shows the log where it is another.
    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.log.join("\n"));
        self
    }
}

impl Process {
    /// Starts a child without standard input, its standard error kept.
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Log::default());
        let shared = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                shared.lines.lock().unwrap().lines.push(String::from_utf8_lossy(&line).into_owned());
                shared.grown.notify_all();
            }
            shared.lines.lock().unwrap().ended = true;
            shared.grown.notify_all();
        });
        Self { child, log, reader: Some(reader) }
    }

    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// The lines of standard error so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().lines.clone()
    }

    /// Waits for a line in which `find` finds something; `None` where the child closed its standard error before.
    pub fn wait_for_line<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut looked_at = 0;
        let mut log = self.log.lines.lock().unwrap();
        loop {
            if let Some(found) = log.lines[looked_at..].iter().find_map(|line| find(line)) {
                return Some(found);
            }
            looked_at = log.lines.len();
            if log.ended {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for a line of log; so far:\n{}", log.lines.join("\n"));
            log = self.log.grown.wait_timeout(log, left).unwrap().0;
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        let status = wait_for("the process has ended", || self.child.try_wait().unwrap());
        self.reader.take().unwrap().join().unwrap();
        Ended { code: status.code(), log: self.log() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
