//! The figures of a run: numbers with a name, in one order everywhere (table, JSON, HTML, comparison). What could
//! not be seen is left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::floor::Floors;
use crate::report::grouped;
use crate::run::report::Report;
use crate::run::samples::{Sample, Window};

/// The figures of one run.
pub type Figures = BTreeMap<Key, f64>;

/// The name of a figure: in the JSON as it stands here, in snake case. "In the window": from the end of the
/// warm-up to just before sending ends. "An event": over the smaller of the events received and delivered in the
/// window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// Events sent in the whole run.
    EventsSent,
    /// Length of the window, in seconds.
    WindowSeconds,
    /// Events a second in the window.
    EventsPerSecond,
    /// Bytes received a second in the window, frames and all, in units of 10^9.
    GigabytesPerSecond,
    /// Events received a second in the window.
    ReceivedPerSecond,
    /// Events delivered a second in the window.
    GoodputPerSecond,
    /// The worst second of the window over the best, in events that the sink accepted.
    GoodputWorstPerBestSecond,
    /// The relay's CPU time, in nanoseconds an event.
    CpuNsPerEvent,
    /// The part of it in the relay's own code.
    CpuUserNsPerEvent,
    /// The part of it in the kernel.
    CpuSystemNsPerEvent,
    /// The relay's CPU time over the window's length: 1 is one CPU, all the time.
    RelayCpus,
    /// The same for sender and sink: near 1 they are what limits the run.
    LoadCpus,
    /// The same for everything else on the machine: far above 0 the run was not alone, and tells little.
    OtherCpus,
    /// Resident memory when the relay was ready.
    ResidentStartBytes,
    /// Resident memory at the end of the window.
    ResidentEndBytes,
    /// The most resident memory of the whole run.
    ResidentPeakBytes,
    /// Mean resident memory of the window's last quarter over that of its first: 1 is flat.
    ResidentGrowth,
    /// Resident memory that idle connections added, in bytes.
    ResidentOverIdleBytes,
    /// The same for one connection.
    ResidentBytesPerConnection,
    /// The busiest shard's bytes over an equal share, in the window: 1 is even.
    ShardImbalance,
    /// Calls in the whole run.
    Calls,
    /// Records accepted in the whole run.
    Records,
    /// Bytes billed for the whole run.
    BilledBytes,
    /// Billed bytes over payload bytes.
    BilledPerPayload,
    /// Latency from the planned time to acceptance, in milliseconds, of the whole run: the median.
    LatencyP50Ms,
    /// Nine of ten.
    LatencyP90Ms,
    /// 99 of 100.
    LatencyP99Ms,
    /// 999 of 1,000.
    #[serde(rename = "latency_p99_9_ms")]
    LatencyP999Ms,
    /// The longest.
    LatencyMaxMs,
    /// How late, at worst, the sender built an event, in milliseconds.
    BehindScheduleMsMax,
    /// Events lost.
    Lost,
    /// Events dropped and counted as such by the relay.
    Dropped,
    /// Events accepted more than once.
    Duplicates,
    /// Floor: a bare receiver, in nanoseconds an event.
    FloorReceiveNs,
    /// Floor: the same with a pause before each look.
    FloorReceivePausedNs,
    /// Floor: line feeds found and payloads copied in memory.
    FloorScanNs,
    /// Floor: the same, each payload copied to the buffer of its stream; where calls are small, in place of that.
    FloorGatherNs,
    /// Floor: base64 in bulk.
    FloorBase64Ns,
    /// Floor: SHA-256 of the encoded bytes, one body at a time.
    FloorSha256Ns,
    /// Floor: SHA-256 of several full bodies at once, from memory.
    FloorSha256GroupedNs,
    /// Floor: SHA-256 of several short bodies at once, which stay in the cache. In no sum.
    FloorSha256GroupedCachedNs,
    /// Floor: the encoded bytes written to a loopback connection. In no sum that holds bare requests.
    FloorSendNs,
    /// Floor: the encoded bytes sent in bare requests of the size of the relay's calls, and the answers taken.
    FloorRequestsNs,
    /// Floor: the same by hyper. In no sum.
    FloorRequestsHyperNs,
    /// The sum of the floors that the destination needs, with the cheaper of the two receivers and the hash that the
    /// relay was told to use.
    FloorSumNs,
    /// The relay's CPU time an event over that sum.
    CpuPerFloor,
}

