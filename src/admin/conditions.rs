//! What is wrong, or out of the ordinary, in sentences: what `/status` says in `conditions`, and the page at its top.
//! It judges figures that others counted, and knows no source of them.

use std::time::{Duration, Instant};

use crate::delivery::lane::LaneState;
use crate::delivery::{LaneError, LaneView};
use crate::frame::Reject;
use crate::lifecycle::Stage;
use crate::metrics::{Drop, Outcome};

use super::watch::Rates;

/// An error of a lane that makes calls again counts for so long: under a quota calls fail and succeed in turn.
const ERROR_LASTS: Duration = Duration::from_secs(10);
/// Events that are older than this are late, whatever their lanes say.
const LATE_SECONDS: f64 = 60.0;
/// Parts of the spool, and of the memory for events, at which it is said that they fill.
const SPOOL_FILLING: f64 = 0.7;
const SPOOL_NEARLY_FULL: f64 = 0.95;
const MEMORY_NEARLY_FULL: f64 = 0.9;
/// Rates over more than this are not of now.
const NOW: Duration = Duration::from_secs(10);
/// Credentials that last no longer than this should have been renewed.
const CREDENTIALS_SHORT: Duration = Duration::from_secs(600);
/// A shard that is busier than this, while all are half as busy on average, has too many of the connections.
const SHARD_BUSY: f64 = 0.8;

/// One sentence about the state of the relay.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Condition {
    /// How bad it is.
    pub severity: Severity,
    /// Which it is, for programs.
    pub kind: &'static str,
    /// What a human should know.
    pub sentence: String,
}

/// How bad a condition is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Events are lost, or will be unless somebody acts.
    Critical,
    /// Nothing is lost; somebody should look.
    Warning,
    /// As somebody wanted it.
    Info,
}

/// What is judged.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub stage: Stage,
    pub destination: &'a str,
    pub held: u64,
    pub oldest_seconds: Option<f64>,
    pub lanes: &'a [LaneView],
    pub now: Instant,
    pub rates: &'a Rates,
    pub spool_bytes: u64,
    /// 0 where there is no spool.
    pub spool_limit: u64,
    pub spool_is_failing: bool,
    /// Whether what was read of the configuration last is what holds.
    pub is_config_current: bool,
    pub spool_damaged: u64,
    pub memory_used: u64,
    pub memory_limit: u64,
    pub paused: u64,
    /// Until the credentials expire; zero where they have.
    pub credentials: Option<Duration>,
    pub busy_ratios: &'a [f64],
}

/// Everything there is to say, the worst first.
pub(super) fn conditions(facts: &Facts<'_>) -> Vec<Condition> {
    let mut all = Vec::new();
    all.extend(stage(facts));
    lanes(facts, &mut all);
    losses(facts, &mut all);
    resources(facts, &mut all);
    all.extend(configuration(facts.is_config_current));
    all.extend(imbalance(facts.busy_ratios));
    all.sort_by_key(|condition| condition.severity);
    all
}

fn say(severity: Severity, kind: &'static str, sentence: String) -> Condition {
    Condition { severity, kind, sentence }
}

fn stage(facts: &Facts<'_>) -> Option<Condition> {
    match facts.stage {
        Stage::Ready => None,
        Stage::Starting => {
            Some(say(Severity::Info, "starting", "Starting: no connection is accepted yet.".to_owned()))
        }
        Stage::Maintenance => Some(say(
            Severity::Info,
            "maintenance",
            "In maintenance: /readyz says 503, so that no new connections are sent here. Those that come are served."
                .to_owned(),
        )),
        Stage::Draining => Some(say(
            Severity::Warning,
            "draining",
            match facts.held {
                0 => "Draining: everything that was received is settled. The process is about to end.".to_owned(),
                held => format!("Draining: {} still to deliver. Then the process ends.", count(held, "event is", "events are")),
            },
        )),
    }
}

