//! The relay as a child process: started, found by the line it prints when it is ready, watched, stopped. All
//! that is known of it is that line, its metrics and what `/proc` tells of any process.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::metrics::Metrics;

/// Where a relay listens, as its start line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Its first TCP listener.
    pub listen: SocketAddr,
    /// Its admin endpoint.
    pub admin: SocketAddr,
}

impl Ready {
    /// Finds `ready … listen=ADDR … admin=ADDR` in a line of log, be it text or JSON. Several listeners are
    /// separated by commas; the first TCP one is taken.
    pub fn find(line: &str) -> Option<Self> {
        let line = without_escapes(line);
        line.contains("ready").then_some(())?;
        Some(Self { listen: token(&line, "listen=")?, admin: token(&line, "admin=")? })
    }
}

/// The first address behind `key`, up to a blank, a quote or a backslash.
fn token(line: &str, key: &str) -> Option<SocketAddr> {
    let value = line.split_once(key)?.1;
    let end = value.find(|c: char| c.is_whitespace() || "\"'\\".contains(c)).unwrap_or(value.len());
    value[..end].split(',').find_map(|address| address.parse().ok())
}

/// Drops the terminal's colour sequences.
fn without_escapes(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        rest = after.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest);
    }
    text + rest
}

/// What a process has used of the machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU time in its own code, in seconds, counted in ticks of the clock.
    pub user_seconds: f64,
    /// CPU time in the kernel on its behalf, in seconds, counted in ticks of the clock.
    pub system_seconds: f64,
    /// CPU time of each thread that lives, in nanoseconds; empty where the kernel does not tell.
    pub threads_ns: BTreeMap<u32, u64>,
    /// Resident memory now.
    pub resident_bytes: u64,
    /// The most resident memory so far.
    pub resident_peak_bytes: u64,
}

impl Usage {
    /// Of the process with this id; `self` is this process.
    ///
    /// # Errors
    ///
    /// A sentence if there is no such process.
    pub fn of(pid: &str) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))
        };
        let usage = Self::parse(&read("stat")?, &read("status")?)
            .with_context(|| format!("/proc/{pid} is not understood"))?;
        Ok(Self { threads_ns: threads_ns(pid).unwrap_or_default(), ..usage })
    }

    /// CPU seconds, user and system, since an earlier look. Ticks are coarse (4 or 10 ms) and, where the kernel
    /// samples, only as good as its samples; so the sum comes from the scheduler's nanoseconds where no thread
    /// ended in between, and the ticks only divide it.
    pub fn cpu_since(&self, before: &Self) -> (f64, f64) {
        let user = self.user_seconds - before.user_seconds;
        let system = self.system_seconds - before.system_seconds;
        let ticks = user + system;
        match self.scheduled_ns_since(before) {
            Some(ns) if ticks > 0.0 => (ns as f64 / 1e9 * user / ticks, ns as f64 / 1e9 * system / ticks),
            // Less than a tick: whose it was cannot be told.
            Some(ns) => (ns as f64 / 1e9, 0.0),
            None => (user, system),
        }
    }

    /// The scheduler's nanoseconds since an earlier look; `None` if a thread ended in between and took its own
    /// with it, or the kernel does not tell.
    fn scheduled_ns_since(&self, before: &Self) -> Option<u64> {
        let all_live = before.threads_ns.keys().all(|thread| self.threads_ns.contains_key(thread));
        let sum = |usage: &Self| usage.threads_ns.values().sum::<u64>();
        (all_live && !self.threads_ns.is_empty()).then(|| sum(self).saturating_sub(sum(before)))
    }

    /// See proc(5): `stat` has utime and stime as fields 14 and 15, behind a name that may hold anything.
    fn parse(stat: &str, status: &str) -> Option<Self> {
        let (_, behind_name) = stat.rsplit_once(')')?;
        let mut fields = behind_name.split_ascii_whitespace().skip(11);
        let tick = rustix::param::clock_ticks_per_second() as f64;
        let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / tick);
        let kilobytes = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self {
            user_seconds: seconds()?,
            system_seconds: seconds()?,
            resident_bytes: kilobytes("VmRSS:")? << 10,
            resident_peak_bytes: kilobytes("VmHWM:")? << 10,
            threads_ns: BTreeMap::new(),
        })
    }
}

