//! Live events for whoever looks: a sample of what is received of one stream, through the admin port. It shows, and
//! accounts for nothing.
//!
//! Delivery offers it every batch that comes from a shard. While nobody looks, that costs a load a batch; else as many
//! events are copied, and as few records decoded, as the rate of each tail lets pass. Nothing waits for a reader: one
//! that is slow misses events. Bounded: [`TAILS_MAX`] tails at one time, [`RATE_MAX`] events a second each,
//! [`EVENT_BYTES_MAX`] of an event, [`WAITING_MAX`] events that wait for a reader, [`LASTS_MAX`] in time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use memchr::memchr_iter;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};

use crate::batch::{Body, Record};
use crate::encode;

mod ask;

pub use ask::ask;

/// Tails at one time. All that wait for their readers have a mebibyte at most, which is a part of the memory's slack.
pub const TAILS_MAX: usize = 4;
/// The most events a second that a tail may have: what somebody can look at, and far from what a relay receives.
pub const RATE_MAX: u32 = 1_000;
/// The events a second that a tail has where nobody says otherwise.
pub const RATE_DEFAULT: u32 = 10;
/// A longer event is cut there, and shown with an ellipsis behind it.
pub const EVENT_BYTES_MAX: usize = 8 * 1024;
/// Events that wait for one reader.
pub const WAITING_MAX: usize = 32;
/// How long a tail lasts: a reader whose host is gone is not heard of where nothing is written to it.
pub const LASTS_MAX: Duration = Duration::from_secs(3600);
/// The header in which an answer says to humans what it is.
pub const NOTE: &str = "standpipe-note";
/// Raw bytes that are decoded of a record for what is sampled of it.
const DECODED_BYTES_MAX: usize = 64 * 1024;

/// All tails.
#[derive(Debug, Default)]
pub struct Tails {
    open: AtomicUsize,
    tails: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    next_id: u64,
    tails: HashMap<u64, Tail>,
}

/// One tail, as delivery sees it.
#[derive(Debug)]
struct Tail {
    stream: String,
    allowance: Allowance,
    events: mpsc::Sender<Bytes>,
}

/// How many events may be shown now: they gather over time, to a second's worth.
#[derive(Debug)]
struct Allowance {
    rate: u32,
    events: f64,
    at: Instant,
}

impl Allowance {
    fn new(rate: u32, now: Instant) -> Self {
        Self { rate, events: f64::from(rate), at: now }
    }

    fn at(&mut self, now: Instant) -> usize {
        let rate = f64::from(self.rate);
        let gathered = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.events = (self.events + gathered).min(rate);
        self.at = now;
        self.events as usize
    }
}

/// The reader's end of a tail: the body of an answer, an event a line. Dropping it ends the tail.
#[derive(Debug)]
pub struct Sample {
    tails: Arc<Tails>,
    id: u64,
    events: mpsc::Receiver<Bytes>,
    /// How many events are still to come.
    left: u64,
    ends: Pin<Box<Sleep>>,
}

impl Tails {
    /// Whether somebody looks.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// A tail of a stream that may not have begun, with so many events a second and in all at most; none where
    /// [`TAILS_MAX`] are open.
    pub fn open(self: &Arc<Self>, stream: &str, rate: u32, count: u64) -> Option<Sample> {
        let (sender, events) = mpsc::channel(WAITING_MAX);
        let mut known = self.known();
        if known.tails.len() >= TAILS_MAX {
            return None;
        }
        let id = known.next_id;
        known.next_id += 1;
        let allowance = Allowance::new(rate.min(RATE_MAX), Instant::now());
        known.tails.insert(id, Tail { stream: stream.to_owned(), allowance, events: sender });
        self.open.store(known.tails.len(), Relaxed);
        Some(Sample { tails: Arc::clone(self), id, events, left: count, ends: Box::pin(sleep(LASTS_MAX)) })
    }

    /// Takes what the tails of a stream may have of a batch.
    pub fn offer(&self, stream: &str, body: &Body, events: u64, now: Instant) {
        let mut known = self.known();
        for tail in known.tails.values_mut().filter(|tail| tail.stream == stream) {
            let room = tail.allowance.at(now).min(tail.events.capacity());
            let mut shown = 0;
            pick(body, events, room, &mut |event| {
                // There was room, and nobody else sends.
                shown += u32::from(tail.events.try_send(shorten(event)).is_ok());
            });
            tail.allowance.events -= f64::from(shown);
        }
    }

