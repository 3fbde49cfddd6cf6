//! One dead letter: a line of JSON with the stream, the reason, when it was received and given up, what the
//! destination said, and the payload as base64, so that every byte of it comes back. Pure.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::encode::base64;
use crate::frame::{self, PAYLOAD_BYTES_MAX};
use crate::metrics::Drop;

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
/// What the destination said is cut behind this many bytes.
const ERROR_BYTES_MAX: usize = 512;
/// A longer line is none of ours.
pub const LINE_BYTES_MAX: usize = 2 << 20;

/// A line as it is written and read; what else stands in it is passed over.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    /// `rejected` or `max_age`.
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
    /// When the oldest event was received that it travelled with: it may have been a little later.
    #[serde(borrow, default)]
    received: Cow<'a, str>,
    /// When it was given up.
    #[serde(borrow, default)]
    dropped: Cow<'a, str>,
    /// What the destination said.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'a, str>>,
    /// Last, so that the head of a line ends where it starts.
    #[serde(borrow)]
    payload: Cow<'a, str>,
}

/// What letters have in common that were given up together.
#[derive(Debug)]
pub struct Head(Vec<u8>);

impl Head {
    /// What stands in a line before the payload.
    pub fn new(
        stream: &str,
        reason: Drop,
        error: Option<&str>,
        received: SystemTime,
        dropped: SystemTime,
    ) -> Self {
        let line = Line {
            stream: stream.into(),
            reason: reason.label().into(),
            received: in_words(received).into(),
            dropped: in_words(dropped).into(),
            error: error.map(|error| error[..error.floor_char_boundary(ERROR_BYTES_MAX)].into()),
            payload: "".into(),
        };
        let mut head = serde_json::to_vec(&line).expect("strings are always JSON");
        head.truncate(head.len() - END.len());
        Self(head)
    }

    /// Bytes of the letters that [`Head::write_all`] makes of these lines.
    pub fn length_of_all(&self, lines: &[u8]) -> u64 {
        let length = |payload: &[u8]| self.0.len() + base64::length(payload.len()) + END.len() + 1;
        payloads(lines).map(|payload| length(payload) as u64).sum()
    }

    /// Writes one letter for every line.
    ///
    /// # Errors
    /// As `out` has them.
    pub fn write_all(&self, lines: &[u8], out: &mut impl Write) -> io::Result<()> {
        let mut text = Vec::new();
        for payload in payloads(lines) {
            text.clear();
            text.extend_from_slice(&self.0);
            base64::append(payload, &mut text);
            text.extend_from_slice(END);
            text.push(b'\n');
            out.write_all(&text)?;
        }
        Ok(())
    }
}

/// What closes a line behind the payload.
const END: &[u8] = b"\"}";

fn payloads(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines.split_inclusive(|octet| *octet == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

fn in_words(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(TIME).expect("a date and a time are all that the format needs")
}

/// A letter that was read: what is needed to send it again.
#[derive(Debug, PartialEq, Eq)]
pub struct Letter {
    /// The stream that it came from.
    pub stream: String,
    /// The payload, without an LF.
    pub payload: Vec<u8>,
}

impl Letter {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let line: Line<'_> =
            serde_json::from_slice(line).map_err(|error| format!("it is no dead letter: {error}"))?;
        let stream = line.stream.into_owned();
        if !frame::is_stream_name(stream.as_bytes()) {
            return Err(format!("{stream:?} is no stream's name"));
        }
        let payload = base64_simd::STANDARD
            .decode_to_vec(line.payload.as_bytes())
            .map_err(|_| "its payload is not base64".to_owned())?;
        if payload.is_empty() || payload.len() > PAYLOAD_BYTES_MAX || payload.contains(&b'\n') {
            return Err("its payload is empty, too long, or has a line feed in it".to_owned());
        }
        Ok(Self { stream, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_come_back_byte_for_byte_and_their_length_is_known() {
        let all: Vec<u8> = (0..=255u8).filter(|octet| *octet != b'\n').collect();
        let lines = [b"{\"a\":1}\n".to_vec(), all.clone(), b"\nx\n".to_vec()].concat();
        let head = Head::new(
            "a.b-c",
            Drop::MaxAge,
            Some("no \"such\" \u{e4}\n"),
            SystemTime::UNIX_EPOCH,
            SystemTime::now(),
        );
        let mut text = Vec::new();
        head.write_all(&lines, &mut text).unwrap();
        assert_eq!(head.length_of_all(&lines), text.len() as u64);
        assert!(
            text.starts_with(
                br#"{"stream":"a.b-c","reason":"max_age","received":"1970-01-01T00:00:00.000Z","#
            )
        );
        let read =
            text.split_inclusive(|octet| *octet == b'\n').map(|line| Letter::parse(line).unwrap().payload);
        assert_eq!(read.collect::<Vec<_>>(), [b"{\"a\":1}".to_vec(), all, b"x".to_vec()]);
    }

    #[test]
    fn what_is_no_letter_is_told_apart() {
        for (line, wrong) in [
            (r#"{"stream":"a","payload":"#, "no dead letter"),
            (r#"{"payload":"YQ=="}"#, "no dead letter"),
            (r#"{"stream":"a b","payload":"YQ=="}"#, "no stream's name"),
            (r#"{"stream":"a","payload":"Y!"}"#, "not base64"),
            (r#"{"stream":"a","payload":""}"#, "empty"),
            (r#"{"stream":"a","payload":"YQo="}"#, "line feed"),
        ] {
            let error = Letter::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(wrong), "{line}: {error}");
        }
        let with_more = br#"{"stream":"a","added":"later","payload":"YQ=="}"#;
        assert_eq!(Letter::parse(with_more).unwrap().payload, b"a");
    }
}