/// The first number of `schedstat` of each thread: nanoseconds on a CPU (Documentation/scheduler/sched-stats).
fn threads_ns(pid: &str) -> Option<BTreeMap<u32, u64>> {
    let mut threads = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let entry = entry.ok()?;
        // A thread that ends just now is as if it had ended before.
        let Ok(text) = std::fs::read_to_string(entry.path().join("schedstat")) else { continue };
        let ns = text.split_ascii_whitespace().next()?.parse().ok()?;
        threads.insert(entry.file_name().to_str()?.parse().ok()?, ns);
    }
    Some(threads)
}

/// Lines of log kept to be shown when something goes wrong.
const LOG_LINES_MAX: usize = 1_000;

type Log = Arc<Mutex<VecDeque<String>>>;

/// A running relay. Dropping it kills it.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    ready: Ready,
    log: Log,
    reader: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts a relay and waits until it is ready. `pin` is the CPU that it inherits.
    ///
    /// # Errors
    ///
    /// A sentence with the relay's last lines if it cannot be started, ends early, or is not ready in time.
    pub fn start(mut command: Command, within: Duration, pin: Option<usize>) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let spawned = spawn_pinned(&mut command, pin);
        let mut child = spawned.with_context(|| format!("the relay `{program}` could not be started"))?;
        let log = Log::default();
        let stderr = child.stderr.take().expect("it was asked for");
        let (found, ready) = mpsc::channel();
        let shared = log.clone();
        let reader = std::thread::spawn(move || read_log(stderr, &shared, &found));
        let deadline = Instant::now() + within;
        match ready.recv_timeout(within) {
            Ok(ready) => Ok(Self { child, ready, log, reader: Some(reader) }),
            Err(why) => {
                // Its end, if it came to one, comes with the end of its log.
                let status =
                    if why == RecvTimeoutError::Disconnected { wait(&mut child, deadline)? } else { None };
                let _ = child.kill();
                let _ = child.wait();
                let ended = status.map_or("was not ready in time".to_owned(), |s| format!("ended with {s}"));
                anyhow::bail!("the relay `{program}` {ended}; its last lines:\n{}", tail(&log))
            }
        }
    }

    /// Where it listens.
    pub fn ready(&self) -> Ready {
        self.ready
    }

    /// Its metrics now.
    ///
    /// # Errors
    ///
    /// A sentence, with its last lines if it has ended.
    pub fn metrics(&mut self) -> anyhow::Result<Metrics> {
        if let Some(status) = self.child.try_wait().context("the relay cannot be watched")? {
            anyhow::bail!("the relay ended with {status}; its last lines:\n{}", tail(&self.log));
        }
        Metrics::scrape(self.ready.admin)
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has used so far.
    ///
    /// # Errors
    ///
    /// A sentence if it has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(&self.child.id().to_string())
    }

    /// Its last lines of log.
    pub fn log(&self) -> String {
        tail(&self.log)
    }

    /// Sends SIGTERM and waits for nothing.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be signalled.
    pub fn tell_to_stop(&self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("the relay cannot be told to stop")
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be watched.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("the relay cannot be watched")
    }

    /// Sends SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill().context("the relay cannot be killed")?;
        self.child.wait().context("the relay cannot be waited for")
    }

    /// Sends SIGTERM and waits for its end; `None` if it had to be killed because it took too long.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be signalled.
    pub fn stop(&mut self, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.tell_to_stop()?;
        let status = wait(&mut self.child, Instant::now() + within)?;
        if status.is_none() {
            self.child.kill().context("the relay cannot be killed")?;
            self.child.wait().context("the relay cannot be waited for")?;
        }
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has lost lines of log, nothing else.
            let _ = reader.join();
        }
        Ok(status)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a child, bound to a CPU if one is given.
pub(crate) fn spawn_pinned(command: &mut Command, pin: Option<usize>) -> std::io::Result<Child> {
    if pin.is_none() {
        return command.spawn();
    }
    // A child inherits the CPUs of the thread that makes it, so that thread is one of its own.
    std::thread::scope(|scope| {
        let spawner = scope.spawn(|| {
            crate::pin_to(pin);
            command.spawn()
        });
        spawner.join().expect("spawning does not panic")
    })
}