fn lanes(facts: &Facts<'_>, all: &mut Vec<Condition>) {
    let is_recent = |error: &LaneError| facts.now.saturating_duration_since(error.at) < ERROR_LASTS;
    let (mut failing, mut refused, mut throttled, mut parked) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for lane in facts.lanes {
        let Some(error) = &lane.last_error else { continue };
        match (lane.state, error.outcome) {
            (LaneState::Parked, _) => parked.push(lane),
            (LaneState::Active, _) if !is_recent(error) => (),
            (_, Outcome::Throttled) => throttled.push(lane),
            (LaneState::Active, _) => (),
            (LaneState::BackingOff, Outcome::Rejected) => refused.push(lane),
            (LaneState::BackingOff, _) => failing.push(lane),
        }
    }
    let destination = facts.destination;
    let kept = format!("Their events are kept and tried again{}.", oldest(facts.oldest_seconds));
    let error = |lanes: &[&LaneView]| {
        let newest = lanes.iter().filter_map(|lane| lane.last_error.as_ref()).max_by_key(|error| error.at);
        newest.map_or_else(String::new, |error| format!("“{}”", error.message.trim_end_matches('.')))
    };
    if !failing.is_empty() {
        let sentence =
            format!("{} cannot deliver to {destination}: {}. {kept}", lanes_of(&failing), error(&failing));
        all.push(say(Severity::Critical, "lanes_failing", sentence));
    }
    if !refused.is_empty() {
        let is = if refused.len() == 1 { "is" } else { "are" };
        let sentence =
            format!("{} {is} refused by {destination}: {}. {kept}", lanes_of(&refused), error(&refused));
        all.push(say(Severity::Critical, "lanes_refused", sentence));
    }
    if !parked.is_empty() {
        let is = if parked.len() == 1 { "is" } else { "are" };
        let sentence = format!(
            "{} {is} parked, and tried now and then: {}. Events are kept up to their stream's share of memory; beyond it they are dropped.",
            lanes_of(&parked),
            error(&parked)
        );
        all.push(say(Severity::Critical, "lanes_parked", sentence));
    }
    if !throttled.is_empty() {
        let is = if throttled.len() == 1 { "is" } else { "are" };
        let sentence = format!("{} {is} throttled: {}. {kept}", lanes_of(&throttled), error(&throttled));
        all.push(say(Severity::Warning, "lanes_throttled", sentence));
    }
    let is_explained =
        !(failing.is_empty() && refused.is_empty() && throttled.is_empty() && parked.is_empty());
    if let Some(age) = facts.oldest_seconds.filter(|age| *age > LATE_SECONDS && !is_explained) {
        let sentence = format!("The oldest event that is held was received {} ago.", duration(age));
        all.push(say(Severity::Warning, "late", sentence));
    }
}

fn losses(facts: &Facts<'_>, all: &mut Vec<Condition>) {
    let dropping = worst(&Drop::ALL.map(Drop::label), &facts.rates.dropped);
    let when = |rate| match facts.rates.window {
        window if window > NOW => format!("within the last {}", duration(window.as_secs_f64())),
        _ => format!("{} a second now", figure(rate)),
    };
    if let Some((rate, reasons)) = dropping {
        let sentence = format!("Events were dropped, {}: {reasons}.", when(rate));
        all.push(say(Severity::Critical, "dropping", sentence));
    }
    if let Some((rate, reasons)) = worst(&Reject::ALL.map(Reject::label), &facts.rates.rejected) {
        let sentence = format!(
            "Lines were not taken, {}: {reasons}. What they look like, and who sends them, is under \"rejected\".",
            when(rate)
        );
        all.push(say(Severity::Warning, "rejecting", sentence));
    }
    if facts.rates.refused > 0.0 {
        let sentence = format!(
            "Connections were closed at once, {}: as many were open as may be.",
            when(facts.rates.refused)
        );
        all.push(say(Severity::Warning, "refusing", sentence));
    }
}

