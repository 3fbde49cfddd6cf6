//! Raw values: what a source says, before anything is checked but that the key exists.

use super::Config;
use super::delivery_stream::DeliveryStreamOptions;
use super::errors::Place;
use super::named::Named;
use super::setting::Setting;
use super::stream::StreamOptions;

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw {
    /// A string of the file.
    Text(String),
    /// An integer of the file.
    Integer(i128),
    /// A boolean of the file.
    Boolean(bool),
    /// A list of strings, or a flag that was given several times.
    List(Vec<String>),
    /// A word of the environment or the command line, where everything is text.
    Word(String),
    /// Something that no setting takes, such as a date.
    Other,
}

impl Raw {
    /// A text, which a file has in quotes.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Raw::Text(text) | Raw::Word(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number, which a file has without quotes.
    pub(super) fn integer(&self) -> Option<i128> {
        match self {
            Raw::Integer(number) => Some(*number),
            Raw::Word(word) if !word.starts_with('+') => word.replace('_', "").parse().ok(),
            _ => None,
        }
    }

    /// `true` or `false`, which a file has without quotes.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self {
            Raw::Boolean(value) => Some(*value),
            Raw::Word(word) => word.parse().ok(),
            _ => None,
        }
    }

    /// A list: in a file a list or one string, in the environment words with commas between them.
    pub(super) fn list(&self) -> Option<Vec<&str>> {
        match self {
            Raw::List(list) => Some(list.iter().map(String::as_str).collect()),
            Raw::Text(text) => Some(vec![text]),
            Raw::Word(words) => {
                Some(words.split(',').map(str::trim).filter(|word| !word.is_empty()).collect())
            }
            _ => None,
        }
    }
}

/// What a raw value is for.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A setting of the relay.
    Relay(&'static Setting<Config>),
    /// A setting of the stream with this name.
    Stream(String, &'static Setting<StreamOptions>),
    /// A setting of the delivery streams with this name or template.
    DeliveryStream(String, &'static Setting<DeliveryStreamOptions>),
}

/// One value that a source gives.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub target: Target,
    pub raw: Raw,
    pub place: Place,
}

/// All that one source gives.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    /// The values, in the order in which they were written.
    pub given: Vec<Given>,
    /// The tables that are named after something, empty ones included, and where each begins.
    pub tables: Vec<(Named, String, Place)>,
}
