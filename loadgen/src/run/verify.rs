//! What must hold after a run, each a named check with the figures it was judged by. It compares three
//! independent books: what was sent, what arrived, and what the relay says in its metrics.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::metrics::Metrics;
use crate::send::Sent;
use crate::sink::ledger::{Check, Counts, Ledger};

/// One thing that must hold.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// What was judged.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// The figures.
    pub detail: String,
}

impl Verdict {
    /// A judgement with its figures.
    pub fn new(name: &'static str, ok: bool, detail: impl Into<String>) -> Self {
        Self { name, ok, detail: detail.into() }
    }
}

/// The relay's own figures, summed over labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RelayCounts {
    /// `standpipe_events_received_total`
    pub received: u64,
    /// `standpipe_events_recovered_total`
    pub recovered: u64,
    /// `standpipe_events_delivered_total`
    pub delivered: u64,
    /// `standpipe_events_dropped_total`
    pub dropped: u64,
    /// `standpipe_events_held`
    pub held: u64,
    /// `standpipe_frames_rejected_total`
    pub rejected: u64,
    /// `standpipe_calls_total`
    pub calls: u64,
    /// `standpipe_possible_duplicate_events_total`
    pub possible_duplicates: u64,
    /// `standpipe_events_dropped_total` by reason.
    pub dropped_by_reason: BTreeMap<String, u64>,
    /// `standpipe_calls_total` by outcome.
    pub calls_by_outcome: BTreeMap<String, u64>,
}

impl RelayCounts {
    /// Sums a scrape up.
    pub fn of(metrics: &Metrics) -> Self {
        Self {
            received: metrics.sum("standpipe_events_received_total"),
            recovered: metrics.sum("standpipe_events_recovered_total"),
            delivered: metrics.sum("standpipe_events_delivered_total"),
            dropped: metrics.sum("standpipe_events_dropped_total"),
            held: metrics.sum("standpipe_events_held"),
            rejected: metrics.sum("standpipe_frames_rejected_total"),
            calls: metrics.sum("standpipe_calls_total"),
            possible_duplicates: metrics.sum("standpipe_possible_duplicate_events_total"),
            dropped_by_reason: metrics.sum_by("standpipe_events_dropped_total", "reason"),
            calls_by_outcome: metrics.sum_by("standpipe_calls_total", "outcome"),
        }
    }

    /// Whether all that was sent has arrived and left again.
    pub fn is_settled(&self, sent: u64) -> bool {
        self.held == 0 && self.received + self.rejected >= sent
    }
}

/// What became of the events sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// Sent and not accepted, without those that the relay counted as dropped.
    pub lost: u64,
    /// Counted by the relay as dropped.
    pub dropped: u64,
    /// Accepted more than once.
    pub duplicates: u64,
    /// Accepted damaged, or for another stream.
    pub corrupted: u64,
    /// Accepted and not built by loadgen.
    pub foreign: u64,
    /// Accepted behind a later one of the same connection in one record.
    pub reordered: u64,
    /// Accepted, good, and never sent.
    pub unexpected: u64,
}

/// What arrived where the events can be seen.
pub fn fate(sent: &Sent, ledger: &Ledger, counts: &Counts, check: Check, relay: &RelayCounts) -> Fate {
    let accepted = match check {
        Check::Full => accepted_of_sent(sent, ledger),
        Check::Light => counts.events_accepted.min(sent.events_sent),
        Check::None => relay.delivered.min(sent.events_sent),
    };
    let seen = if check == Check::None { relay.delivered } else { counts.events_accepted };
    let surplus = seen - accepted.min(seen);
    // Only the full ledger tells an event seen twice from one never sent.
    let (again, unexpected) = if check == Check::Full { (0, surplus) } else { (surplus, 0) };
    Fate {
        lost: (sent.events_sent - accepted).saturating_sub(relay.dropped),
        dropped: relay.dropped,
        duplicates: counts.duplicate_events + again,
        corrupted: counts.corrupted_events,
        foreign: counts.foreign_events,
        reordered: counts.reordered_events,
        unexpected,
    }
}

fn accepted_of_sent(sent: &Sent, ledger: &Ledger) -> u64 {
    let connections = 0..sent.events_by_connection.len();
    let of = |index: usize, name: &str| {
        let shares = connections.clone().map(|c| (c as u32, sent.share(c, index))).filter(|(_, n)| *n > 0);
        ledger.accepted_of(name, shares)
    };
    sent.streams.iter().enumerate().map(|(index, stream)| of(index, &stream.stream)).sum()
}

/// What was allowed to happen in this run.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// Events may be dropped, if they are counted.
    pub drops: bool,
    /// Calls may fail before the sink sees them, since it refused connections.
    pub unseen_calls: bool,
}