/// Looks 50 times a second: a child has no event to wait for that a library of safe code offers.
fn wait(child: &mut Child, deadline: Instant) -> anyhow::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().context("the relay cannot be waited for")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read_log(stderr: ChildStderr, log: &Log, ready: &mpsc::Sender<Ready>) {
    let mut found = false;
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if !found && let Some(addresses) = Ready::find(&line) {
            found = true;
            // Nobody listens any more if it came too late.
            let _ = ready.send(addresses);
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LOG_LINES_MAX {
            log.pop_front();
        }
        log.push_back(line);
    }
}

fn tail(log: &Log) -> String {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_line_is_found_in_text_json_and_colour() {
        let expected = Ready { listen: ([127, 0, 0, 1], 4711).into(), admin: ([127, 0, 0, 1], 4712).into() };
        for line in [
            "2026-01-01T00:00:00Z  INFO ready listen=127.0.0.1:4711 admin=127.0.0.1:4712",
            "ready listen=unix:/run/s,127.0.0.1:4711,[::1]:4711 admin=127.0.0.1:4712 shards=1",
            r#"{"level":"INFO","message":"ready listen=127.0.0.1:4711 admin=127.0.0.1:4712"}"#,
            "\u{1b}[2m2026\u{1b}[0m ready \u{1b}[3mlisten\u{1b}[0m\u{1b}[2m=\u{1b}[0m127.0.0.1:4711 \u{1b}[3madmin\u{1b}[0m=127.0.0.1:4712",
        ] {
            assert_eq!(Ready::find(line), Some(expected), "{line}");
        }
        assert_eq!(Ready::find("listen=127.0.0.1:1 admin=127.0.0.1:2"), None);
        assert_eq!(Ready::find("ready listen=nowhere admin=127.0.0.1:2"), None);
    }

    #[test]
    fn usage_is_read_from_proc() {
        let tick = rustix::param::clock_ticks_per_second() as f64;
        let stat = "7 (a) b)) S 1 7 7 0 -1 4194560 100 0 0 0 250 125 0 0 20 0 3 0 100 1 1";
        let usage = Usage::parse(stat, "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n").unwrap();
        assert_eq!((usage.user_seconds, usage.system_seconds), (250.0 / tick, 125.0 / tick));
        assert_eq!((usage.resident_bytes, usage.resident_peak_bytes), (1 << 20, 2 << 20));
        assert!(Usage::of("self").unwrap().resident_bytes > 0);
    }

    #[test]
    fn cpu_time_is_the_schedulers_while_all_threads_live() {
        let usage = |user, system, threads: &[(u32, u64)]| Usage {
            user_seconds: user,
            system_seconds: system,
            threads_ns: threads.iter().copied().collect(),
            ..Usage::default()
        };
        let before = usage(1.0, 1.0, &[(1, 10), (2, 20)]);
        let after = usage(1.3, 1.1, &[(1, 10), (2, 320_000_020), (3, 100_000_000)]);
        let (user, system) = after.cpu_since(&before);
        assert!((user - 0.315).abs() < 1e-6 && (system - 0.105).abs() < 1e-6, "{user} {system}");
        let ended = usage(1.3, 1.1, &[(1, 10)]);
        assert!((ended.cpu_since(&before).0 - 0.3).abs() < 1e-9);
        let short = usage(1.0, 1.0, &[(1, 5_010), (2, 20)]);
        assert_eq!(short.cpu_since(&before), (5e-6, 0.0));
    }

    #[test]
    fn a_relay_that_ends_early_is_told_with_its_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'no such file' >&2; exit 2"]);
        let error = Relay::start(command, Duration::from_secs(10), None).unwrap_err().to_string();
        assert!(error.contains("exit status: 2") && error.contains("no such file"), "{error}");
        let mut command = Command::new("sh");
        command.args(["-c", "echo hello >&2; exec sleep 60"]);
        let error = Relay::start(command, Duration::from_millis(50), None).unwrap_err().to_string();
        assert!(error.contains("was not ready in time"), "{error}");
    }
}