fn resources(facts: &Facts<'_>, all: &mut Vec<Condition>) {
    let memory = facts.memory_used as f64 / facts.memory_limit.max(1) as f64;
    if memory >= MEMORY_NEARLY_FULL {
        let sentence = format!(
            "Memory for events is at its limit: {:.0} % of {} are used{}.",
            memory * 100.0,
            size(facts.memory_limit),
            paused(facts.paused, ", and ", "")
        );
        all.push(say(Severity::Critical, "memory_full", sentence));
    } else if facts.paused > 0 {
        let sentence = paused(facts.paused, "", ": their streams hold all the memory that they may.");
        all.push(say(Severity::Warning, "connections_paused", sentence));
    }
    all.extend(spool(facts));
    if facts.spool_is_failing {
        let sentence =
            "The disk of the spool fails, and what comes stays in memory; the log says why.".to_owned();
        all.push(say(Severity::Critical, "spool_failing", sentence));
    }
    match facts.credentials {
        Some(left) if left.is_zero() => all.push(say(
            Severity::Critical,
            "credentials_expired",
            "The AWS credentials have expired, and no new ones could be had.".to_owned(),
        )),
        Some(left) if left < CREDENTIALS_SHORT => {
            let sentence = format!("The AWS credentials expire in {}.", duration(left.as_secs_f64()));
            all.push(say(Severity::Warning, "credentials_expiring", sentence));
        }
        _ => (),
    }
}

fn spool(facts: &Facts<'_>) -> Option<Condition> {
    if facts.spool_limit == 0 {
        return None;
    }
    let part = facts.spool_bytes as f64 / facts.spool_limit as f64;
    if part < SPOOL_FILLING {
        return (facts.spool_damaged > 0).then(|| {
            let damaged =
                count(facts.spool_damaged, "segment of the spool was", "segments of the spool were");
            say(
                Severity::Warning,
                "spool_damaged",
                format!("{damaged} damaged, and put aside into quarantine."),
            )
        });
    }
    let left = facts.spool_limit.saturating_sub(facts.spool_bytes) as f64;
    let growth = if facts.rates.window > NOW { 0.0 } else { facts.rates.spool_bytes };
    let forecast = if part >= 1.0 {
        " Nothing more goes to disk.".to_owned()
    } else if growth > 0.0 {
        format!(" At this rate it is full in {}.", duration(left / growth))
    } else if growth < 0.0 {
        " It is emptying.".to_owned()
    } else {
        String::new()
    };
    let severity = if part >= SPOOL_NEARLY_FULL { Severity::Critical } else { Severity::Warning };
    let (used, limit) = (size(facts.spool_bytes), size(facts.spool_limit));
    let sentence = format!("The spool is {:.0} % full: {used} of {limit}.{forecast}", part * 100.0);
    Some(say(severity, "spool_filling", sentence))
}

fn configuration(is_current: bool) -> Option<Condition> {
    let sentence = "The configuration was to be read again and is wrong: what held before holds on. The log, and \
                    the answer to POST /reload, say what is wrong.";
    (!is_current).then(|| say(Severity::Warning, "reload_refused", sentence.to_owned()))
}

fn imbalance(busy: &[f64]) -> Option<Condition> {
    let (index, most) = busy.iter().copied().enumerate().max_by(|one, other| one.1.total_cmp(&other.1))?;
    let mean = busy.iter().sum::<f64>() / busy.len() as f64;
    (busy.len() > 1 && most > SHARD_BUSY && mean < most / 2.0).then(|| {
        let sentence = format!(
            "Shard {index} is busy {:.0} % of the time, and all of them {:.0} % on average: its connections bring more than those of the others.",
            most * 100.0,
            mean * 100.0
        );
        say(Severity::Warning, "shards_unequal", sentence)
    })
}

