//! One setting: its key, its kind and limits, its default, its words. Knows how to check a raw value and
//! where to put it; knows nothing of sources.

use std::fmt;
use std::time::Duration;

use super::errors::did_you_mean;
use super::raw::Raw;
use super::units::{format_duration, format_size, parse_duration, parse_size};

/// The heading under which settings stand together in `--help` and in the default configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Listening,
    Destination,
    Streams,
    Packing,
    Resources,
    Spool,
    Calls,
    Stopping,
    Logging,
}

impl Group {
    /// The heading itself.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Group::Listening => "Listening",
            Group::Destination => "Destination",
            Group::Streams => "Streams",
            Group::Packing => "Packing",
            Group::Resources => "Memory and threads",
            Group::Spool => "Spool",
            Group::Calls => "Calls and retries",
            Group::Stopping => "Stopping",
            Group::Logging => "Logging",
        }
    }
}

/// A row of the table: a setting of `T`, which is the relay's configuration or a stream's.
pub(crate) struct Setting<T: 'static> {
    /// The key in the file; the flag has dashes for its underscores, the variable is it in capitals.
    pub key: &'static str,
    pub group: Group,
    /// What it does, in one line for `-h`: no full stop.
    pub help: &'static str,
    /// What else is to be known, in sentences; empty where the one line says it all.
    pub doc: &'static str,
    /// The default as TOML; empty where it is another setting's value.
    pub default: &'static str,
    pub change: Change<T>,
    pub kind: Kind<T>,
}

/// Copies one field from the second to the first; says whether they differed.
pub(crate) type Take<T> = fn(&mut T, &T) -> bool;

/// What it takes for a change of a setting to come about while the relay runs.
pub(crate) enum Change<T> {
    /// Reading the configuration again.
    Reload(Take<T>),
    /// A new process: something that is made at the start depends on it.
    Restart(Take<T>),
}

/// The [`Take`] of a field.
macro_rules! field {
    ($($name:ident).+) => {
        |to, from| {
            let differs = to.$($name).+ != from.$($name).+;
            to.$($name).+.clone_from(&from.$($name).+);
            differs
        }
    };
}
pub(crate) use field;

/// A number's stand-in: the word, and the number that `set` gets for it.
pub(crate) type Word = Option<(&'static str, u64)>;

/// What values a setting takes, within which limits (both ends included), and where they go.
pub(crate) enum Kind<T> {
    Duration {
        from: Duration,
        to: Duration,
        set: fn(&mut T, Duration),
    },
    Size {
        from: u64,
        to: u64,
        word: Word,
        set: fn(&mut T, u64),
    },
    Count {
        from: u64,
        to: u64,
        word: Word,
        set: fn(&mut T, u64),
    },
    Switch {
        set: fn(&mut T, bool),
    },
    /// `set` gets the index of the name.
    Choice {
        names: &'static [&'static str],
        set: fn(&mut T, usize),
    },
    /// `name` stands for it in `--help`, `form` says in a few words what to write.
    Text {
        name: &'static str,
        form: &'static str,
        set: fn(&mut T, &str) -> Result<(), String>,
    },
    List {
        name: &'static str,
        form: &'static str,
        set: fn(&mut T, &[&str]) -> Result<(), String>,
    },
}

impl<T> Setting<T> {
    /// Whether a reload is enough to change it.
    pub(super) fn is_reloadable(&self) -> bool {
        matches!(self.change, Change::Reload(_))
    }

    /// The name of the flag, without its dashes.
    pub(crate) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// The name of the environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("STANDPIPE_{}", self.key.to_ascii_uppercase())
    }

    /// The default as it reads best: without TOML's brackets, quotes and underscores in numbers.
    pub(crate) fn default_word(&self) -> String {
        match self.default.starts_with(|first: char| first.is_ascii_digit()) {
            true => self.default.replace('_', ","),
            false => self.default.trim_matches(['[', ']', '"']).to_owned(),
        }
    }
}

impl<T> fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key)
    }
}

impl<T> Kind<T> {
    /// Checks a raw value and puts it where it belongs.
    ///
    /// # Errors
    ///
    /// What is wrong with it and what to write, to go behind the place and a colon.
    pub(super) fn apply(&self, target: &mut T, raw: &Raw) -> Result<(), String> {
        match self {
            Kind::Duration { from, to, set } => {
                let duration = raw
                    .text()
                    .and_then(parse_duration)
                    .ok_or("not a duration; write a number and a unit, such as \"500ms\" or \"1s\"")?;
                set(target, within(duration, *from, *to, format_duration)?);
            }
            Kind::Size { from, to, word, set } => set(target, SIZE.read(raw, *from, *to, *word)?),
            Kind::Count { from, to, word, set } => set(target, COUNT.read(raw, *from, *to, *word)?),
            Kind::Switch { set } => {
                let message = || format!("neither true nor false; write one of them{}", bare(raw));
                set(target, raw.boolean().ok_or_else(message)?);
            }
            Kind::Choice { names, set } => set(target, choice(raw, names)?),
            Kind::Text { form, set, .. } => {
                let text = raw.text().ok_or_else(|| format!("not a string; write {form} in quotes"))?;
                set(target, text)?;
            }
            Kind::List { form, set, .. } => {
                set(target, &raw.list().ok_or_else(|| format!("not a list of strings; write {form}"))?)?;
            }
        }
        Ok(())
    }