    fn close(&self, id: u64) {
        let mut known = self.known();
        known.tails.remove(&id);
        self.open.store(known.tails.len(), Relaxed);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Picks at most so many events out of a batch, spread over all of it.
fn pick(body: &Body, events: u64, most: usize, show: &mut impl FnMut(&[u8])) {
    match body {
        _ if most == 0 => (),
        Body::Lines(lines) => spread(lines, events, most, show),
        Body::Records { json, records } => {
            let chosen = records.len().min(most);
            let mut decoded = Vec::new();
            for index in 0..chosen {
                let Record { start, end, bytes, events } = records[index * records.len() / chosen];
                let share = (index + 1) * most / chosen - index * most / chosen;
                decoded.clear();
                let record = &json[start as usize..end as usize];
                encode::decode_record_start(record, DECODED_BYTES_MAX, &mut decoded);
                let there = u64::from(events) * decoded.len() as u64 / u64::from(bytes.max(1));
                spread(&decoded, there, share, show);
            }
        }
    }
}

/// Picks at most so many lines out of about `count`, of which the last may be cut.
fn spread(lines: &[u8], count: u64, most: usize, show: &mut impl FnMut(&[u8])) {
    let step = (count as usize / most.max(1)).max(1);
    let (mut start, mut shown) = (0, 0);
    for (index, end) in memchr_iter(b'\n', lines).enumerate() {
        let line = &lines[start..=end];
        start = end + 1;
        if index % step == 0 && shown < most {
            shown += 1;
            show(line);
        }
    }
    // One that is longer than all that is there.
    if start == 0 && !lines.is_empty() {
        show(lines);
    }
}

/// An event as it is shown: a line, as received, cut where it is too long.
fn shorten(event: &[u8]) -> Bytes {
    match event {
        [whole @ .., b'\n'] if whole.len() <= EVENT_BYTES_MAX => Bytes::copy_from_slice(event),
        _ => [&event[..event.len().min(EVENT_BYTES_MAX)], "…\n".as_bytes()].concat().into(),
    }
}

impl http_body::Body for Sample {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if self.left == 0 || self.ends.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        let event = std::task::ready!(self.events.poll_recv(context));
        self.left -= 1;
        Poll::Ready(event.map(|event| Ok(http_body::Frame::data(event))))
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        self.tails.close(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn picked(body: &Body, events: u64, most: usize) -> Vec<String> {
        let mut picked = Vec::new();
        pick(body, events, most, &mut |event| {
            picked.push(String::from_utf8_lossy(&shorten(event)).into_owned());
        });
        picked
    }

    fn lines(count: u64) -> Vec<u8> {
        (0..count).map(|number| format!("event {number}\n")).collect::<String>().into_bytes()
    }

    fn records(lines: &[u8], record_bytes_max: u32) -> Body {
        let packing = crate::config::Packing { record_bytes_max, ..Config::default().packing };
        let mut encoder = encode::Encoder::new(packing, encode::CALL_BYTES_MAX);
        lines.split_inclusive(|octet| *octet == b'\n').for_each(|line| encoder.push(line));
        let (json, records) = encoder.finish();
        Body::Records { json, records }
    }

    #[test]
    fn a_sample_is_spread_over_its_batch_and_never_more_than_asked_for() {
        for body in [Body::Lines(lines(100)), records(&lines(100), 1_024_000), records(&lines(100), 300)] {
            for most in [0, 1, 3, 7, 100, 1_000] {
                let picked = picked(&body, 100, most);
                assert!(picked.len() <= most && picked.len() >= most.min(50), "{most}: {picked:?}");
                let numbers: Vec<u64> =
                    picked.iter().map(|line| line[6..line.len() - 1].parse().unwrap()).collect();
                assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
                assert!(most < 7 || numbers.last() > Some(&70), "{most}: {numbers:?}");
            }
        }
    }

    #[test]
    fn a_long_event_is_cut_and_one_that_just_fits_is_whole() {
        let whole = [&[b'x'; EVENT_BYTES_MAX][..], b"\n"].concat();
        assert_eq!(shorten(&whole), whole);
        let cut = shorten(&[&[b'x'; EVENT_BYTES_MAX + 1][..], b"\n"].concat());
        assert_eq!(cut, [&[b'x'; EVENT_BYTES_MAX][..], "…\n".as_bytes()].concat());
        // One that is longer than what is decoded of it.
        let body = records(&[&[b'x'; 200_000][..], b"\n"].concat(), 1_024_000);
        assert_eq!(picked(&body, 1, 5), [String::from_utf8(cut.to_vec()).unwrap()]);
    }

    #[tokio::test]
    async fn a_tail_has_its_stream_alone_at_its_rate_and_a_slow_reader_misses_events() {
        let tails = Arc::new(Tails::default());
        assert!(!tails.is_open());
        let mut sample = tails.open("clicks", 20, u64::MAX).unwrap();
        assert!(tails.is_open());
        let (now, body) = (Instant::now(), Body::Lines(lines(100)));
        let mut take = |at: Instant| {
            tails.offer("clicks", &body, 100, at);
            tails.offer("views", &body, 100, at);
            std::iter::from_fn(|| sample.events.try_recv().ok()).count()
        };
        assert_eq!((take(now), take(now)), (20, 0));
        assert_eq!(take(now + Duration::from_millis(500)), 10);
        assert_eq!(take(now + Duration::from_secs(3600)), 20);
        for second in 0..100 {
            tails.offer("clicks", &body, 100, now + Duration::from_secs(4000 + second));
        }
        assert_eq!(std::iter::from_fn(|| sample.events.try_recv().ok()).count(), WAITING_MAX);
        let others: Vec<Option<Sample>> = (0..TAILS_MAX).map(|_| tails.open("clicks", 1, 1)).collect();
        assert_eq!(others.iter().flatten().count(), TAILS_MAX - 1);
        drop((sample, others));
        assert!(!tails.is_open());
    }
}