/// The sum of some rates, and the names of those above zero.
fn worst(names: &[&str], rates: &[f64]) -> Option<(f64, String)> {
    let above: Vec<&str> =
        names.iter().zip(rates).filter(|(_, rate)| **rate > 0.0).map(|(name, _)| *name).collect();
    (!above.is_empty()).then(|| (rates.iter().sum(), above.join(", ")))
}

fn lanes_of(lanes: &[&LaneView]) -> String {
    match lanes {
        [one] => format!("The lane {}", one.delivery_stream),
        many => format!("{} lanes", many.len()),
    }
}

fn paused(paused: u64, before: &str, after: &str) -> String {
    match paused {
        0 => String::new(),
        paused => format!("{before}{} paused{after}", count(paused, "connection is", "connections are")),
    }
}

fn oldest(seconds: Option<f64>) -> String {
    seconds.map_or_else(String::new, |age| format!("; the oldest held is {} old", duration(age)))
}

fn count(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// A rate as it is read: no decimals where they say nothing.
fn figure(rate: f64) -> String {
    match rate {
        ..10.0 => format!("{rate:.1}"),
        10.0..10_000.0 => format!("{rate:.0}"),
        _ => format!("{:.1} k", rate / 1_000.0),
    }
}

/// In seconds, minutes, or hours and minutes.
fn duration(seconds: f64) -> String {
    let seconds = seconds.clamp(0.0, 1e9).round() as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// In the largest binary unit that leaves a figure above one.
fn size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(unit, name)| {
            let figure = bytes as f64 / unit as f64;
            if figure < 10.0 && figure.fract() > 0.05 {
                format!("{figure:.1} {name}")
            } else {
                format!("{figure:.0} {name}")
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn lane(name: &str, state: LaneState, outcome: Outcome, at: Instant) -> LaneView {
        let message = "no connection to 10.0.0.1.".to_owned();
        let last_error = Some(LaneError { at, outcome, message });
        LaneView { delivery_stream: name.into(), state, in_flight: 0, rate: None, streams: 1, last_error }
    }

    static QUIET: LazyLock<Rates> = LazyLock::new(Rates::default);

    fn said<'a>(change: impl FnOnce(&mut Facts<'a>)) -> Vec<(Severity, &'static str, String)> {
        let mut facts = Facts {
            stage: Stage::Ready,
            destination: "firehose",
            held: 0,
            oldest_seconds: None,
            lanes: &[],
            now: Instant::now() + Duration::from_secs(60),
            rates: &QUIET,
            spool_bytes: 0,
            spool_limit: 0,
            spool_is_failing: false,
            is_config_current: true,
            spool_damaged: 0,
            memory_used: 0,
            memory_limit: 100 << 20,
            paused: 0,
            credentials: None,
            busy_ratios: &[0.2, 0.1],
        };
        change(&mut facts);
        let told = |one: Condition| (one.severity, one.kind, one.sentence);
        conditions(&facts).into_iter().map(told).collect()
    }

    fn sentence<'a>(change: impl FnOnce(&mut Facts<'a>)) -> String {
        let [(_, _, sentence)] = said(change).try_into().expect("one thing is said");
        sentence
    }

    #[test]
    fn nothing_is_said_where_all_is_well() {
        let long_ago = Instant::now();
        let recovered = [lane("a", LaneState::Active, Outcome::Throttled, long_ago)];
        assert_eq!(said(|facts| facts.lanes = &recovered), []);
    }

    #[test]
    fn lanes_that_fail_are_counted_and_the_oldest_event_is_named() {
        let now = Instant::now();
        let down = ["a", "b", "c"].map(|name| lane(name, LaneState::BackingOff, Outcome::Internal, now));
        let sentence = sentence(|facts| (facts.lanes, facts.oldest_seconds) = (&down, Some(42.3)));
        assert_eq!(
            sentence,
            "3 lanes cannot deliver to firehose: “no connection to 10.0.0.1”. Their events are kept and tried again; \
             the oldest held is 42 s old."
        );
    }

    #[test]
    fn each_kind_of_trouble_of_lanes_is_told_apart_and_the_worst_comes_first() {
        let now = Instant::now() + Duration::from_secs(60);
        let lanes = [
            lane("slow", LaneState::Active, Outcome::Throttled, now),
            lane("gone", LaneState::Parked, Outcome::Rejected, now),
            lane("denied", LaneState::BackingOff, Outcome::Rejected, now),
            lane("unknown", LaneState::BackingOff, Outcome::Unknown, now),
        ];
        let said = said(|facts| facts.lanes = &lanes);
        let kinds: Vec<&str> = said.iter().map(|(_, kind, _)| *kind).collect();
        assert_eq!(kinds, ["lanes_failing", "lanes_refused", "lanes_parked", "lanes_throttled"]);
        for ((_, _, sentence), name) in said.iter().zip(["unknown", "denied", "gone", "slow"]) {
            assert!(sentence.starts_with(&format!("The lane {name} ")), "{sentence}");
        }
    }

    #[test]
    fn a_spool_that_fills_is_forecast() {
        let filling = |growth: f64, bytes: u64| {
            let rates = Rates { spool_bytes: growth, ..Rates::default() };
            sentence(|facts| {
                (facts.spool_bytes, facts.spool_limit, facts.rates) = (bytes << 20, 100 << 20, &rates);
            })
        };
        assert_eq!(
            filling(1024.0 * 1024.0, 80),
            "The spool is 80 % full: 80 MiB of 100 MiB. At this rate it is full in 20 s."
        );
        assert!(filling(-1.0, 80).ends_with("It is emptying."));
        assert!(filling(0.0, 100).ends_with("Nothing more goes to disk."));
        assert_eq!(said(|facts| (facts.spool_bytes, facts.spool_limit) = (69, 100)), []);
    }

    #[test]
    fn losses_and_short_resources_are_said() {
        let mut rates = Rates::default();
        rates.dropped[Drop::Memory as usize] = 120.4;
        rates.rejected[Reject::NoSpace as usize] = 0.5;
        let said = said(|facts| {
            (facts.memory_used, facts.paused, facts.rates) = (95 << 20, 2, &rates);
            facts.credentials = Some(Duration::from_secs(300));
            facts.busy_ratios = &[0.05, 0.95, 0.05, 0.05];
        });
        let sentences: Vec<&str> = said.iter().map(|(_, _, sentence)| sentence.as_str()).collect();
        assert_eq!(
            sentences,
            [
                "Events were dropped, 120 a second now: memory.",
                "Memory for events is at its limit: 95 % of 100 MiB are used, and 2 connections are paused.",
                "Lines were not taken, 0.5 a second now: no_space. What they look like, and who sends them, is under \"rejected\".",
                "The AWS credentials expire in 5 min.",
                "Shard 1 is busy 95 % of the time, and all of them 28 % on average: its connections bring more than \
                 those of the others.",
            ]
        );
    }

    #[test]
    fn what_was_since_a_look_long_ago_is_not_told_as_of_now() {
        let mut rates = Rates { window: Duration::from_secs(3 * 3600), spool_bytes: 1.0, ..Rates::default() };
        rates.dropped[Drop::Parked as usize] = 0.001;
        assert_eq!(
            sentence(|facts| facts.rates = &rates),
            "Events were dropped, within the last 3 h: parked."
        );
    }

    #[test]
    fn the_stage_is_said_and_what_a_drain_has_left() {
        let draining = |held| sentence(|facts| (facts.stage, facts.held) = (Stage::Draining, held));
        assert_eq!(draining(1), "Draining: 1 event is still to deliver. Then the process ends.");
        assert_eq!(draining(60), "Draining: 60 events are still to deliver. Then the process ends.");
        assert!(draining(0).contains("everything that was received is settled"));
        assert!(sentence(|facts| facts.stage = Stage::Maintenance).contains("/readyz says 503"));
    }
}
