//! What a shard says to its connections: answers to control frames, and the answers to syncs once outcomes come
//! back. What a sync covers and when it is safe is known to `sync` and `window`; here is who is told.

use super::intake::{Action, Block, Intake, Peer};
use super::sync::{self, PENDING_MAX, Syncs};
use crate::batch::Settled;
use crate::config::SyncAt;
use crate::connection::Taken;
use crate::failpoint::{self, Point};
use crate::frame::{Reject, STREAM_NAME_BYTES_MAX};
use crate::net::Key;
use crate::queue::Returned;

/// Answers that a connection may leave unread; then it is not read until it reads.
const ANSWERS_BYTES_MAX: usize = 64 * 80;

impl Peer {
    /// Whether it may not have another sync.
    pub(super) fn has_most_syncs(&self) -> bool {
        self.syncs_pending() >= PENDING_MAX
    }

    pub(super) fn syncs_pending(&self) -> usize {
        self.syncs.as_ref().map_or(0, |syncs| syncs.pending())
    }

    pub(super) fn has_uncovered(&self) -> bool {
        self.lost > 0 || self.syncs.as_ref().is_some_and(|syncs| syncs.has_uncovered())
    }
}

impl Intake {
    /// Answers a control frame. An old client never sees this, since `!` is no stream character.
    pub(super) fn control(&mut self, key: Key, peer: &mut Peer, control: &[u8]) -> Taken {
        if peer.is_shut {
            return Taken::Yes;
        }
        if peer.answers_bytes > ANSWERS_BYTES_MAX && !self.closing {
            peer.blocked_on = Some(Block::Answers);
            let now = self.now();
            if let Some(more) = self.logged.paused_unread.say(now) {
                tracing::warn!(
                    "a connection is paused until it reads the answers that it has asked for{more}"
                );
            }
            return Taken::Blocked;
        }
        self.track(peer);
        let control = control.strip_suffix(b"\r").unwrap_or(control);
        let answer = match control {
            b"ping" => b"!pong\n".to_vec(),
            b"hello" => match self.config.sync_at {
                SyncAt::Delivered => b"!hello sync_at=delivered\n".to_vec(),
                SyncAt::Stored => b"!hello sync_at=stored\n".to_vec(),
            },
            _ => match control.strip_prefix(b"sync ") {
                Some(id) if sync::is_id(id) => return self.sync(key, peer, id),
                _ => self.not_understood(control, key),
            },
        };
        self.say(key, peer, answer);
        Taken::Yes
    }

    /// From its first control frame on it is known which batches hold what a connection sends.
    fn track(&mut self, peer: &mut Peer) {
        if peer.syncs.is_none() {
            peer.syncs = Some(Box::new(match peer.has_events {
                false => Syncs::new(),
                true => Syncs::covering_all(&self.window, self.lost_in_all - peer.lost_before),
            }));
        }
    }

    fn not_understood(&mut self, control: &[u8], key: Key) -> Vec<u8> {
        self.count_rejected(Reject::BadControl, &[b"!", control].concat(), key);
        let verb = control.split(|octet| *octet == b' ').next().unwrap_or_default();
        if verb == b"sync" {
            return b"!error sync wants an ID of 1 to 64 printable octets\n".to_vec();
        }
        let verb = &verb[..verb.len().min(STREAM_NAME_BYTES_MAX)];
        format!("!error unknown verb {}\n", verb.escape_ascii()).into_bytes()
    }

    fn sync(&mut self, key: Key, peer: &mut Peer, id: &[u8]) -> Taken {
        if peer.has_most_syncs() && self.closing {
            // Its time is over, and what it does not hear is not safe.
            return Taken::Yes;
        }
        if peer.has_most_syncs() {
            peer.blocked_on = Some(Block::Syncs);
            let now = self.now();
            if let Some(more) = self.logged.paused_syncing.say(now) {
                tracing::info!(
                    "a connection is paused until one of its {PENDING_MAX} syncs is answered{more}"
                );
            }
            return Taken::Blocked;
        }
        let lost = std::mem::take(&mut peer.lost);
        if let Some(syncs) = peer.syncs.as_deref_mut() {
            syncs.sync(id, lost);
            self.counters().syncs_pending.add(1);
        }
        if !self.window.is_waiting(key) {
            self.answer_peer(key, peer);
        }
        if peer.leaves_behind_sync {
            peer.blocked_on = Some(Block::Leaving);
            return Taken::Blocked;
        }
        Taken::Yes
    }

