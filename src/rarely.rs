//! Log lines that would repeat themselves: what is said of one cause at once, and what is left out and counted. It
//! writes nothing and knows no clock; whoever has something to say asks here first.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

/// What lasts is said this often: often enough to be seen while one looks, and some lines an hour where nobody does.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// One cause for log lines: a few at once, then no more until [`INTERVAL`] is over.
#[derive(Debug)]
pub struct Rarely {
    lines_max: u32,
    /// When the first line of this interval was written.
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Default for Rarely {
    /// A cause whose lines all say the same: one of them is enough.
    fn default() -> Self {
        Self::up_to(1)
    }
}

impl Rarely {
    /// A cause whose lines name different things, such as lanes: so many of them are written in one interval.
    pub const fn up_to(lines_max: u32) -> Self {
        Self { lines_max, since: None, lines: 0, left_out: 0 }
    }

    /// Whether a line is to be written now. If so, what is to stand at its end; if not, it counts as left out.
    pub fn say(&mut self, now: Instant) -> Option<LeftOut> {
        let age = self.since.map(|since| now.saturating_duration_since(since));
        if let Some(age) = age.filter(|age| *age < INTERVAL) {
            let may = self.lines < self.lines_max;
            self.lines += u32::from(may);
            self.left_out += u64::from(!may);
            return may.then_some(LeftOut { lines: 0, within: age });
        }
        self.since = Some(now);
        self.lines = 1;
        Some(LeftOut { lines: std::mem::take(&mut self.left_out), within: age.unwrap_or_default() })
    }
}

/// The lines of a cause that were left out before this one. Prints as the end of its sentence, or as nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    lines: u64,
    within: Duration,
}

impl Display for LeftOut {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.lines {
            0 => Ok(()),
            lines => write!(f, " ({lines} more within the last {} s)", self.within.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said at these seconds, `None` where nothing is.
    fn said<const N: usize>(cause: &mut Rarely, seconds: [u64; N]) -> [Option<String>; N] {
        let start = Instant::now();
        seconds.map(|at| cause.say(start + Duration::from_secs(at)).map(|more| format!("it fails{more}")))
    }

    #[test]
    fn the_first_is_said_at_once_and_the_rest_is_counted() {
        let lines = said(&mut Rarely::default(), [0, 1, 2, 29, 30, 31, 90]);
        let lines = lines.each_ref().map(Option::as_deref);
        let expected = [
            Some("it fails"),
            Some("it fails (3 more within the last 30 s)"),
            Some("it fails (1 more within the last 60 s)"),
        ];
        assert_eq!(lines, [expected[0], None, None, None, expected[1], None, expected[2]]);
    }

    #[test]
    fn a_few_are_said_of_what_has_many_names() {
        let lines = said(&mut Rarely::up_to(3), [0, 0, 5, 6, 7, 30, 31, 32, 33]);
        let lines = lines.each_ref().map(Option::as_deref);
        let says = Some("it fails");
        let counts = Some("it fails (2 more within the last 30 s)");
        assert_eq!(lines, [says, says, says, None, None, counts, says, says, None]);
    }

    #[test]
    fn a_clock_that_stands_still_gives_one_line() {
        let now = Instant::now();
        let mut cause = Rarely::default();
        assert_eq!((0..1_000_000).filter(|_| cause.say(now).is_some()).count(), 1);
    }
}
