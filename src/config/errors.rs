//! What is wrong with a configuration, each error with the place where it was written.

use std::fmt;
use std::sync::Arc;

/// The longest piece of somebody's text that an error repeats, in characters.
const SHOWN_CHARACTERS_MAX: usize = 60;

/// Where a value was written. Prints as the beginning of an error's sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it is the default.
    Default,
    /// In the file as a whole.
    File(Arc<str>),
    /// On a line of the file, counted from 1; the text is what stands there.
    Line(Arc<str>, usize, String),
    /// In the environment: `NAME=value`.
    Environment(String),
    /// On the command line: `--flag value`.
    Flag(String),
}

impl Place {
    /// The order in which errors are reported: by source, and by line within the file.
    pub(super) fn rank(&self) -> (u8, usize) {
        match self {
            Place::Default => (0, 0),
            Place::File(_) => (1, 0),
            Place::Line(_, line, _) => (1, *line),
            Place::Environment(_) => (2, 0),
            Place::Flag(_) => (3, 0),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => f.write_str("default"),
            Place::File(path) => f.write_str(path),
            Place::Line(path, line, text) if text.is_empty() => write!(f, "{path}:{line}"),
            Place::Line(path, line, text) => write!(f, "{path}:{line}: {text}"),
            Place::Environment(text) | Place::Flag(text) => f.write_str(text),
        }
    }
}

/// One thing that is wrong: where, what, and what to write instead. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Error {
    place: Place,
    message: String,
}

/// All that is wrong, by source and line; prints one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct Errors(Vec<Error>);

impl Errors {
    /// The errors in the order in which they are to be reported.
    pub fn iter(&self) -> impl Iterator<Item = &Error> {
        self.0.iter()
    }

    pub(super) fn push(&mut self, place: Place, message: impl Into<String>) {
        self.0.push(Error { place, message: message.into() });
    }

    /// `value` where nothing is wrong, else the errors in order.
    pub(super) fn into_result<T>(mut self, value: T) -> Result<T, Errors> {
        if self.0.is_empty() {
            return Ok(value);
        }
        self.0.sort_by_key(|error| error.place.rank());
        Err(self)
    }

    fn lines(&self) -> String {
        self.0.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
    }
}

/// Somebody's text as an error repeats it: one line, without control characters, not too long.
pub(super) fn shown(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut characters = line.chars();
    let mut short: String = characters
        .by_ref()
        .take(SHOWN_CHARACTERS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if characters.next().is_some() || line.len() < text.trim_end().len() {
        short.push('…');
    }
    short
}

/// `; did you mean "uring"?` where one of the candidates is close to what was written, else nothing.
pub(super) fn did_you_mean<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    quote: char,
) -> String {
    let scored = candidates.into_iter().map(|candidate| (likeness(written, candidate), candidate));
    match scored.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((score, nearest)) if score >= 0.7 => format!("; did you mean {quote}{nearest}{quote}?"),
        _ => String::new(),
    }
}

/// How alike two keys are, from 0 to 1: letter by letter, or with their words in another order.
fn likeness(a: &str, b: &str) -> f64 {
    let (a, b) = (a.to_ascii_lowercase().replace('-', "_"), b.to_ascii_lowercase().replace('-', "_"));
    let sorted = |key: &str| {
        let mut words: Vec<_> = key.split('_').collect();
        words.sort_unstable();
        words.join("_")
    };
    let straight = strsim::normalized_damerau_levenshtein(&a, &b);
    straight.max(strsim::normalized_damerau_levenshtein(&sorted(&a), &sorted(&b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_is_not() {
        let keys = ["linger", "listen", "max_frame_bytes"];
        assert_eq!(did_you_mean("lingr", keys, '`'), "; did you mean `linger`?");
        assert_eq!(did_you_mean("frame_bytes_max", keys, '`'), "; did you mean `max_frame_bytes`?");
        assert_eq!(did_you_mean("max-frame-bytes", keys, '`'), "; did you mean `max_frame_bytes`?");
        assert_eq!(did_you_mean("colour", keys, '`'), "");
        assert_eq!(did_you_mean("", [], '`'), "");
    }

    #[test]
    fn repeated_text_is_one_short_line() {
        assert_eq!(shown("a\tb"), "a\u{fffd}b");
        assert_eq!(shown("[\n 1,\n]"), "[…");
        assert_eq!(shown(&"x".repeat(61)), format!("{}…", "x".repeat(60)));
        assert_eq!(shown("one line\n"), "one line");
    }
}
