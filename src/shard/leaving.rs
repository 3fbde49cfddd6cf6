//! How the relay closes connections of its own accord: one after the other in a drain, and where they have reached
//! `max_connection_age`. Whoever leaves has had every answer that it will get, and nothing that was read of it is lost.
//!
//! A connection that is told to leave is shut down for writing as soon as nothing is left that it may want an answer
//! to, and read on until it ends, or stands at the boundary of a frame and was quiet for [`QUIET`]: closing it with
//! bytes unread would reset it. One that syncs without a pause leaves behind a sync: what comes after that one is not
//! taken, which its sender can tell, since it is never answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::intake::{Action, Block, Intake, Peer};
use crate::config::Config;
use crate::net::Key;

/// A connection at the boundary of a frame that was quiet for so long is closed.
pub(super) const QUIET: Duration = Duration::from_millis(200);
/// How often those that were told to leave are looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often the age of connections is looked at.
const AGE_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that syncs and has sent what no sync covers gets this long to send one: more than the second that a
/// sender may let pass between two.
const SYNC_QUIET: Duration = Duration::from_secs(2);
/// One that still sends after this time leaves behind its next sync.
const SENDING_MAX: Duration = Duration::from_secs(1);
/// A peer to which all is said may be silent for so long before it is closed, since what it still sends may be on its way.
const PARTING_QUIET: Duration = Duration::from_secs(1);
/// How long a peer may take to close its side once all is said.
const PARTING_MAX: Duration = Duration::from_secs(5);
/// Connections are closed within this share of `drain_deadline` at the latest: the rest is for reading them out and
/// for delivering.
const SPREAD_SHARE: f64 = 0.3;
/// Ages differ by this share, so that connections that came together do not leave together.
const AGE_JITTER: f64 = 0.2;

/// When ages are looked at next.
pub(super) fn next_look_at_ages(config: &Config, now: Instant) -> Option<Instant> {
    config.max_connection_age.map(|_| now + AGE_INTERVAL)
}

/// Over which time so many connections are told to leave, at `a_second` at most.
fn spread(connections: usize, a_second: usize, deadline: Duration) -> Duration {
    let wanted = Duration::from_secs_f64(connections as f64 / a_second as f64);
    wanted.min(deadline.mul_f64(SPREAD_SHARE))
}

impl Intake {
    /// When a connection that is accepted now is to leave.
    pub(super) fn leaves_at(&self) -> Option<Instant> {
        if self.is_draining {
            return Some(self.now());
        }
        let age = self.config.max_connection_age?;
        Some(self.now() + age.mul_f64(1.0 - AGE_JITTER * fastrand::f64()))
    }

    /// The drain begins: every connection gets the moment at which it is told.
    pub(super) fn begin_drain(&mut self) {
        let config = Arc::clone(&self.config);
        // Every shard takes all connections for the count, since all of them leave at the same time.
        let connections = self.shared().connections.load(std::sync::atomic::Ordering::Relaxed);
        let spread = spread(connections, config.drain_close_rate, config.drain_deadline);
        let now = self.now();
        for peer in self.peers.iter_mut().flatten().filter(|peer| !peer.is_leaving) {
            peer.leaves_at = Some(now + spread.mul_f64(fastrand::f64()));
        }
        self.is_draining = true;
        self.look_at = Some(now);
    }

