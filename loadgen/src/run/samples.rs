//! A run watched while it goes: memory and counts a few times a second, and a window between warm-up and drain in
//! which CPU time is measured. It is a thread of its own on the load's CPU; the relay is asked for its metrics
//! only where the window opens and where it closes, everything else is read from `/proc` and from this process.
//!
//! The window counts the events received and those delivered in it; a figure "an event" is over the smaller of the
//! two, so that a backlog that grows or shrinks meanwhile never flatters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;
use super::relay::Usage;
use super::verify::RelayCounts;
use crate::send::Progress;
use crate::sink::Sink;

/// One look at a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Since the first event was sent.
    pub seconds: f64,
    /// The relay's resident memory.
    pub resident_bytes: u64,
    /// Events sent so far.
    pub sent: u64,
    /// Events accepted by the sink so far; 0 where there is none.
    pub accepted: u64,
}

/// What happened between warm-up and drain.
#[derive(Debug, Clone, Serialize)]
pub struct Window {
    /// When it opened, since the first event was sent.
    pub from_seconds: f64,
    /// How long it was.
    pub seconds: f64,
    /// Events that the relay received in it.
    pub events_received: u64,
    /// Events that the relay delivered in it.
    pub events_delivered: u64,
    /// Bytes that the relay received in it, frames and all.
    pub received_bytes: u64,
    /// The same by shard.
    pub received_bytes_by_shard: BTreeMap<String, u64>,
    /// The relay's CPU time in its own code, in seconds.
    pub cpu_user_seconds: f64,
    /// The relay's CPU time in the kernel, in seconds.
    pub cpu_system_seconds: f64,
    /// CPU time of sender and sink, in seconds.
    pub load_cpu_seconds: f64,
    /// CPU time of everything else on this machine, in seconds; 0 if unknown.
    pub other_cpu_seconds: f64,
    /// The relay's resident memory at its end.
    pub resident_end_bytes: u64,
}

impl Window {
    /// The events that figures are over: the smaller of those received and those delivered.
    pub fn events(&self) -> u64 {
        self.events_received.min(self.events_delivered)
    }

    /// The busiest shard's bytes over an equal share; 1 is even. `None` where nothing was received.
    pub fn imbalance(&self) -> Option<f64> {
        let most = *self.received_bytes_by_shard.values().max()?;
        let mean = self.received_bytes as f64 / self.received_bytes_by_shard.len() as f64;
        (mean > 0.0).then(|| most as f64 / mean)
    }
}

/// One edge of the window.
#[derive(Debug)]
struct Edge {
    at: Instant,
    metrics: Metrics,
    relay: Usage,
    load: Usage,
    /// CPU time of the whole machine since it started, in seconds.
    machine_seconds: f64,
}

impl Edge {
    fn window(&self, start: Instant, end: &Self) -> Window {
        let (before, after) = (RelayCounts::of(&self.metrics), RelayCounts::of(&end.metrics));
        let bytes = |edge: &Self| edge.metrics.sum_by("standpipe_received_bytes_total", "shard");
        let at_start = bytes(self);
        let by_shard: BTreeMap<String, u64> = bytes(end)
            .into_iter()
            .map(|(shard, bytes)| {
                let before = at_start.get(&shard).copied().unwrap_or(0);
                (shard, bytes - before)
            })
            .collect();
        let (cpu_user_seconds, cpu_system_seconds) = end.relay.cpu_since(&self.relay);
        let (load_user, load_system) = end.load.cpu_since(&self.load);
        let load_cpu_seconds = load_user + load_system;
        let own = cpu_user_seconds + cpu_system_seconds + load_cpu_seconds;
        Window {
            from_seconds: self.at.duration_since(start).as_secs_f64(),
            seconds: end.at.duration_since(self.at).as_secs_f64(),
            events_received: after.received - before.received,
            events_delivered: after.delivered - before.delivered,
            received_bytes: by_shard.values().sum(),
            received_bytes_by_shard: by_shard,
            cpu_user_seconds,
            cpu_system_seconds,
            load_cpu_seconds,
            other_cpu_seconds: (end.machine_seconds - self.machine_seconds - own).max(0.0),
            resident_end_bytes: end.relay.resident_bytes,
        }
    }
}

/// When the window opens and closes, since the first event was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edges {
    /// Where warm-up ends.
    pub from: Duration,
    /// A little before sending ends.
    pub to: Duration,
}

/// The window closes so long before sending does, so that its last look still sees the load.
const CLOSE_BEFORE_END: Duration = Duration::from_millis(200);

impl Edges {
    /// Of a run of this length; `None` if nothing would be left of it.
    pub fn of(warm_up: Duration, duration: Option<Duration>) -> Option<Self> {
        let to = duration?.checked_sub(CLOSE_BEFORE_END)?;
        (warm_up < to).then_some(Self { from: warm_up, to })
    }
}

/// What is watched.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'a> {
    /// The relay's process.
    pub relay: u32,
    /// Where its metrics are.
    pub admin: SocketAddr,
    /// What the sender has sent.
    pub progress: &'a Progress,
    /// What the sink has accepted.
    pub sink: Option<&'a Sink>,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// In order of time.
    pub samples: Vec<Sample>,
    /// What happened in the window, if the run lasted until its end.
    pub window: Option<Window>,
}

const SAMPLE_EVERY_MIN: Duration = Duration::from_millis(100);
/// A run of a known length has about so many samples; one of an unknown length at most this many.
const SAMPLES_MAX: usize = 600;

