//! What is kept of frames that were not taken, so that somebody can see why a line does not arrive. A shard that
//! rejects a frame keeps its start here, a few of them a second and reason; a good frame never comes near this.
//!
//! Bounded: [`HEAD_BYTES_MAX`] octets of a frame, `rejected_samples` frames a reason and shard, older ones giving
//! way. Only its shard writes to a [`Rejects`]; the lock is for whoever looks at `/status`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::frame::Reject;

/// Octets kept of a frame.
pub const HEAD_BYTES_MAX: usize = 128;
/// Frames of one reason that a shard keeps within [`WINDOW`], so that a flood of bad frames costs no more than
/// counting them.
const KEPT_IN_WINDOW: usize = 16;
const WINDOW: Duration = Duration::from_secs(1);

/// The start of one frame that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: SystemTime,
    /// Who sent it; none for a Unix socket, or a connection that was gone before it could be asked.
    pub peer: Option<SocketAddr>,
    /// Its first octets, at most [`HEAD_BYTES_MAX`], without the LF.
    pub head: Box<[u8]>,
    /// Whether there was more.
    pub is_cut: bool,
}

impl Sample {
    /// What is kept of a frame, of which `frame` may be the start alone.
    pub fn new(at: SystemTime, peer: Option<SocketAddr>, frame: &[u8]) -> Self {
        let frame = frame.strip_suffix(b"\n").unwrap_or(frame);
        let head = &frame[..frame.len().min(HEAD_BYTES_MAX)];
        Self { at, peer, head: head.into(), is_cut: head.len() < frame.len() }
    }
}

/// The last frames that one shard did not take, by reason.
#[derive(Debug)]
pub struct Rejects {
    kept_max: AtomicUsize,
    by_reason: Mutex<[VecDeque<Sample>; Reject::ALL.len()]>,
}

impl Rejects {
    /// Keeps at most `kept_max` frames a reason; with 0, none.
    pub fn new(kept_max: usize) -> Self {
        Self { kept_max: AtomicUsize::new(kept_max), by_reason: Mutex::default() }
    }

    /// Keeps at most so many of each reason from now on.
    pub fn keep_at_most(&self, kept_max: usize) {
        self.kept_max.store(kept_max, Relaxed);
        let mut by_reason = self.by_reason.lock().unwrap_or_else(PoisonError::into_inner);
        for kept in by_reason.iter_mut() {
            kept.drain(..kept.len().saturating_sub(kept_max));
        }
    }

    /// Keeps a frame in place of the oldest of its reason.
    pub fn keep(&self, reason: Reject, sample: Sample) {
        let kept_max = self.kept_max.load(Relaxed);
        if kept_max == 0 {
            return;
        }
        let mut by_reason = self.by_reason.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut by_reason[reason as usize];
        if kept.len() >= kept_max {
            kept.pop_front();
        }
        kept.push_back(sample);
    }

    /// The last frames of one reason that any of these shards kept, the newest first.
    pub fn last(shards: &[Self], reason: Reject) -> Vec<Sample> {
        let mut all = Vec::new();
        for shard in shards {
            let by_reason = shard.by_reason.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(by_reason[reason as usize].iter().cloned());
        }
        all.sort_by_key(|sample| std::cmp::Reverse(sample.at));
        all.truncate(shards.first().map_or(0, |shard| shard.kept_max.load(Relaxed)));
        all
    }
}

/// How many more frames of each reason a shard may keep in this window.
#[derive(Debug)]
pub(super) struct Allowance {
    is_on: bool,
    by_reason: [(Option<Instant>, usize); Reject::ALL.len()],
}

impl Allowance {
    pub(super) fn new(kept_max: usize) -> Self {
        Self { is_on: kept_max > 0, by_reason: [(None, 0); Reject::ALL.len()] }
    }

    /// Whether one more may be kept; takes its place where it may.
    pub(super) fn take(&mut self, reason: Reject, now: Instant) -> bool {
        let (since, kept) = &mut self.by_reason[reason as usize];
        if since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (*since, *kept) = (Some(now), 0);
        }
        let may = self.is_on && *kept < KEPT_IN_WINDOW;
        *kept += usize::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: u64, frame: &[u8]) -> Sample {
        Sample::new(SystemTime::UNIX_EPOCH + Duration::from_secs(second), None, frame)
    }

    #[test]
    fn the_newest_of_all_shards_are_kept_and_nothing_of_other_reasons() {
        let shards = [Rejects::new(2), Rejects::new(2)];
        shards[0].keep(Reject::NoSpace, sample(1, b"one\n"));
        shards[0].keep(Reject::NoSpace, sample(2, b"two\n"));
        shards[0].keep(Reject::NoSpace, sample(4, b"four\n"));
        shards[1].keep(Reject::NoSpace, sample(3, b"three\n"));
        let last = Rejects::last(&shards, Reject::NoSpace);
        assert_eq!(last, [sample(4, b"four"), sample(3, b"three")]);
        assert_eq!(Rejects::last(&shards, Reject::BadName), []);
    }

    #[test]
    fn a_long_frame_is_cut_and_the_line_feed_is_not_part_of_it() {
        let whole = sample(1, &[&[b'x'; HEAD_BYTES_MAX][..], b"\n"].concat());
        assert_eq!((whole.head.len(), whole.is_cut), (HEAD_BYTES_MAX, false));
        let longer = sample(1, &[b'x'; HEAD_BYTES_MAX + 1]);
        assert_eq!((longer.head.len(), longer.is_cut), (HEAD_BYTES_MAX, true));
    }

    #[test]
    fn a_flood_is_kept_a_few_a_second_and_with_zero_nothing_is() {
        let (mut allowance, start) = (Allowance::new(16), Instant::now());
        let kept = |allowance: &mut Allowance, at| {
            (0..1_000).filter(|_| allowance.take(Reject::TooLong, at)).count()
        };
        assert_eq!(kept(&mut allowance, start), KEPT_IN_WINDOW);
        assert_eq!(kept(&mut allowance, start + WINDOW / 2), 0);
        assert!(allowance.take(Reject::NoSpace, start), "another reason has its own");
        assert_eq!(kept(&mut allowance, start + WINDOW), KEPT_IN_WINDOW);
        assert_eq!(kept(&mut Allowance::new(0), start), 0);
    }
}
