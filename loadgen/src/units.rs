//! The forms in which numbers are written on the command line and in `POST /faults`: counts, sizes, rates,
//! durations, ranges. Each parses from text and prints back as text; none has a default.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a text was not understood: a sentence that names the text and the form expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError(String);

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnitError {}

fn error(text: &str, expected: &str) -> UnitError {
    UnitError(format!("`{text}` is not {expected}"))
}

const SUFFIXES: [(&str, u64); 6] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

/// Parses a whole number that may carry underscores and one suffix: `k`, `M`, `G` (powers of 1,000) or `KiB`,
/// `MiB`, `GiB` (powers of 1,024).
pub fn parse_number(text: &str) -> Result<u64, UnitError> {
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|digits| (digits, *factor)))
        .unwrap_or((text, 1));
    let number: Option<u64> = digits.replace('_', "").parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| error(text, "a whole number such as 1000, 100k, 64KiB or 1M"))
}

/// Parses a duration: `500ms`, `10s`, `2m`; a bare number counts seconds.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| error(text, "a duration in seconds"));
    }
    humantime::parse_duration(text).map_err(|_| error(text, "a duration such as 500ms, 10s or 2m"))
}

/// Parses a probability: a number from 0 to 1.
pub fn parse_probability(text: &str) -> Result<f64, UnitError> {
    text.parse()
        .ok()
        .filter(|p| (0.0..=1.0).contains(p))
        .ok_or_else(|| error(text, "a probability from 0 to 1"))
}

/// How fast events are planned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "String")]
pub enum Rate {
    /// Flat out: an event is planned for the moment it is built.
    Max,
    /// This many events a second over all connections, more than 0.
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if matches!(text, "max" | "0") {
            return Ok(Self::Max);
        }
        if let Ok(number) = parse_number(text) {
            return Ok(Self::PerSecond(number as f64));
        }
        match text.parse::<f64>() {
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Self::PerSecond(rate)),
            _ => Err(error(text, "a rate such as 1000, 100k or 0.5 (events a second), or `max`")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::PerSecond(rate) => write!(f, "{rate}"),
        }
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

/// A range of sizes in bytes, both ends included: `250` or `64-1024`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Sizes {
    /// The smallest size, in bytes.
    pub min: usize,
    /// The largest size, in bytes; never below `min`.
    pub max: usize,
}

impl FromStr for Sizes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let bytes = |part| parse_number(part).map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        let sizes = Self { min: bytes(min)?, max: bytes(max)? };
        if sizes.min > sizes.max {
            return Err(error(text, "a range of sizes, the smaller first"));
        }
        Ok(sizes)
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{}-{}", self.min, self.max),
        }
    }
}

impl From<Sizes> for String {
    fn from(sizes: Sizes) -> Self {
        sizes.to_string()
    }
}

/// A range of durations, both ends included: `20ms` or `5ms-50ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Delay {
    /// The shortest delay.
    pub min: Duration,
    /// The longest delay; never below `min`.
    pub max: Duration,
}

impl FromStr for Delay {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let delay = Self { min: parse_duration(min)?, max: parse_duration(max)? };
        if delay.min > delay.max {
            return Err(error(text, "a range of durations, the shorter first"));
        }
        Ok(delay)
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", humantime::format_duration(self.min), humantime::format_duration(self.max))
    }
}

impl TryFrom<String> for Delay {
    type Error = UnitError;

    /// The text of a configuration; a space, as in `1s 500ms`, is allowed inside a duration.
    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Delay> for String {
    fn from(delay: Delay) -> Self {
        delay.to_string()
    }
}

/// A single duration, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_duration(text).map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl TryFrom<String> for Span {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

/// A window of time since the faults were set: `5s-15s`, or `5-15` in seconds; its end is outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// Where it opens.
    pub from: Duration,
    /// Where it closes; never before `from`.
    pub to: Duration,
}

impl Window {
    /// Whether this moment lies inside.
    pub fn contains(&self, elapsed: Duration) -> bool {
        self.from <= elapsed && elapsed < self.to
    }
}

impl FromStr for Window {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (from, to) =
            text.split_once('-').ok_or_else(|| error(text, "a window such as 5-15 (seconds)"))?;
        let window = Self { from: parse_duration(from)?, to: parse_duration(to)? };
        if window.from > window.to {
            return Err(error(text, "a window that opens before it closes"));
        }
        Ok(window)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", humantime::format_duration(self.from), humantime::format_duration(self.to))
    }
}

impl TryFrom<String> for Window {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_suffixes_and_underscores() {
        assert_eq!(parse_number("1_000"), Ok(1_000));
        assert_eq!(parse_number("100k"), Ok(100_000));
        assert_eq!(parse_number("64KiB"), Ok(65_536));
        assert!(parse_number("ten").is_err());
        assert!(parse_number("99999999999G").is_err());
    }

    #[test]
    fn rates_and_ranges_round_trip() {
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("0".parse(), Ok(Rate::Max));
        assert_eq!("100k".parse(), Ok(Rate::PerSecond(100_000.0)));
        assert!("-1".parse::<Rate>().is_err());
        assert_eq!("64-1KiB".parse(), Ok(Sizes { min: 64, max: 1024 }));
        assert!("9-8".parse::<Sizes>().is_err());
        for text in ["5-15", "500ms-2s", "0-1.5"] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.to_string().parse(), Ok(window));
        }
        let delay: Delay = "1500ms-2m".parse().unwrap();
        assert_eq!(delay.to_string().parse(), Ok(delay));
        assert!("5".parse::<Window>().is_err());
    }

    #[test]
    fn a_window_ends_before_its_end() {
        let window: Window = "1-2".parse().unwrap();
        let inside = |ms| window.contains(Duration::from_millis(ms));
        assert_eq!([999, 1000, 1999, 2000].map(inside), [false, true, true, false]);
    }
}
