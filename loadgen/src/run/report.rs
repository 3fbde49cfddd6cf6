//! What a run found: the JSON, and the tables for people.

use serde::Serialize;

use super::Destination;
use super::relay::Usage;
use super::samples::{Sample, Window};
use super::verify::{Fate, RelayCounts, Verdict};
use crate::report::{grouped, latency, ratio, table};
use crate::send::{Load, Sent};
use crate::sink::timeline::Timeline;
use crate::sink::totals::{Percentiles, Totals};

/// Everything about one run. `version` rises when a field changes its meaning.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// 1.
    pub version: u32,
    /// Whether every check holds.
    pub ok: bool,
    /// The checks.
    pub checks: Vec<Verdict>,
    /// Where the relay delivered to.
    pub destination: Destination,
    /// What was to be sent.
    pub load: Load,
    /// Arguments given to the relay besides the usual ones.
    pub relay_arguments: Vec<String>,
    /// The CPU that the relay was bound to.
    pub pin_relay: Option<usize>,
    /// The CPU that sender and sink were bound to.
    pub pin_load: Option<usize>,
    /// From the first planned event to the last accepted one, or where that cannot be seen, until nothing was held.
    pub seconds: f64,
    /// Events sent, over `seconds`.
    pub events_per_second: f64,
    /// Payload bytes sent (each event with its LF), over `seconds`.
    pub payload_bytes_per_second: f64,
    /// What the relay used from its start line until nothing was held.
    pub relay: RelayUsage,
    /// CPU of sender and sink, a nanosecond an event: whether they are what limits the run.
    pub load_cpu_ns_per_event: f64,
    /// What became of the events.
    pub events: Fate,
    /// The relay's own figures.
    pub metrics: RelayCounts,
    /// From planned to accepted; left out where acceptance cannot be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Percentiles>,
    /// Billed bytes over payload bytes; left out where nothing is billed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billed_per_payload: Option<f64>,
    /// What was sent.
    pub sent: Sent,
    /// The part of the run between warm-up and drain; left out where none was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// How the run went, a sample every 100 ms or less often: at most about 600.
    pub samples: Vec<Sample>,
    /// Latency by quantile, for a plot: pairs of a quantile below 1 and milliseconds.
    pub latency_curve: Vec<(f64, f64)>,
    /// The sink's ledger; for `directory`, that of the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<Totals>,
    /// Accepted events by time, where that was asked for.
    #[serde(skip)]
    pub timeline: Option<Timeline>,
}

/// What the relay used of the machine.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RelayUsage {
    /// CPU in its own code, a nanosecond an event.
    pub cpu_user_ns_per_event: f64,
    /// CPU in the kernel, a nanosecond an event.
    pub cpu_system_ns_per_event: f64,
    /// Both.
    pub cpu_ns_per_event: f64,
    /// CPU in its own code, in seconds.
    pub cpu_user_seconds: f64,
    /// CPU in the kernel, in seconds.
    pub cpu_system_seconds: f64,
    /// Resident memory when it was ready.
    pub resident_start_bytes: u64,
    /// Resident memory when nothing was held any more.
    pub resident_end_bytes: u64,
    /// The most resident memory.
    pub resident_peak_bytes: u64,
    /// The code it ended with on SIGTERM; none if it was killed.
    pub exit_code: Option<i32>,
}

impl RelayUsage {
    /// Between two looks.
    pub fn between(before: &Usage, after: &Usage, events: u64) -> Self {
        let (user, system) = after.cpu_since(before);
        let each = |seconds: f64| seconds * 1e9 / events.max(1) as f64;
        Self {
            cpu_user_ns_per_event: each(user),
            cpu_system_ns_per_event: each(system),
            cpu_ns_per_event: each(user + system),
            cpu_user_seconds: user,
            cpu_system_seconds: system,
            resident_start_bytes: before.resident_bytes,
            resident_end_bytes: after.resident_bytes,
            resident_peak_bytes: after.resident_peak_bytes,
            exit_code: None,
        }
    }
}

impl Report {
    /// The tables: figures first, then the checks.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.figures(), self.verdicts())
    }

    fn figures(&self) -> String {
        let relay = &self.relay;
        let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        let percentiles = self.latency_ms.as_ref().map_or("-".to_owned(), latency);
        let (calls, records) = match &self.ledger {
            Some(ledger) if self.destination == Destination::Firehose => {
                (grouped(ledger.calls["total"]), grouped(ledger.totals.records_accepted))
            }
            _ => ("-".to_owned(), "-".to_owned()),
        };
        let billed = match &self.ledger {
            Some(ledger) if self.billed_per_payload.is_some() => {
                ratio(ledger.totals.billed_bytes, ledger.totals.raw_bytes)
            }
            _ => "-".to_owned(),
        };
        table(&[
            ("seed", self.sent.seed.to_string()),
            ("events sent", grouped(self.sent.events_sent)),
            ("seconds", format!("{:.3}", self.seconds)),
            ("events/s", grouped(self.events_per_second as u64)),
            ("payload GB/s", format!("{:.3}", self.payload_bytes_per_second / 1e9)),
            ("relay CPU ns/event", format!("{:.0}", relay.cpu_ns_per_event)),
            (
                "  user + system",
                format!("{:.0} + {:.0}", relay.cpu_user_ns_per_event, relay.cpu_system_ns_per_event),
            ),
            ("sender and sink CPU ns/event", format!("{:.0}", self.load_cpu_ns_per_event)),
            ("relay peak resident MB", megabytes(relay.resident_peak_bytes)),
            ("calls", calls),
            ("records", records),
            ("billed / payload", billed),
            ("latency ms p50 p90 p99 p99.9 max", percentiles),
            ("behind schedule, max ms", format!("{:.3}", self.sent.behind_schedule_ms_max)),
            ("lost", grouped(self.events.lost)),
            ("dropped", grouped(self.events.dropped)),
            (
                "duplicates (possible)",
                format!("{} ({})", self.events.duplicates, self.metrics.possible_duplicates),
            ),
            ("corrupted", grouped(self.events.corrupted)),
            ("reordered inside a record", grouped(self.events.reordered)),
        ])
        .to_string()
    }

    fn verdicts(&self) -> String {
        let line = |verdict: &Verdict| {
            let mark = if verdict.ok { "ok  " } else { "FAIL" };
            format!("{mark} {}: {}\n", verdict.name, verdict.detail)
        };
        let lines: String = self.checks.iter().map(line).collect();
        lines.replace(": \n", "\n")
    }
}