use Key::*;

/// All names with their titles, in order.
const TITLES: [(Key, &str); 46] = [
    (EventsSent, "events sent"),
    (WindowSeconds, "window, s"),
    (EventsPerSecond, "events/s"),
    (GigabytesPerSecond, "GB/s"),
    (ReceivedPerSecond, "received/s"),
    (GoodputPerSecond, "delivered/s"),
    (GoodputWorstPerBestSecond, "worst second / best"),
    (CpuNsPerEvent, "relay CPU ns/event"),
    (CpuUserNsPerEvent, "  user"),
    (CpuSystemNsPerEvent, "  system"),
    (RelayCpus, "relay CPUs used"),
    (LoadCpus, "sender and sink CPUs used"),
    (OtherCpus, "CPUs used by others"),
    (ResidentStartBytes, "resident at start, MB"),
    (ResidentEndBytes, "resident at end, MB"),
    (ResidentPeakBytes, "resident peak, MB"),
    (ResidentGrowth, "resident, last quarter / first"),
    (ResidentOverIdleBytes, "resident over none, MB"),
    (ResidentBytesPerConnection, "resident bytes/connection"),
    (ShardImbalance, "busiest shard / mean"),
    (Calls, "calls"),
    (Records, "records"),
    (BilledBytes, "billed bytes"),
    (BilledPerPayload, "billed / payload"),
    (LatencyP50Ms, "latency p50, ms"),
    (LatencyP90Ms, "latency p90, ms"),
    (LatencyP99Ms, "latency p99, ms"),
    (LatencyP999Ms, "latency p99.9, ms"),
    (LatencyMaxMs, "latency max, ms"),
    (BehindScheduleMsMax, "behind schedule max, ms"),
    (Lost, "lost"),
    (Dropped, "dropped"),
    (Duplicates, "duplicates"),
    (FloorReceiveNs, "floor: receive, ns/event"),
    (FloorReceivePausedNs, "floor: receive with pauses"),
    (FloorScanNs, "floor: memchr + memcpy"),
    (FloorGatherNs, "  the same by stream"),
    (FloorBase64Ns, "floor: base64"),
    (FloorSha256Ns, "floor: SHA-256, one at a time"),
    (FloorSha256GroupedNs, "floor: SHA-256, several at once"),
    (FloorSha256GroupedCachedNs, "  the same from the cache"),
    (FloorSendNs, "floor: send"),
    (FloorRequestsNs, "floor: send as bare requests"),
    (FloorRequestsHyperNs, "  the same by hyper"),
    (FloorSumNs, "sum of floors"),
    (CpuPerFloor, "relay / sum of floors"),
];

impl Key {
    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        TITLES.iter().map(|(key, _)| *key)
    }

    /// What people read, with the unit.
    pub fn title(self) -> &'static str {
        TITLES.iter().find(|(key, _)| *key == self).expect("every key has a title").1
    }

    /// A value as people read it, in the unit of the title.
    pub fn show(self, value: f64) -> String {
        match self {
            ResidentStartBytes | ResidentEndBytes | ResidentPeakBytes | ResidentOverIdleBytes => {
                format!("{:.1}", value / 1e6)
            }
            GigabytesPerSecond
            | ResidentGrowth
            | GoodputWorstPerBestSecond
            | BilledPerPayload
            | ShardImbalance
            | RelayCpus
            | LoadCpus
            | OtherCpus
            | CpuPerFloor => format!("{value:.3}"),
            _ if self.is_milliseconds() && value >= 1_000.0 => grouped(value.round() as u64),
            LatencyP50Ms | LatencyP90Ms | LatencyP99Ms | LatencyP999Ms | LatencyMaxMs
            | BehindScheduleMsMax | WindowSeconds => format!("{value:.1}"),
            _ if self.is_small_time() && value < 100.0 => format!("{value:.1}"),
            _ => grouped(value.max(0.0).round() as u64),
        }
    }

    /// The heading of the figures that it begins, in tables that have room for one.
    pub fn begins(self) -> Option<&'static str> {
        Some(match self {
            EventsSent => "Rate",
            CpuNsPerEvent => "CPU",
            ResidentStartBytes => "Memory",
            Calls => "Calls",
            LatencyP50Ms => "Latency",
            Lost => "Events that went wrong",
            FloorReceiveNs => "Floors, CPU ns/event",
            _ => return None,
        })
    }

    fn is_milliseconds(self) -> bool {
        (LatencyP50Ms..=BehindScheduleMsMax).contains(&self)
    }

    fn is_small_time(self) -> bool {
        matches!(self, CpuNsPerEvent | CpuUserNsPerEvent | CpuSystemNsPerEvent) || self >= FloorReceiveNs
    }
}