/// Watches until `stop` is dropped, or the relay is gone.
pub fn watch(watched: Watched<'_>, edges: Option<Edges>, stop: &mpsc::Receiver<()>) -> anyhow::Result<Seen> {
    let every = edges.map_or(SAMPLE_EVERY_MIN, |e| SAMPLE_EVERY_MIN.max(e.to / SAMPLES_MAX as u32));
    let Some(start) = first_event(watched.progress, stop) else { return Ok(Seen::default()) };
    let mut seen = Seen::default();
    let (mut opened, mut next) = (None, Duration::ZERO);
    loop {
        let elapsed = start.elapsed();
        if let Some(edges) = edges {
            if opened.is_none() && elapsed >= edges.from {
                opened = Some(watched.edge()?);
            } else if let Some(edge) =
                opened.as_ref().filter(|_| seen.window.is_none() && elapsed >= edges.to)
            {
                seen.window = Some(edge.window(start, &watched.edge()?));
            }
        }
        if elapsed >= next && seen.samples.len() < SAMPLES_MAX * 2 {
            seen.samples.push(watched.sample(start)?);
            next = elapsed + every;
        }
        if stop.recv_timeout(pause(start.elapsed(), next, edges)) != Err(RecvTimeoutError::Timeout) {
            return Ok(seen);
        }
    }
}

/// How long until the next sample or edge.
fn pause(elapsed: Duration, next: Duration, edges: Option<Edges>) -> Duration {
    let edges = edges.into_iter().flat_map(|edges| [edges.from, edges.to]);
    let soonest = edges.filter(|at| *at > elapsed).chain([next]).min().unwrap_or(next);
    soonest.saturating_sub(elapsed)
}

/// When the first event was sent; `None` if the run ended before.
fn first_event(progress: &Progress, stop: &mpsc::Receiver<()>) -> Option<Instant> {
    while progress.events() == 0 {
        if stop.recv_timeout(Duration::from_millis(1)) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
    }
    Some(Instant::now())
}

impl Watched<'_> {
    fn sample(&self, start: Instant) -> anyhow::Result<Sample> {
        Ok(Sample {
            seconds: start.elapsed().as_secs_f64(),
            resident_bytes: Usage::of(&self.relay.to_string())?.resident_bytes,
            sent: self.progress.events(),
            accepted: self.sink.map_or(0, |sink| sink.with_ledger(|ledger| ledger.accepted())),
        })
    }

    /// The time is taken between metrics and CPU: they belong to the same moment but for the scrape itself.
    fn edge(&self) -> anyhow::Result<Edge> {
        let metrics = Metrics::scrape(self.admin)?;
        let at = Instant::now();
        let machine_seconds = busy_seconds(&std::fs::read_to_string("/proc/stat").unwrap_or_default());
        let (relay, load) = (Usage::of(&self.relay.to_string())?, Usage::of("self")?);
        Ok(Edge { at, metrics, relay, load, machine_seconds })
    }
}

/// What all CPUs did but idle and wait for disks, from the first line of `/proc/stat` (proc_stat(5)).
fn busy_seconds(stat: &str) -> f64 {
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is part of user and nice.
    let busy = ticks.take(8).enumerate().filter(|(field, _)| !matches!(field, 3 | 4));
    let ticks: f64 = busy.filter_map(|(_, ticks)| ticks.parse::<f64>().ok()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn edge(at: Instant, received: u64, shard_0: u64, cpu: f64) -> Edge {
        let text = format!(
            "standpipe_events_received_total{{stream=\"a\"}} {received}\n\
             standpipe_events_delivered_total{{stream=\"a\"}} {}\n\
             standpipe_received_bytes_total{{shard=\"0\"}} {shard_0}\n\
             standpipe_received_bytes_total{{shard=\"1\"}} 100\n",
            received / 2
        );
        let usage = |user_seconds| Usage { user_seconds, ..Usage::default() };
        Edge {
            at,
            metrics: Metrics::parse(&text).unwrap(),
            relay: usage(cpu),
            load: usage(0.0),
            machine_seconds: 2.0 * cpu,
        }
    }

    #[test]
    fn a_window_is_the_difference_of_its_edges() {
        let start = Instant::now();
        let window = edge(start + SECOND, 10, 50, 1.0).window(start, &edge(start + 3 * SECOND, 30, 250, 2.5));
        assert_eq!((window.from_seconds, window.seconds, window.cpu_user_seconds), (1.0, 2.0, 1.5));
        assert_eq!(window.other_cpu_seconds, 1.5, "the machine's 3.0 without the relay's");
        assert_eq!((window.events_received, window.events_delivered, window.events()), (20, 10, 10));
        assert_eq!((window.received_bytes, window.imbalance()), (200, Some(2.0)));
    }

    #[test]
    fn a_machine_that_idles_is_not_busy() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!("cpu  {ticks} 0 {ticks} 999 999 0 {ticks} {ticks} 777 777\ncpu0 1 2 3");
        assert_eq!((busy_seconds(&stat), busy_seconds("")), (4.0, 0.0));
    }

    #[test]
    fn a_window_needs_time_behind_the_warm_up() {
        assert_eq!(Edges::of(SECOND, None), None);
        assert_eq!(Edges::of(SECOND, Some(SECOND)), None);
        let edges = Edges::of(SECOND, Some(3 * SECOND)).unwrap();
        assert_eq!(edges, Edges { from: SECOND, to: Duration::from_millis(2_800) });
    }

    #[test]
    fn it_sleeps_until_what_comes_next() {
        let edges = Some(Edges { from: SECOND, to: 2 * SECOND });
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(950), ms(1_040), edges), ms(50));
        assert_eq!(pause(ms(1_000), ms(1_040), edges), ms(40));
        assert_eq!(pause(ms(1_500), ms(1_400), edges), ms(0), "a sample that is late is taken at once");
    }
}
