//! What the sink does wrong on purpose: the settings, and the draw for one call. A draw depends on the seed and
//! on the number of the call alone, so that a run can be repeated.

use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::units::{Delay, Span, Window, parse_number, parse_probability};

/// The settings: flags of `sink` and `run`, and the JSON of `POST /faults`, where what is left out is off.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Faults")]
pub struct Faults {
    /// Share of the records that are not accepted, each with an error code of its own.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub fail_records: f64,
    /// The error code of those records.
    #[arg(long, value_name = "CODE", default_value = "mixed")]
    pub fail_records_code: CodeMix,
    /// Share of the calls answered 503 ServiceUnavailableException; nothing is accepted.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub fail_calls: f64,
    /// A delivery stream that is throttled all the time, by 503 and by record in turn; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub throttle_stream: Vec<String>,
    /// A delivery stream that does not exist (ResourceNotFoundException); may be repeated.
    #[arg(long, value_name = "NAME")]
    pub missing: Vec<String>,
    /// Share of the calls accepted and left without an answer for --stall-for, then closed.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub stall: f64,
    /// How long a stalled call is left waiting.
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub stall_for: Span,
    /// Share of the calls accepted, whose connection is then closed without an answer.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub cut: f64,
    /// Share of the calls whose connection is closed before the body is read; nothing is accepted.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub cut_early: f64,
    /// Share of the calls accepted and answered 200 with a body that cannot be understood.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub garbage: f64,
    /// Share of the calls answered with a FailedPutCount that disagrees with the entries, which are right.
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub miscount: f64,
    /// Share of the calls answered 500 InternalFailure; about half of them are accepted.
    #[arg(long = "error-500", value_name = "P", default_value = "0", value_parser = parse_probability)]
    pub error_500: f64,
    /// Time between a call and its answer, such as 20ms or 5ms-50ms.
    #[arg(long, value_name = "MIN-MAX")]
    pub latency: Option<Delay>,
    /// Time since the start, such as 5-15 (seconds), in which every call is answered 503.
    #[arg(long, value_name = "FROM-TO")]
    pub down: Option<Window>,
    /// Time since the start in which the sink does not listen, and connections are closed.
    #[arg(long, value_name = "FROM-TO")]
    pub refuse: Option<Window>,
    /// A call with a record that contains this text is refused as a whole (ValidationException).
    #[arg(long, value_name = "TEXT")]
    pub poison: Option<String>,
    /// Bytes a second that each delivery stream accepts, with a second's worth of burst; the rest is throttled.
    #[arg(long, value_name = "BYTES_PER_S", value_parser = parse_number)]
    pub quota: Option<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            fail_records: 0.0,
            fail_records_code: CodeMix::Mixed,
            fail_calls: 0.0,
            throttle_stream: Vec::new(),
            missing: Vec::new(),
            stall: 0.0,
            stall_for: Span(Duration::from_secs(60)),
            cut: 0.0,
            cut_early: 0.0,
            garbage: 0.0,
            miscount: 0.0,
            error_500: 0.0,
            latency: None,
            down: None,
            refuse: None,
            poison: None,
            quota: None,
        }
    }
}

/// Which error codes failing records carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeMix {
    /// Either, at random.
    Mixed,
    /// ServiceUnavailableException, "Slow down."
    Throttled,
    /// InternalFailure.
    Internal,
}

/// Why one record was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// ServiceUnavailableException, "Slow down."
    Throttled,
    /// InternalFailure.
    Internal,
}

/// A fault of a whole call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFault {
    /// Closed before the body is read.
    CutEarly,
    /// 503, nothing accepted.
    Unavailable,
    /// Accepted, never answered.
    Stall,
    /// Accepted, closed without an answer.
    Cut,
    /// Accepted, answered with nonsense.
    Garbage(Garbage),
    /// Answered 500.
    Error500 {
        /// Whether its records were accepted all the same.
        accepted: bool,
    },
    /// Answered with a wrong FailedPutCount.
    Miscount,
}

/// The ways in which an answer cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Garbage {
    /// JSON that ends in the middle.
    Truncated,
    /// No JSON at all.
    Nonsense,
    /// An empty body.
    Empty,
    /// One entry too few in RequestResponses.
    TooShort,
    /// One entry too many in RequestResponses.
    TooLong,
}

const GARBAGE: [Garbage; 5] =
    [Garbage::Truncated, Garbage::Nonsense, Garbage::Empty, Garbage::TooShort, Garbage::TooLong];

/// What was drawn for one call.
#[derive(Debug)]
pub struct Draw {
    /// The fault of the whole call, if any.
    pub fault: Option<CallFault>,
    /// Time between the call and its answer.
    pub delay: Duration,
    random: Rng,
}

