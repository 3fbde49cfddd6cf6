//! Delivery's side of the dead letters: what can never be delivered waits here until it is on disk, and only then
//! counts as dropped. Where there are no dead letters, or they take no more, it is dropped under its own reason. Here
//! also is found what has grown too old to be delivered.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use super::piece::Piece;
use super::{Delivery, Timer};
use crate::config::Config;
use crate::dead_letter::{Answer, Bundle, DeadLetters, QUEUED_BYTES_MAX};
use crate::destination::Encoding;
use crate::failpoint::{self, Flaw};
use crate::metrics::Drop;

/// How often streams with a `max_age` are looked at.
const AGE_EVERY: Duration = Duration::from_millis(500);
/// A disk that has not answered for so long is waited for no more by what has grown too old.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What is on its way to the dead letters.
#[derive(Debug)]
pub(super) struct Letters {
    dead: DeadLetters,
    /// By id, so that what is taken back comes in its order.
    waiting: BTreeMap<u64, (Piece, Drop)>,
    bytes: usize,
    next_id: u64,
    /// When the thread last answered, or had nothing to do before.
    answered_at: Instant,
}

/// What the thread says next; never where there is none.
pub(super) async fn next_answer(letters: &mut Option<Letters>) -> Answer {
    let answer = match letters {
        Some(letters) => letters.dead.answers.recv().await,
        None => None,
    };
    match answer {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

impl Letters {
    fn has_room(&self) -> bool {
        self.bytes < QUEUED_BYTES_MAX
    }

    fn is_stuck(&self, now: Instant) -> bool {
        !self.waiting.is_empty() && now.saturating_duration_since(self.answered_at) > STUCK_AFTER
    }

    /// Goes by other settings from now on.
    pub(super) fn reload(&self, config: &Config) {
        self.dead.bytes_max.store(config.dead_letter_limit, Relaxed);
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn send(&mut self, piece: Piece, reason: Drop, error: Option<String>, encoding: Encoding, now: Instant) {
        if self.waiting.is_empty() {
            self.answered_at = now;
        }
        let (id, bytes) = (self.next_id, piece.bytes());
        self.next_id += 1;
        let age = now.saturating_duration_since(piece.oldest());
        let received = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let (stream, part) = (piece.stream().name.clone(), piece.part(encoding));
        // The thread is gone only when the process is about to end.
        let _ = self.dead.bundles.send(Bundle { id, stream, reason, error, received, part, bytes });
        self.bytes += bytes;
        self.waiting.insert(id, (piece, reason));
    }

    fn take(&mut self, id: u64, now: Instant) -> Option<(Piece, Drop)> {
        self.answered_at = now;
        let (piece, reason) = self.waiting.remove(&id)?;
        self.bytes -= piece.bytes();
        Some((piece, reason))
    }

    /// Gives everything back that is on its way. It may be written all the same.
    fn take_all(&mut self) -> Vec<Piece> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_values().map(|(piece, _)| piece).collect()
    }
}

impl Delivery {
    /// Has what can never be delivered kept as dead letters.
    pub fn with_dead_letters(mut self, dead: DeadLetters) -> Self {
        let (waiting, answered_at) = (BTreeMap::new(), Instant::now());
        self.letters = Some(Letters { dead, waiting, bytes: 0, next_id: 0, answered_at });
        self
    }

    /// Gives up a piece that is in no queue and can never be delivered: its events are dropped once they are dead
    /// letters, or at once where they cannot be.
    pub(super) fn bury(&mut self, piece: Piece, reason: Drop, error: Option<String>, now: Instant) {
        let encoding = self.encoding;
        match self.letters.as_mut().filter(|letters| letters.has_room()) {
            Some(letters) => letters.send(piece, reason, error, encoding, now),
            None => self.give_up(&piece, reason, now),
        }
    }

    fn give_up(&mut self, piece: &Piece, reason: Drop, now: Instant) {
        self.drop_piece(piece, reason, now);
        piece.stream().label.leave(piece.events(), piece.place());
    }

    /// Hears what became of a bundle.
    pub(super) fn hear_of_letter(&mut self, answer: Answer, now: Instant) {
        let Some((piece, reason)) = self.letters.as_mut().and_then(|letters| letters.take(answer.id, now))
        else {
            return;
        };
        let is_letter = answer.is_written || failpoint::has(Flaw::TrustsLetters);
        self.give_up(&piece, if is_letter { Drop::DeadLetter } else { reason }, now);
        self.expire(piece.stream().id, now);
        self.offer(piece.stream().id, now);
    }

    /// Hears of everything that became of bundles.
    pub(super) fn hear_of_letters(&mut self, now: Instant) {
        while let Some(answer) =
            self.letters.as_mut().and_then(|letters| letters.dead.answers.try_recv().ok())
        {
            self.hear_of_letter(answer, now);
        }
    }

    /// Whether nothing is on its way to the dead letters.
    pub(super) fn has_no_letters(&self) -> bool {
        self.letters.as_ref().is_none_or(Letters::is_empty)
    }

    /// Puts back into the queues what is on its way to the dead letters: there is no time left to wait for them.
    pub(super) fn take_letters_back(&mut self, now: Instant) {
        for piece in self.letters.as_mut().map(Letters::take_all).unwrap_or_default() {
            let id = self.open_queue(&piece.stream().clone(), now);
            self.streams.get_mut(&id).expect("it was opened").push_retry(piece);
        }
    }

    /// Has streams with a `max_age` looked at from now on.
    pub(super) fn watch_age(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.watches_age, true) {
            self.timers.push(std::cmp::Reverse((now + AGE_EVERY, Timer::Age)));
        }
    }

    /// Gives up what has grown too old, and goes on watching while a stream may have some.
    pub(super) fn expire_all(&mut self, now: Instant) {
        self.watches_age = false;
        let has_age = self.streams.values().filter(|queue| queue.stream.settings.load().max_age.is_some());
        let mut streams: Vec<u64> = has_age.map(|queue| queue.stream.id).collect();
        // Always in the same order, so that a simulation can be replayed.
        streams.sort_unstable();
        for id in streams {
            self.watch_age(now);
            self.expire(id, now);
            self.offer(id, now);
        }
    }

    /// Gives up what a stream has that is too old, and says whether some is left for which the dead letters have no
    /// room yet.
    pub(super) fn expire(&mut self, id: u64, now: Instant) -> bool {
        let Some(queue) = self.streams.get(&id) else { return false };
        let max_age = queue.stream.settings.load().max_age;
        let Some(limit) = max_age.and_then(|age| now.checked_sub(age)) else { return false };
        loop {
            let waits =
                self.letters.as_ref().is_some_and(|letters| !letters.has_room() && !letters.is_stuck(now));
            let Some(queue) = self.streams.get_mut(&id) else { return false };
            if waits {
                return queue.has_expired(limit);
            }
            let Some(piece) = queue.take_expired(limit, self.encoding, &self.parts.memory) else {
                return false;
            };
            self.bury(piece, Drop::MaxAge, None, now);
        }
    }
}