/// Reads the figures out of a report.
pub fn of(report: &Report, floors: Option<&Floors>) -> Figures {
    let mut figures = Figures::new();
    let relay = &report.relay;
    figures.extend([
        (EventsSent, report.sent.events_sent as f64),
        (ResidentStartBytes, relay.resident_start_bytes as f64),
        (ResidentPeakBytes, relay.resident_peak_bytes as f64),
        (BehindScheduleMsMax, report.sent.behind_schedule_ms_max),
        (Lost, report.events.lost as f64),
        (Dropped, report.events.dropped as f64),
        (Duplicates, report.events.duplicates as f64),
    ]);
    match &report.window {
        Some(window) => of_window(window, &report.samples, &mut figures),
        None => figures.extend([
            (EventsPerSecond, report.events_per_second),
            (CpuNsPerEvent, relay.cpu_ns_per_event),
            (CpuUserNsPerEvent, relay.cpu_user_ns_per_event),
            (CpuSystemNsPerEvent, relay.cpu_system_ns_per_event),
            (ResidentEndBytes, relay.resident_end_bytes as f64),
        ]),
    }
    of_sink(report, &mut figures);
    if let Some(floors) = floors {
        of_floors(floors, floors.sum(report.destination), &mut figures);
    }
    figures
}

fn of_window(window: &Window, samples: &[Sample], figures: &mut Figures) {
    let seconds = window.seconds.max(1e-9);
    let cpu = window.cpu_user_seconds + window.cpu_system_seconds;
    let each = |seconds: f64| seconds * 1e9 / window.events().max(1) as f64;
    figures.extend([
        (WindowSeconds, seconds),
        (EventsPerSecond, window.events() as f64 / seconds),
        (GigabytesPerSecond, window.received_bytes as f64 / 1e9 / seconds),
        (ReceivedPerSecond, window.events_received as f64 / seconds),
        (GoodputPerSecond, window.events_delivered as f64 / seconds),
        (CpuNsPerEvent, each(cpu)),
        (CpuUserNsPerEvent, each(window.cpu_user_seconds)),
        (CpuSystemNsPerEvent, each(window.cpu_system_seconds)),
        (RelayCpus, cpu / seconds),
        (LoadCpus, window.load_cpu_seconds / seconds),
        (OtherCpus, window.other_cpu_seconds / seconds),
        (ResidentEndBytes, window.resident_end_bytes as f64),
    ]);
    figures.extend(window.imbalance().map(|imbalance| (ShardImbalance, imbalance)));
    let inside = |sample: &&Sample| {
        (window.from_seconds..=window.from_seconds + window.seconds).contains(&sample.seconds)
    };
    let samples: Vec<Sample> = samples.iter().filter(inside).copied().collect();
    figures.extend(resident_growth(&samples).map(|growth| (ResidentGrowth, growth)));
    figures.extend(worst_per_best_second(&samples).map(|ratio| (GoodputWorstPerBestSecond, ratio)));
}

/// The mean of the last quarter over that of the first.
fn resident_growth(samples: &[Sample]) -> Option<f64> {
    let quarter = samples.len() / 4;
    let mean =
        |part: &[Sample]| part.iter().map(|s| s.resident_bytes as f64).sum::<f64>() / part.len() as f64;
    (quarter > 0).then(|| mean(&samples[samples.len() - quarter..]) / mean(&samples[..quarter]))
}

/// Of the whole seconds since the first sample; `None` where fewer than two were seen, or nothing was accepted.
fn worst_per_best_second(samples: &[Sample]) -> Option<f64> {
    let rates: Vec<f64> = accepted_by_second(samples).into_iter().map(|(_, rate)| rate).collect();
    let best = rates.iter().copied().fold(0.0, f64::max);
    let worst = rates.iter().copied().fold(f64::INFINITY, f64::min);
    (rates.len() >= 2 && best > 0.0).then(|| worst / best)
}

