//! The wire format of one line: `STREAM SP PAYLOAD LF`, or `! VERB [SP ARGUMENT] LF`. It knows nothing of
//! sockets or buffers: it is given whole lines (`connection` cuts them) and says what stands in them.
//! `docs/protocol.md` owns the protocol.

use memchr::memchr;

/// The longest stream name, in octets.
pub const STREAM_NAME_BYTES_MAX: usize = 64;
/// The longest payload that the protocol allows, in octets: with its LF it fills one Firehose record of
/// 1,000 KiB (Firehose developer guide, "Amazon Data Firehose quota").
pub const PAYLOAD_BYTES_MAX: usize = 1_023_999;
/// The longest control line, in octets, its LF included.
pub const CONTROL_BYTES_MAX: usize = 256;

/// What stands in a good line.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An event for a stream.
    Event {
        /// 1 to 64 octets, not yet held against the alphabet: a name that is already known was checked before.
        stream: &'a [u8],
        /// The payload **with** its LF, as it is delivered.
        payload: &'a [u8],
    },
    /// What follows the `!`, without the LF.
    Control(&'a [u8]),
}

/// Why a frame was not taken. A closed list: each is a label value of `standpipe_frames_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// No space parts a name from a payload.
    NoSpace,
    /// The name is empty, longer than 64 octets, has a character outside its alphabet or is reserved.
    BadName,
    /// Nothing stands between the space and the LF.
    EmptyPayload,
    /// The payload is longer than `frame_bytes_max`.
    TooLong,
    /// The name is new, and `max_streams` names are known already.
    TooManyStreams,
    /// The name is not configured, and only configured streams are allowed.
    UnknownStream,
    /// The connection ended in the middle of the frame.
    Truncated,
    /// A control frame with an unknown verb or over 256 octets.
    BadControl,
}

impl Reject {
    /// Every reason, in the order of its index.
    pub const ALL: [Reject; 8] = [
        Reject::NoSpace,
        Reject::BadName,
        Reject::EmptyPayload,
        Reject::TooLong,
        Reject::TooManyStreams,
        Reject::UnknownStream,
        Reject::Truncated,
        Reject::BadControl,
    ];

    /// The value of the metric's `reason` label.
    pub fn label(self) -> &'static str {
        match self {
            Reject::NoSpace => "no_space",
            Reject::BadName => "bad_name",
            Reject::EmptyPayload => "empty_payload",
            Reject::TooLong => "too_long",
            Reject::TooManyStreams => "too_many_streams",
            Reject::UnknownStream => "unknown_stream",
            Reject::Truncated => "truncated",
            Reject::BadControl => "bad_control",
        }
    }
}

/// Reads one line, which ends with its LF. `payload_bytes_max` does not count the LF.
#[inline]
pub fn parse(line: &[u8], payload_bytes_max: usize) -> Result<Frame<'_>, Reject> {
    debug_assert_eq!(line.last(), Some(&b'\n'), "a line ends with its LF");
    if line[0] == b'!' {
        return parse_control(line);
    }
    let head = &line[..line.len().min(STREAM_NAME_BYTES_MAX + 1)];
    let Some(space) = memchr(b' ', head) else {
        return Err(without_name(line));
    };
    if space == 0 {
        return Err(Reject::BadName);
    }
    let payload = &line[space + 1..];
    match payload.len() - 1 {
        0 => Err(Reject::EmptyPayload),
        length if length > payload_bytes_max => Err(Reject::TooLong),
        _ => Ok(Frame::Event { stream: &line[..space], payload }),
    }
}

fn parse_control(line: &[u8]) -> Result<Frame<'_>, Reject> {
    if line.len() > CONTROL_BYTES_MAX {
        return Err(Reject::BadControl);
    }
    Ok(Frame::Control(&line[1..line.len() - 1]))
}

/// Whether a line without a space among its first 65 octets has no space at all, or a name that is too long.
#[cold]
fn without_name(line: &[u8]) -> Reject {
    let rest = &line[line.len().min(STREAM_NAME_BYTES_MAX + 1)..];
    if memchr(b' ', rest).is_some() { Reject::BadName } else { Reject::NoSpace }
}

/// Whether a name is one that the protocol allows: 1 to 64 of `A-Z a-z 0-9 _ . -`, but none of `.`, `..`
/// (they mean something to a file system) and `_other` (it means something to the metrics).
pub fn is_stream_name(name: &[u8]) -> bool {
    let in_alphabet = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'.' | b'-');
    (1..=STREAM_NAME_BYTES_MAX).contains(&name.len())
        && name.iter().all(in_alphabet)
        && !matches!(name, b"." | b".." | b"_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event<'a>(stream: &'a [u8], payload: &'a [u8]) -> Result<Frame<'a>, Reject> {
        Ok(Frame::Event { stream, payload })
    }

    #[test]
    fn the_payload_is_everything_behind_the_first_space() {
        assert_eq!(parse(b"clicks {\"a\": 1}\r\n", 100), event(b"clicks", b"{\"a\": 1}\r\n"));
        assert_eq!(parse(b"s \0\xff \n", 100), event(b"s", b"\0\xff \n"));
        assert_eq!(parse(b"s  \n", 100), event(b"s", b" \n"));
    }

    #[test]
    fn every_malformed_line_has_its_reason() {
        let long_name = [&[b'a'; 65][..], b" x\n"].concat();
        let long_word = [&[b'a'; 99][..], b"\n"].concat();
        assert_eq!(parse(b"\n", 100), Err(Reject::NoSpace));
        assert_eq!(parse(b"word\n", 100), Err(Reject::NoSpace));
        assert_eq!(parse(&long_word, 100), Err(Reject::NoSpace));
        assert_eq!(parse(&long_name, 100), Err(Reject::BadName));
        assert_eq!(parse(b" x\n", 100), Err(Reject::BadName));
        assert_eq!(parse(b"s \n", 100), Err(Reject::EmptyPayload));
    }

    #[test]
    fn the_longest_name_and_payload_are_taken_and_one_more_is_not() {
        let name = [b'n'; 64];
        let line = |payload: usize| [&name[..], b" ", &vec![b'p'; payload], b"\n"].concat();
        assert!(parse(&line(10), 10).is_ok());
        assert_eq!(parse(&line(11), 10), Err(Reject::TooLong));
    }

    #[test]
    fn control_lines_are_told_from_events() {
        assert_eq!(parse(b"!ping\n", 100), Ok(Frame::Control(b"ping")));
        let long = [b"!", &[b'x'; 254][..], b"\n"].concat();
        assert!(parse(&long, 1000).is_ok());
        let longer = [b"!", &[b'x'; 255][..], b"\n"].concat();
        assert_eq!(parse(&longer, 1000), Err(Reject::BadControl));
    }

    #[test]
    fn names_outside_the_alphabet_and_reserved_ones_are_refused() {
        for good in ["a", "A.b_c-9", "_", "...", &"x".repeat(64)] {
            assert!(is_stream_name(good.as_bytes()), "{good}");
        }
        for bad in ["", ".", "..", "_other", "a/b", "a\u{e9}", "a b", "!x", "a\0", &"x".repeat(65)] {
            assert!(!is_stream_name(bad.as_bytes()), "{bad}");
        }
    }
}