    /// Tells those whose time has come, and closes those that are done.
    pub(super) fn see_off(&mut self) {
        let now = self.now();
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        if self.is_draining || self.ages_at.is_some_and(|at| at <= now) {
            self.ages_at = next_look_at_ages(&self.config, now);
            self.tell_who_is_due();
        }
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|key| self.look_at_leaving(*key));
        self.leaving.append(&mut leaving);
        let is_soon = self.is_draining || !self.leaving.is_empty();
        self.look_at = if is_soon { Some(now + LOOK_INTERVAL) } else { self.ages_at };
    }

    fn tell_who_is_due(&mut self) {
        for key in 0..self.peers.len() {
            if self.peers[key].as_ref().is_some_and(|peer| peer.is_due(self.now())) {
                self.tell_to_leave(key as Key);
            }
        }
    }

    /// A peer that has sent without ever asking is told at once. One that asks is told once nothing is left that it
    /// may want an answer to, and one that is new may still ask.
    fn tell_to_leave(&mut self, key: Key) {
        let Some(peer) = self.peers[key as usize].as_mut() else { return };
        peer.is_leaving = true;
        let is_told = peer.has_sent && peer.syncs.is_none();
        self.leaving.push(key);
        if !self.is_draining {
            self.counters().aged.add(1);
        }
        if is_told {
            self.shut(key);
        }
    }

    fn shut(&mut self, key: Key) {
        let Some(peer) = self.peers[key as usize].as_mut() else { return };
        if !std::mem::replace(&mut peer.is_shut, true) {
            self.actions.push(Action::ShutDownWriting(key));
        }
    }

    /// Goes on with one that leaves. Says whether it is still there.
    fn look_at_leaving(&mut self, key: Key) -> bool {
        let now = self.now();
        let Some(peer) = self.peers[key as usize].as_mut().filter(|peer| peer.is_leaving) else {
            return false;
        };
        // Not by the time that has passed: in that nobody may have looked.
        let was_quiet_for = self.caught_up.saturating_duration_since(peer.last_data);
        let was_told_for = peer.leaves_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let (is_asked, has_uncovered) = (peer.syncs_pending() > 0, peer.has_uncovered());
        let may_ask = !peer.is_shut && peer.syncs.is_some();
        let patience = if may_ask && has_uncovered && !is_asked { SYNC_QUIET } else { QUIET };
        if peer.is_parting {
            if was_quiet_for >= PARTING_QUIET || was_told_for >= PARTING_MAX {
                self.close(key);
            }
        } else if peer.is_answered_only {
            // Its last answer closes it.
        } else if peer.connection.is_at_boundary() && was_quiet_for >= patience {
            self.stop_reading(key, is_asked);
        } else if peer.has_sent && !is_asked && !has_uncovered && peer.answers_bytes == 0 {
            self.shut(key);
        } else if may_ask && was_told_for >= SENDING_MAX {
            peer.leaves_behind_sync = true;
        }
        true
    }

    fn stop_reading(&mut self, key: Key, is_asked: bool) {
        let Some(mut peer) = self.peers[key as usize].take_if(|_| is_asked) else {
            return self.close(key);
        };
        self.answer_only(&mut peer);
        self.peers[key as usize] = Some(peer);
        self.set_reading(key);
    }

    /// It is not read any more, and kept for its answers.
    pub(super) fn answer_only(&mut self, peer: &mut Peer) {
        if !std::mem::replace(&mut peer.is_answered_only, true) {
            self.answered_only += 1;
        }
    }

    /// All is said. A peer that has not ended yet is given the time to see that, since closing with bytes unread could
    /// take the last answers from it.
    pub(super) fn part(&mut self, key: Key) {
        let now = self.now();
        let Some(peer) = self.peers[key as usize].as_mut().filter(|peer| !peer.has_ended) else {
            return self.close(key);
        };
        if std::mem::replace(&mut peer.is_parting, true) {
            return;
        }
        (peer.leaves_at, peer.last_data) = (Some(now), now);
        if !std::mem::replace(&mut peer.is_leaving, true) {
            self.leaving.push(key);
        }
        self.shut(key);
        self.set_reading(key);
    }

    /// Time is over: takes what finds room, and closes all but those that wait for an answer.
    pub(super) fn close_all(&mut self) {
        self.closing = true;
        for key in self.keys() {
            let Some(peer) = self.peers[key as usize].as_ref().filter(|peer| !peer.is_answered_only) else {
                continue;
            };
            if peer.blocked_on != Some(Block::Leaving) {
                self.feed(key, None);
            }
            let is_asked = self.peers[key as usize].as_ref().is_some_and(|peer| peer.syncs_pending() > 0);
            self.stop_reading(key, is_asked);
        }
    }
}

impl Peer {
    fn is_due(&self, now: Instant) -> bool {
        !self.is_leaving && self.leaves_at.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_at_a_rate_and_within_a_share_of_the_deadline() {
        let (second, deadline) = (Duration::from_secs(1), Duration::from_secs(25));
        assert_eq!(spread(0, 1000, deadline), Duration::ZERO);
        assert_eq!(spread(1000, 1000, deadline), second);
        assert_eq!(spread(1_000_000, 1000, deadline), deadline.mul_f64(SPREAD_SHARE));
    }
}
