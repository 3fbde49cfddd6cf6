//! What one connection has sent and nobody has taken yet: it cuts bytes into lines at any split and keeps the
//! rest. Pure: it takes bytes, hands out lines, and never sees a socket.
//!
//! Invariants: whatever way the same bytes are split, the same lines come out; at most one line's worth of
//! half a frame is kept, plus, while the connection is blocked, what had already been read behind the line
//! that found its stream full.

use memchr::{memchr, memchr_iter};

/// How many lines are looked at before the first of them is taken.
const LINES_AHEAD: usize = 16;

/// Octets of a line that is too long which are shown at least, where it has them.
const START_BYTES_MAX: usize = 256;

/// What a connection hands out.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A whole line with its LF.
    Line(&'a [u8]),
    /// A line was longer than any frame; it is skipped to its LF.
    TooLong,
}

/// Whether a line was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Done with: delivered onwards, or rejected and counted.
    Yes,
    /// There is no room for it now: it must be offered again, and nothing behind it before it.
    Blocked,
}

/// Who is offered what a connection hands out. Each cut is looked at a few cuts before it is taken, so that what it
/// will need can be on its way from memory meanwhile.
pub trait Taker {
    /// What a look found out.
    type Seen: Copy + Default;

    /// Looks at a cut that will be offered soon, or again later. It counts nothing and takes nothing.
    fn look(&mut self, cut: &Cut<'_>) -> Self::Seen;

    /// Is told that what it has looked at since the last call will be taken now.
    fn looked(&mut self) {}

    /// Is shown the start of a line that is too long, before that is taken.
    fn too_long(&mut self, _start: &[u8]) {}

    /// Takes a cut that was looked at.
    fn take(&mut self, cut: Cut<'_>, seen: Self::Seen) -> Taken;
}

impl<F: FnMut(Cut<'_>) -> Taken> Taker for F {
    type Seen = ();

    fn look(&mut self, _: &Cut<'_>) {}

    fn take(&mut self, cut: Cut<'_>, (): ()) -> Taken {
        self(cut)
    }
}

/// The bytes of one connection between its socket and its frames.
#[derive(Debug)]
pub struct Connection {
    /// Half a frame; or, while blocked, a whole line that found no room and all that came behind it.
    kept: Vec<u8>,
    /// In the middle of a line that is too long: everything up to its LF is skipped.
    skipping: bool,
    blocked: bool,
    line_bytes_max: usize,
}

impl Connection {
    /// A connection whose lines have at most `line_bytes_max` octets, the LF included.
    pub fn new(line_bytes_max: usize) -> Self {
        Self { kept: Vec::new(), skipping: false, blocked: false, line_bytes_max }
    }

    /// Takes the next bytes and offers every line that is whole. While blocked it only keeps them.
    pub fn feed(&mut self, mut data: &[u8], taker: &mut impl Taker) -> Taken {
        if self.blocked {
            self.keep(data);
            return Taken::Blocked;
        }
        if self.skipping {
            let Some(end) = memchr(b'\n', data) else { return Taken::Yes };
            self.skipping = false;
            data = &data[end + 1..];
        }
        if !self.kept.is_empty() {
            let Some(end) = memchr(b'\n', data) else { return self.keep_half(data, taker) };
            let (head, rest) = data.split_at(end + 1);
            if self.finish_line(head, taker) == Taken::Blocked {
                self.keep(rest);
                return self.block();
            }
            data = rest;
        }
        self.cut_lines(data, taker)
    }

    /// Offers again what had found no room.
    pub fn resume(&mut self, taker: &mut impl Taker) -> Taken {
        self.blocked = false;
        let kept = std::mem::take(&mut self.kept);
        self.feed(&kept, taker)
    }

    /// Whether a line waits for room.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether nothing is kept: the connection stands at the boundary of a frame.
    pub fn is_at_boundary(&self) -> bool {
        self.kept.is_empty() && !self.skipping
    }

    /// Whether bytes are kept that belong to no frame yet handed out. The rest of a line that was too long is
    /// not among them: that line is done with.
    pub fn keeps_half(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The bytes that are kept.
    pub fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// The memory that the kept bytes take, in bytes.
    pub fn kept_capacity(&self) -> usize {
        self.kept.capacity()
    }

    fn cut_lines<T: Taker>(&mut self, data: &[u8], taker: &mut T) -> Taken {
        let mut start = 0;
        let mut ends = memchr_iter(b'\n', data);
        loop {
            let mut ahead = [(0, T::Seen::default()); LINES_AHEAD];
            let (mut found, mut behind) = (0, start);
            for (place, end) in ahead.iter_mut().zip(&mut ends) {
                *place = (end + 1, taker.look(&self.cut(&data[behind..=end])));
                (found, behind) = (found + 1, end + 1);
            }
            if found == 0 {
                return self.keep_half(&data[start..], taker);
            }
            taker.looked();
            for (end, seen) in ahead.into_iter().take(found) {
                let cut = self.cut(&data[start..end]);
                if cut == Cut::TooLong {
                    taker.too_long(&data[start..end]);
                }
                if taker.take(cut, seen) == Taken::Blocked {
                    self.keep(&data[start..]);
                    return self.block();
                }
                start = end;
            }
        }
    }

    fn cut<'a>(&self, line: &'a [u8]) -> Cut<'a> {
        if line.len() > self.line_bytes_max { Cut::TooLong } else { Cut::Line(line) }
    }

    /// Completes the kept half with `head`, which ends with the LF, and offers the line.
    fn finish_line(&mut self, head: &[u8], taker: &mut impl Taker) -> Taken {
        let mut line = std::mem::take(&mut self.kept);
        if line.len() + head.len() > self.line_bytes_max {
            return offer_too_long(taker, line, head);
        }
        line.extend_from_slice(head);
        let taken = offer(taker, Cut::Line(&line));
        if taken == Taken::Blocked {
            self.kept = line;
        }
        taken
    }

    fn keep_half(&mut self, half: &[u8], taker: &mut impl Taker) -> Taken {
        // A line of the longest length has its LF as its last octet, so a half is at least one shorter.
        if self.kept.len() + half.len() >= self.line_bytes_max {
            self.skipping = true;
            return offer_too_long(taker, std::mem::take(&mut self.kept), half);
        }
        self.keep(half);
        Taken::Yes
    }

    /// Grows by a quarter rather than by doubling: what is kept is charged by its capacity, and many connections
    /// may keep much.
    fn keep(&mut self, bytes: &[u8]) {
        let needed = self.kept.len() + bytes.len();
        if needed > self.kept.capacity() {
            self.kept.reserve_exact(bytes.len() + needed / 4);
        }
        self.kept.extend_from_slice(bytes);
    }

    fn block(&mut self) -> Taken {
        self.blocked = true;
        Taken::Blocked
    }
}

/// Looks at a cut and takes it at once.
fn offer(taker: &mut impl Taker, cut: Cut<'_>) -> Taken {
    let seen = taker.look(&cut);
    taker.looked();
    taker.take(cut, seen)
}

/// Offers a line that is too long, of which `kept` and then `more` are known.
fn offer_too_long(taker: &mut impl Taker, mut kept: Vec<u8>, more: &[u8]) -> Taken {
    let missing = START_BYTES_MAX.saturating_sub(kept.len());
    kept.extend_from_slice(&more[..more.len().min(missing)]);
    taker.too_long(&kept);
    offer(taker, Cut::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines_of(pieces: &[&[u8]], max: usize) -> Vec<Option<Vec<u8>>> {
        let mut connection = Connection::new(max);
        let mut lines = Vec::new();
        for piece in pieces {
            connection.feed(piece, &mut |cut: Cut<'_>| {
                lines.push(match cut {
                    Cut::Line(line) => Some(line.to_vec()),
                    Cut::TooLong => None,
                });
                Taken::Yes
            });
        }
        lines.push(Some(connection.kept.clone()));
        lines
    }

    #[test]
    fn a_too_long_line_is_skipped_to_its_end_and_the_next_is_taken() {
        let lines = lines_of(&[b"a b\n", b"123456789", b"0123", b"4\nc d\n"], 8);
        assert_eq!(lines, [Some(b"a b\n".to_vec()), None, Some(b"c d\n".to_vec()), Some(vec![])]);
    }

    #[test]
    fn a_blocked_line_comes_first_when_resumed_and_nothing_overtakes_it() {
        let mut connection = Connection::new(100);
        let mut seen = Vec::new();
        let mut room = 1;
        let mut offer = |cut: Cut<'_>| {
            if room == 0 {
                return Taken::Blocked;
            }
            room -= 1;
            if let Cut::Line(line) = cut {
                seen.push(String::from_utf8_lossy(line).into_owned());
            }
            Taken::Yes
        };
        assert_eq!(connection.feed(b"1\n2\n3", &mut offer), Taken::Blocked);
        assert_eq!(connection.feed(b"3\n4\n", &mut offer), Taken::Blocked);
        assert_eq!(connection.resume(&mut offer), Taken::Blocked);
        let mut offer = |cut: Cut<'_>| {
            if let Cut::Line(line) = cut {
                seen.push(String::from_utf8_lossy(line).into_owned());
            }
            Taken::Yes
        };
        assert_eq!(connection.resume(&mut offer), Taken::Yes);
        assert_eq!(seen, ["1\n", "2\n", "33\n", "4\n"]);
        assert_eq!(connection.kept_capacity(), 0, "the memory of what was kept goes back");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn any_split_of_the_same_bytes_gives_the_same_lines(
            bytes in proptest::collection::vec(prop_oneof![3 => Just(b'\n'), 7 => any::<u8>()], 0..300),
            cuts in proptest::collection::vec(0usize..300, 0..20),
            max in 2usize..40,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(lines_of(&pieces, max), lines_of(&single, max));
        }
    }
}
