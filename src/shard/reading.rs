//! How much of each connection is read. Memory for half-received frames has a share of its own; when it is
//! spent, only connections that hold little are read, a little at a time, and one elected holder a shard, so
//! that its frame is completed and its memory comes home. A holder that gives no byte for long is closed: half
//! frames can never block each other for ever.

use std::time::{Duration, Instant};

use super::intake::Intake;
use crate::memory::PartialPressure;
use crate::net::{Key, Reading};

/// A connection that keeps no more than this is small.
const SMALL_KEPT_BYTES: usize = 8 * 1024;
/// An elected holder that gives no byte for so long is closed.
const HOLDER_STALL: Duration = Duration::from_secs(30);

/// How short memory for half-received frames is, as this shard sees it.
#[derive(Debug)]
pub(super) struct Pressure {
    level: PartialPressure,
    /// The one connection that is read although it holds much.
    elected: Option<Key>,
    elected_at: Option<Instant>,
}

impl Default for Pressure {
    fn default() -> Self {
        Self { level: PartialPressure::None, elected: None, elected_at: None }
    }
}

impl Pressure {
    pub(super) fn is_on(&self) -> bool {
        self.level != PartialPressure::None
    }

    /// A connection is gone.
    pub(super) fn forget(&mut self, key: Key) {
        if self.elected == Some(key) {
            self.elected = None;
        }
    }
}

impl Intake {
    /// Charges what a connection keeps to the share of half-received frames.
    pub(super) fn charge_partial(&mut self, key: Key) {
        let Some(peer) = self.peers[key as usize].as_mut() else { return };
        let kept = peer.connection.kept_capacity();
        let syncs = peer.syncs.as_ref().map_or(0, |syncs| syncs.bytes());
        if (kept, syncs) != (peer.charged, peer.charged_syncs) {
            let before = peer.charged + peer.charged_syncs;
            (peer.charged, peer.charged_syncs) = (kept, syncs);
            self.shared().memory.move_partial(before as u64, (kept + syncs) as u64);
        }
    }

    /// Tells the driver how much of a connection is to be read, where that has changed.
    pub(super) fn set_reading(&mut self, key: Key) {
        let Some(peer) = self.peers[key as usize].as_ref() else { return };
        let is_blocked = (peer.blocked_on.is_some() || peer.is_answered_only) && !peer.is_parting;
        let wanted = self.wanted_reading(key, peer.charged, is_blocked);
        if wanted == peer.reading {
            return;
        }
        match (peer.reading, wanted) {
            (_, Reading::Paused) => self.counters().paused.add(1),
            (Reading::Paused, _) => self.counters().paused.sub(1),
            _ => (),
        }
        if let Some(peer) = self.peers[key as usize].as_mut() {
            peer.reading = wanted;
        }
        self.note_reading(key, wanted);
    }

    fn wanted_reading(&self, key: Key, kept: usize, is_blocked: bool) -> Reading {
        let is_elected = self.pressure.elected == Some(key);
        match self.pressure.level {
            _ if is_blocked => Reading::Paused,
            PartialPressure::None => Reading::Full,
            _ if is_elected => Reading::Full,
            PartialPressure::Spent if kept <= SMALL_KEPT_BYTES => Reading::Small,
            PartialPressure::Spent | PartialPressure::Exceeded => Reading::Paused,
        }
    }

    /// Looks at the share again, elects a holder where one is needed, and closes one that has stalled.
    pub(super) fn relieve(&mut self) {
        let before = self.pressure.level;
        let level = self.shared().memory.partial_pressure(before);
        if level == PartialPressure::None && before == PartialPressure::None {
            return;
        }
        self.pressure.level = level;
        let now = self.now();
        if level > before
            && let Some(more) = self.logged.partial.say(now)
        {
            tracing::warn!(
                "memory for half-received frames is spent: connections that hold much are paused{more}"
            );
        }
        self.close_stalled_holder();
        let elected = if level == PartialPressure::None { None } else { self.elect() };
        let changed = elected != self.pressure.elected || level != before;
        if elected != self.pressure.elected {
            self.pressure.elected = elected;
            self.pressure.elected_at = Some(self.now());
        }
        if changed {
            for key in 0..self.peers.len() {
                self.set_reading(key as Key);
            }
        }
    }

    /// The holder that is read: the one elected before while it holds much, else whoever is closest to done.
    fn elect(&self) -> Option<Key> {
        let holds_much = |key: usize| {
            let peer = self.peers[key].as_ref()?;
            (peer.charged > SMALL_KEPT_BYTES && peer.blocked_on.is_none()).then_some(peer.charged)
        };
        if let Some(key) = self.pressure.elected.filter(|key| holds_much(*key as usize).is_some()) {
            return Some(key);
        }
        let holders = (0..self.peers.len()).filter_map(|key| holds_much(key).map(|kept| (kept, key)));
        holders.max().map(|(_, key)| key as Key)
    }

    fn close_stalled_holder(&mut self) {
        let Some(key) = self.pressure.elected else { return };
        // A holder was not read before it was elected, so its silence counts from then.
        let since =
            self.peers[key as usize].as_ref().map(|peer| peer.last_data).max(self.pressure.elected_at);
        if since.is_some_and(|since| self.now().saturating_duration_since(since) > HOLDER_STALL) {
            self.counters().stalled.add(1);
            self.close(key);
            let now = self.now();
            if let Some(more) = self.logged.stalled.say(now) {
                tracing::warn!(
                    "a connection was closed that held half a frame and gave no byte for {} s, since memory is \
                     short{more}",
                    HOLDER_STALL.as_secs()
                );
            }
        }
    }
}