    /// Which values it takes, as a sentence for the documentation.
    pub(crate) fn limits(&self) -> String {
        match self {
            Kind::Duration { from, to, .. } => {
                format!("A duration from {} to {}.", format_duration(*from), format_duration(*to))
            }
            Kind::Size { from, to, word, .. } => {
                format!("A size from {} to {}{}.", size_in_words(*from), size_in_words(*to), or(*word))
            }
            Kind::Count { from, to, word, .. } => {
                format!("A number from {} to {}{}.", format_count(*from), format_count(*to), or(*word))
            }
            Kind::Switch { .. } => "Write true or false.".into(),
            Kind::Choice { names, .. } => format!("One of {}.", quoted(names)),
            Kind::Text { form, .. } | Kind::List { form, .. } => format!("Write {form}."),
        }
    }

    /// What stands for the value in `--help`.
    pub(crate) fn value_name(&self) -> String {
        match self {
            Kind::Duration { .. } => "DURATION".into(),
            Kind::Size { .. } => "SIZE".into(),
            Kind::Count { .. } => "N".into(),
            Kind::Switch { .. } => "true|false".into(),
            Kind::Choice { names, .. } => names.join("|"),
            Kind::Text { name, .. } | Kind::List { name, .. } => (*name).into(),
        }
    }
}

/// A kind of whole number: how it is read, written, and asked for.
struct Number {
    parse: fn(&Raw) -> Option<i128>,
    format: fn(u64) -> String,
    /// What to say of what is none, for this raw value.
    refusal: fn(&Raw) -> String,
}

const SIZE: Number = Number {
    parse: |raw| raw.integer().or_else(|| raw.text().and_then(parse_size).map(i128::from)),
    format: size_in_words,
    refusal: |_| {
        "not a size; write bytes, or a whole number and a unit, such as \"64MiB\" or \"500MB\"".into()
    },
};

const COUNT: Number = Number {
    parse: Raw::integer,
    format: format_count,
    refusal: |raw| format!("not a whole number; write it in digits{}", bare(raw)),
};

impl Number {
    /// The number that `raw` says, or the one that its word stands for.
    fn read(&self, raw: &Raw, from: u64, to: u64, word: Word) -> Result<u64, String> {
        if let Some((word, stands_for)) = word
            && raw.text() == Some(word)
        {
            return Ok(stands_for);
        }
        let number = (self.parse)(raw).ok_or_else(|| (self.refusal)(raw) + &or(word))?;
        let format = |end| (self.format)(u64::try_from(end).expect("both ends of the limits are a u64"));
        let number = within(number, from.into(), to.into(), format)?;
        Ok(u64::try_from(number).expect("it is between two u64"))
    }
}

/// `, or "auto"` where there is a word.
fn or(word: Word) -> String {
    word.map(|(word, _)| format!(", or \"{word}\"")).unwrap_or_default()
}

/// A file's string where it should be something else is most often only the quotes.
fn bare(raw: &Raw) -> &'static str {
    match raw {
        Raw::Text(_) => ", without quotes",
        _ => "",
    }
}

/// A size as a person reads it: in a unit where that is short, else in bytes with their thousands apart.
fn size_in_words(bytes: u64) -> String {
    let exact = format_size(bytes);
    let digits = exact.bytes().take_while(u8::is_ascii_digit).count();
    match digits < exact.len() && digits < 4 {
        true => exact,
        false => format!("{} B", format_count(bytes)),
    }
}

/// A count with its thousands apart.
fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn within<V: PartialOrd + Copy>(value: V, from: V, to: V, format: impl Fn(V) -> String) -> Result<V, String> {
    if value < from {
        return Err(format!("too low; the least is {}", format(from)));
    }
    if value > to {
        return Err(format!("too high; the most is {}", format(to)));
    }
    Ok(value)
}

fn choice(raw: &Raw, names: &[&str]) -> Result<usize, String> {
    let written = raw.text().unwrap_or_default();
    names.iter().position(|name| *name == written).ok_or_else(|| {
        format!("not one of {}{}", quoted(names), did_you_mean(written, names.iter().copied(), '"'))
    })
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