impl Faults {
    /// Whether the settings make sense.
    ///
    /// # Errors
    ///
    /// A sentence on what does not.
    pub fn validate(&self) -> Result<(), String> {
        let call_faults = self.call_faults().map(|(p, _)| p);
        let in_range = |p: &f64| (0.0..=1.0).contains(p);
        if !call_faults.iter().chain([&self.fail_records]).all(in_range) {
            return Err("a probability must lie between 0 and 1".to_owned());
        }
        if call_faults.iter().sum::<f64>() > 1.0 {
            return Err("the probabilities of faults of whole calls add up to more than 1".to_owned());
        }
        if self.poison.as_ref().is_some_and(String::is_empty) {
            return Err("`poison` must not be empty, since every record contains that".to_owned());
        }
        Ok(())
    }

    fn call_faults(&self) -> [(f64, CallFault); 7] {
        [
            (self.cut_early, CallFault::CutEarly),
            (self.fail_calls, CallFault::Unavailable),
            (self.stall, CallFault::Stall),
            (self.cut, CallFault::Cut),
            (self.garbage, CallFault::Garbage(Garbage::Truncated)),
            (self.error_500, CallFault::Error500 { accepted: true }),
            (self.miscount, CallFault::Miscount),
        ]
    }

    /// Draws for the call with this number.
    pub fn draw(&self, seed: u64, call: u64) -> Draw {
        let mut random = Rng::with_seed(seed ^ call.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut left = random.f64();
        let drawn = self.call_faults().into_iter().find(|(p, _)| {
            left -= p;
            left < 0.0
        });
        let fault = drawn.map(|(_, fault)| match fault {
            CallFault::Garbage(_) => CallFault::Garbage(GARBAGE[random.usize(..GARBAGE.len())]),
            CallFault::Error500 { .. } => CallFault::Error500 { accepted: random.bool() },
            fault => fault,
        });
        let delay = self.latency.map_or(Duration::ZERO, |latency| {
            latency.min + (latency.max - latency.min).mul_f64(random.f64())
        });
        Draw { fault, delay, random }
    }

    /// Draws for the next record of a call.
    pub fn record(&self, draw: &mut Draw) -> Option<RecordError> {
        if self.fail_records == 0.0 || draw.random.f64() >= self.fail_records {
            return None;
        }
        Some(match self.fail_records_code {
            CodeMix::Mixed if draw.random.bool() => RecordError::Throttled,
            CodeMix::Mixed | CodeMix::Internal => RecordError::Internal,
            CodeMix::Throttled => RecordError::Throttled,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_repeatable_and_as_frequent_as_asked() {
        let faults =
            Faults { fail_calls: 0.1, cut: 0.05, garbage: 0.05, fail_records: 0.3, ..Faults::default() };
        let faulty = |seed| (0..10_000).filter_map(|call| faults.draw(seed, call).fault).collect::<Vec<_>>();
        let first = faulty(1);
        assert_eq!(first, faulty(1));
        assert_ne!(first, faulty(2));
        let share = |wanted: fn(&CallFault) -> bool| first.iter().filter(|f| wanted(f)).count();
        assert!((900..1_100).contains(&share(|f| *f == CallFault::Unavailable)));
        assert!((400..600).contains(&share(|f| *f == CallFault::Cut)));
        assert!((400..600).contains(&share(|f| matches!(f, CallFault::Garbage(_)))));
        let mut draw = faults.draw(1, 0);
        let failed = (0..10_000).filter(|_| faults.record(&mut draw).is_some()).count();
        assert!((2_800..3_200).contains(&failed), "{failed}");
    }

    #[test]
    fn without_faults_nothing_is_drawn() {
        let faults = Faults::default();
        for call in 0..1_000 {
            let mut draw = faults.draw(1, call);
            assert!(draw.fault.is_none() && draw.delay.is_zero() && faults.record(&mut draw).is_none());
        }
    }

    #[test]
    fn settings_come_as_json_with_unknown_names_refused() {
        let json =
            r#"{"fail_records":0.3,"fail_records_code":"internal","latency":"5ms-50ms","down":"5-15"}"#;
        let faults: Faults = serde_json::from_str(json).unwrap();
        assert_eq!(faults.fail_records_code, CodeMix::Internal);
        assert!(faults.down.unwrap().contains(Duration::from_secs(7)));
        let text = serde_json::to_string(&faults).unwrap();
        assert_eq!(serde_json::from_str::<Faults>(&text).unwrap(), faults);
        assert!(serde_json::from_str::<Faults>(r#"{"fail_record":1}"#).is_err());
    }

    #[test]
    fn impossible_settings_are_refused() {
        let faults = Faults { cut: 0.6, garbage: 0.6, ..Faults::default() };
        assert!(faults.validate().unwrap_err().contains("more than 1"));
        assert!(Faults { fail_records: 2.0, ..Faults::default() }.validate().is_err());
        assert!(Faults { poison: Some(String::new()), ..Faults::default() }.validate().is_err());
    }
}
