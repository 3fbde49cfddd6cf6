//! The frame parser at any split: the same bytes give the same lines however they are cut, and a line that is an
//! event can be put together again from its parts. The first bytes of the input choose the splits and the limit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use standpipe::connection::{Connection, Cut, Taken};
use standpipe::frame::{self, Frame};

/// What came of the bytes: whole lines, and `None` for each that was too long.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    lines: Vec<Option<Vec<u8>>>,
    keeps_half: bool,
}

fn feed<'a>(pieces: impl Iterator<Item = &'a [u8]>, line_bytes_max: usize, blocks: bool) -> Seen {
    let mut connection = Connection::new(line_bytes_max);
    let mut lines = Vec::new();
    let mut is_blocked = false;
    let mut offer = |cut: Cut<'_>| {
        // With `blocks` there is room for a line only when it is offered again.
        is_blocked = blocks && !is_blocked;
        if is_blocked {
            return Taken::Blocked;
        }
        lines.push(match cut {
            Cut::Line(line) => Some(line.to_vec()),
            Cut::TooLong => None,
        });
        Taken::Yes
    };
    for piece in pieces {
        let mut taken = connection.feed(piece, &mut offer);
        while taken == Taken::Blocked {
            taken = connection.resume(&mut offer);
        }
    }
    Seen { keeps_half: connection.keeps_half(), lines }
}

/// Takes a line apart and looks at the parts.
fn check(line: &[u8], payload_bytes_max: usize) {
    match frame::parse(line, payload_bytes_max) {
        Ok(Frame::Event { stream, payload }) => {
            assert_eq!([stream, b" ", payload].concat(), line);
            assert!(payload.len() <= payload_bytes_max + 1 && payload.len() > 1);
            frame::is_stream_name(stream);
        }
        Ok(Frame::Control(control)) => assert_eq!([b"!", control, b"\n"].concat(), line),
        Err(_) => {}
    }
}

fuzz_target!(|input: (u8, Vec<u8>, Vec<u8>)| {
    let (max, splits, bytes) = input;
    let line_bytes_max = 2 + usize::from(max);
    let whole = feed(std::iter::once(&bytes[..]), line_bytes_max, false);
    let mut rest = &bytes[..];
    let mut sizes = splits.iter().map(|size| usize::from(*size) + 1).chain(std::iter::repeat(1));
    let pieces: Vec<&[u8]> = std::iter::from_fn(|| {
        let at = sizes.next()?.min(rest.len());
        let (piece, left) = rest.split_at(at);
        rest = left;
        (!piece.is_empty()).then_some(piece)
    })
    .collect();
    assert_eq!(whole, feed(pieces.iter().copied(), line_bytes_max, false));
    let blocked = feed(pieces.into_iter(), line_bytes_max, true);
    assert!(
        blocked.lines.iter().flatten().eq(whole.lines.iter().flatten()),
        "waiting loses and changes nothing"
    );
    whole.lines.iter().flatten().for_each(|line| check(line, line_bytes_max));
});