/// Events accepted a second, over steps of at least a second between samples, each at its middle.
pub fn accepted_by_second(samples: &[Sample]) -> Vec<(f64, f64)> {
    let mut rates = Vec::new();
    let Some(mut last) = samples.first() else { return rates };
    for sample in samples {
        let seconds = sample.seconds - last.seconds;
        if seconds >= 1.0 {
            let rate = (sample.accepted - last.accepted) as f64 / seconds;
            rates.push((last.seconds + seconds / 2.0, rate));
            last = sample;
        }
    }
    rates
}

fn of_sink(report: &Report, figures: &mut Figures) {
    if let (Some(ledger), Some(billed)) = (&report.ledger, report.billed_per_payload) {
        figures.extend([
            (Calls, ledger.calls["total"] as f64),
            (Records, ledger.totals.records_accepted as f64),
            (BilledBytes, ledger.totals.billed_bytes as f64),
            (BilledPerPayload, billed),
        ]);
    }
    if let Some(latency) = report.latency_ms.filter(|latency| latency.count > 0) {
        figures.extend([
            (LatencyP50Ms, latency.p50),
            (LatencyP90Ms, latency.p90),
            (LatencyP99Ms, latency.p99),
            (LatencyP999Ms, latency.p99_9),
            (LatencyMaxMs, latency.max),
        ]);
    }
}

fn of_floors(floors: &Floors, sum: f64, figures: &mut Figures) {
    let stages = &floors.stages;
    figures.extend([
        (FloorReceiveNs, floors.receive),
        (FloorReceivePausedNs, floors.receive_paused),
        (FloorScanNs, stages.scan),
        (FloorBase64Ns, stages.base64),
        (FloorSha256Ns, stages.sha256),
        (FloorSha256GroupedNs, stages.sha256_grouped),
        (FloorSha256GroupedCachedNs, stages.sha256_grouped_cached),
        (FloorSendNs, stages.send),
        (FloorSumNs, sum),
    ]);
    figures.extend(floors.gather.map(|gather| (FloorGatherNs, gather)));
    if let Some(requests) = floors.requests {
        figures.extend([(FloorRequestsNs, requests.bare), (FloorRequestsHyperNs, requests.hyper)]);
    }
    if let Some(cpu) = figures.get(&CpuNsPerEvent).copied().filter(|_| sum > 0.0) {
        figures.insert(CpuPerFloor, cpu / sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: f64, resident_bytes: u64, accepted: u64) -> Sample {
        Sample { seconds, resident_bytes, sent: 0, accepted }
    }

    #[test]
    fn names_are_unique_and_in_the_order_of_the_map() {
        let keys: Vec<Key> = Key::all().collect();
        assert!(keys.is_sorted() && keys.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(serde_json::to_string(&LatencyP999Ms).unwrap(), "\"latency_p99_9_ms\"");
        let figures = Figures::from([(CpuNsPerEvent, 3.5), (Lost, 0.0)]);
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(text, r#"{"cpu_ns_per_event":3.5,"lost":0.0}"#);
        assert_eq!(serde_json::from_str::<Figures>(&text).unwrap(), figures);
    }

    #[test]
    fn values_are_shown_in_the_unit_of_their_title() {
        assert_eq!(ResidentPeakBytes.show(12_340_000.0), "12.3");
        assert_eq!(EventsPerSecond.show(1_234_567.4), "1,234,567");
        assert_eq!((CpuNsPerEvent.show(33.26), CpuNsPerEvent.show(333.26)), ("33.3".into(), "333".into()));
        assert_eq!(BilledPerPayload.show(1.0), "1.000");
        assert_eq!(
            (LatencyMaxMs.show(17_301.5), LatencyP50Ms.show(264.23)),
            ("17,302".into(), "264.2".into())
        );
    }

    #[test]
    fn growth_and_unevenness_are_seen() {
        let flat: Vec<_> = (0..40).map(|i| sample(f64::from(i) / 10.0, 100, i as u64 * 10)).collect();
        assert_eq!(resident_growth(&flat), Some(1.0));
        assert!((worst_per_best_second(&flat).unwrap() - 1.0).abs() < 1e-9);
        let growing: Vec<_> = (1..9).map(|i| sample(f64::from(i), i as u64, (i * i) as u64)).collect();
        assert_eq!(resident_growth(&growing), Some(5.0));
        assert_eq!(worst_per_best_second(&growing), Some(3.0 / 15.0));
        assert_eq!((resident_growth(&[]), worst_per_best_second(&flat[..3])), (None, None));
    }
}