    /// Hears what became of batches, and answers the syncs that this completes.
    pub(super) fn hear_outcomes(&mut self) {
        self.take_outcomes();
        let is_wanted = self.window.has_waiting();
        self.returns().want(is_wanted);
        if is_wanted {
            // What was pushed before we wanted to be woken for it.
            self.take_outcomes();
        }
    }

    fn take_outcomes(&mut self) {
        while let Some(returned) = self.returns().pop() {
            match returned {
                Returned::Settled(Settled { id, lost }) => self.settled(id.sequence, lost),
                Returned::Stored(id) if self.config.sync_at == SyncAt::Stored => {
                    self.settled(id.sequence, 0);
                }
                Returned::Stored(_) => (),
            }
        }
    }

    fn settled(&mut self, sequence: u64, lost: u64) {
        let mut woken = std::mem::take(&mut self.woken);
        let stream = self.window.settle(sequence, &mut woken);
        self.lost_in_all += lost;
        if let Some(stream) = stream.filter(|_| lost > 0) {
            let syncs = self.peers.iter_mut().flatten().filter_map(|peer| peer.syncs.as_deref_mut());
            syncs.for_each(|syncs| syncs.lose(stream, sequence, lost));
        }
        for key in woken.drain(..) {
            self.answer_syncs(key);
            self.close_if_done(key);
        }
        self.woken = woken;
    }

    /// Gives a connection the answers that can be given, unless a batch stands in the way of the first.
    pub(super) fn answer_syncs(&mut self, key: Key) {
        if self.window.is_waiting(key) {
            return;
        }
        let Some(peer) = self.peers[key as usize].take_if(|peer| peer.syncs_pending() > 0) else { return };
        let mut peer = peer;
        self.answer_peer(key, &mut peer);
        self.peers[key as usize] = Some(peer);
    }

    /// While it is paused for memory a connection is told nothing: it goes on when there is room.
    fn answer_peer(&mut self, key: Key, peer: &mut Peer) {
        if matches!(peer.blocked_on, Some(Block::Memory { .. })) {
            return;
        }
        let Some(mut syncs) = peer.syncs.take() else { return };
        while let Some(answer) = syncs.next_answer(key, &mut self.window) {
            let counters = self.counters();
            counters.syncs_pending.sub(1);
            let outcome = if answer.lost == 0 { &counters.synced } else { &counters.lost };
            outcome.add(1);
            failpoint::pass(Point::Answer);
            self.say(key, peer, answer.line);
        }
        peer.syncs = Some(syncs);
    }

    fn say(&mut self, key: Key, peer: &mut Peer, line: Vec<u8>) {
        if !peer.is_shut {
            peer.answers_bytes += line.len();
            self.actions.push(Action::Answer(key, line));
        }
    }

    /// Nobody is there any more who could read an answer.
    pub(super) fn give_answers_up(&mut self, key: Key) {
        let Some(mut peer) = self.peers[key as usize].take() else { return };
        self.forget_syncs(key, &peer);
        peer.answers_bytes = 0;
        peer.syncs = None;
        peer.is_shut = true;
        self.peers[key as usize] = Some(peer);
    }

    /// A connection's syncs will not be answered.
    pub(super) fn forget_syncs(&mut self, key: Key, peer: &Peer) {
        self.window.stop_waiting(key);
        self.counters().syncs_pending.sub(peer.syncs_pending() as u64);
    }

    /// Closes a connection that has ended, once all that it sent was taken and all that it asked was answered: a
    /// peer that closed only its own side still reads.
    pub(super) fn close_if_done(&mut self, key: Key) {
        let done = self.peers[key as usize].as_ref().is_some_and(|peer| {
            let is_read_out = peer.is_answered_only || (peer.has_ended && !peer.connection.is_blocked());
            is_read_out && peer.answers_bytes == 0 && peer.syncs_pending() == 0
        });
        if done {
            self.part(key);
        }
    }

    /// Whether answers are on their way that can still be written, or read by a peer that has not closed its side.
    pub(super) fn has_unwritten(&self) -> bool {
        self.peers.iter().flatten().any(|peer| peer.answers_bytes > 0 || peer.is_parting)
    }
}