/// Judges the fate of the events.
pub fn of_fate(
    fate: &Fate,
    sent: &Sent,
    counts: &Counts,
    relay: &RelayCounts,
    allowed: Allowed,
) -> Vec<Verdict> {
    let none = |name, count: u64| Verdict::new(name, count == 0, count.to_string());
    let bounded = fate.duplicates <= relay.possible_duplicates;
    let duplicates = format!("{}, of {} counted as possible", fate.duplicates, relay.possible_duplicates);
    let dropped = format!("{}: {:?}", fate.dropped, relay.dropped_by_reason);
    vec![
        Verdict::new("nothing lost", fate.lost == 0, format!("{} of {}", fate.lost, sent.events_sent)),
        Verdict::new("nothing dropped", allowed.drops || fate.dropped == 0, dropped),
        Verdict::new("no uncounted duplicates", bounded, duplicates),
        none("nothing corrupted", fate.corrupted),
        none("nothing foreign", fate.foreign),
        none("nothing reordered inside a record", fate.reordered),
        none("nothing that was never sent", fate.unexpected),
        none("every event noted", counts.untracked_events),
        none("every record ends with a line", counts.unterminated_records),
        Verdict::new("every connection sent to its end", sent.is_complete(), sent.errors.join("; ")),
    ]
}

/// Judges the light check sums: they find damaged headers, and one event in place of another.
pub fn of_check_sums(sent: &Sent, ledger: &Ledger) -> Verdict {
    let mut by_stream: BTreeMap<String, u64> = BTreeMap::new();
    for (stream, check_sum) in ledger.check_sums() {
        let sum = by_stream.entry(stream).or_default();
        *sum = sum.wrapping_add(check_sum);
    }
    let differs = |stream: &str, sum: u64| by_stream.get(stream).copied().unwrap_or(0) != sum;
    let wrong: Vec<_> =
        sent.streams.iter().filter(|s| differs(&s.stream, s.check_sum)).map(|s| s.stream.as_str()).collect();
    Verdict::new("check sums of each stream agree", wrong.is_empty(), wrong.join(", "))
}

/// Judges the relay's metrics against what was sent.
pub fn of_metrics(metrics: &Metrics, sent: &Sent) -> Vec<Verdict> {
    let relay = RelayCounts::of(metrics);
    let received =
        format!("{} received, {} rejected, {} sent", relay.received, relay.rejected, sent.events_sent);
    vec![
        Verdict::new("everything sent was received", relay.received == sent.events_sent, received),
        Verdict::new("nothing held", relay.held == 0, relay.held.to_string()),
        identity(metrics),
    ]
}

/// `received + recovered = delivered + dropped + held` for every stream label.
fn identity(metrics: &Metrics) -> Verdict {
    let by_stream = |name: &str| metrics.sum_by(name, "stream");
    let received = by_stream("standpipe_events_received_total");
    let recovered = by_stream("standpipe_events_recovered_total");
    let delivered = by_stream("standpipe_events_delivered_total");
    let dropped = by_stream("standpipe_events_dropped_total");
    let held = by_stream("standpipe_events_held");
    let labels: BTreeSet<&String> =
        [&received, &recovered, &delivered, &dropped, &held].into_iter().flat_map(BTreeMap::keys).collect();
    let of = |counts: &BTreeMap<String, u64>, label: &str| counts.get(label).copied().unwrap_or(0);
    let broken = |label: &&String| {
        of(&received, label) + of(&recovered, label)
            != of(&delivered, label) + of(&dropped, label) + of(&held, label)
    };
    let wrong: Vec<_> = labels.iter().copied().filter(broken).map(String::as_str).collect();
    let detail = match wrong.is_empty() {
        true => format!("{} streams", labels.len()),
        false => format!("broken for {}", wrong.join(", ")),
    };
    Verdict::new("received + recovered = delivered + dropped + held", wrong.is_empty(), detail)
}

/// Judges the number of calls: what the relay counts is what the sink saw.
pub fn of_calls(sink_calls: u64, relay: &RelayCounts, allowed: Allowed) -> Verdict {
    let ok = sink_calls == relay.calls || (allowed.unseen_calls && sink_calls <= relay.calls);
    Verdict::new(
        "every call was counted",
        ok,
        format!("{sink_calls} at the sink, {} at the relay", relay.calls),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_judged_by_stream() {
        let text = |held: u64| {
            format!(
                "standpipe_events_received_total{{stream=\"a\"}} 10\nstandpipe_events_received_total{{stream=\"b\"}} 5\n\
                 standpipe_events_delivered_total{{stream=\"a\"}} 6\nstandpipe_events_delivered_total{{stream=\"b\"}} 5\n\
                 standpipe_events_dropped_total{{stream=\"a\",reason=\"memory\"}} 1\n\
                 standpipe_events_held{{stream=\"a\",place=\"open\"}} {held}\n\
                 standpipe_events_held{{stream=\"a\",place=\"retry\"}} 1\n"
            )
        };
        let judge = |held| identity(&Metrics::parse(&text(held)).unwrap());
        assert!(judge(2).ok);
        assert!(!judge(1).ok && judge(1).detail.contains("broken for a"));
    }

    #[test]
    fn calls_may_be_unseen_only_where_connections_were_refused() {
        let relay = RelayCounts { calls: 10, ..RelayCounts::default() };
        let ok = |seen, unseen_calls| of_calls(seen, &relay, Allowed { drops: false, unseen_calls }).ok;
        assert!(ok(10, false) && !ok(9, false) && !ok(11, true) && ok(9, true));
    }

    #[test]
    fn a_relay_is_settled_when_all_came_and_went() {
        let relay = RelayCounts { received: 9, rejected: 1, held: 0, ..RelayCounts::default() };
        assert!(relay.is_settled(10) && !relay.is_settled(11));
        assert!(!RelayCounts { held: 1, ..relay }.is_settled(10));
    }
}
