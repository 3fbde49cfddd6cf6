//! A sender of the simulated relay: it writes events, frames that are none, and syncs, in pieces of any size, and
//! holds every answer against what it has sent. It never sends anything again.

use std::collections::VecDeque;

use fastrand::Rng;
use standpipe::net::Key;
use standpipe::shard::bare::Bare;

use crate::ledger::Ledger;

/// Bytes on their way to the relay.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    token: Option<u64>,
}

/// A sync that is not answered.
#[derive(Debug)]
struct Sync {
    id: u64,
    /// Its frame was read.
    is_read: bool,
    tokens: Vec<u64>,
    /// Frames that were no events.
    bad: u64,
    /// It may cover more than this connection sent.
    is_wide: bool,
}

#[derive(Debug)]
pub struct Client {
    pub shard: usize,
    key: Key,
    outbox: VecDeque<Frame>,
    /// How much of the first frame was read.
    offset: usize,
    pending: VecDeque<Sync>,
    /// Events and other frames since the last sync.
    tokens: Vec<u64>,
    bad: u64,
    is_wide: bool,
    next_sync: u64,
}

impl Client {
    /// A connection of a shard. One in four is not known to ask before it has sent.
    pub fn new(shard: usize, key: Key, rng: &mut Rng) -> Self {
        let mut client = Self {
            shard,
            key,
            outbox: VecDeque::new(),
            offset: 0,
            pending: VecDeque::new(),
            tokens: Vec::new(),
            bad: 0,
            is_wide: rng.u32(..4) == 0,
            next_sync: 0,
        };
        if !client.is_wide {
            client.push(b"!hello\n", None);
        }
        client
    }

    fn push(&mut self, bytes: &[u8], token: Option<u64>) {
        self.outbox.push_back(Frame { bytes: bytes.to_vec(), token });
    }

    /// Writes an event.
    pub fn send(&mut self, token: u64, frame: &[u8]) {
        self.tokens.push(token);
        self.push(frame, Some(token));
    }

    /// Writes what is no event.
    pub fn send_bad(&mut self, rng: &mut Rng) {
        let bad: [&[u8]; 4] = [b"nospace\n", b" no-name\n", b"un/allowed name\n", b"empty \n"];
        self.bad += 1;
        self.push(bad[rng.usize(..bad.len())], None);
    }

    /// Asks whether what it has sent is safe.
    pub fn sync(&mut self) {
        let id = self.next_sync;
        self.next_sync += 1;
        self.push(format!("!sync {id}\n").as_bytes(), None);
        self.pending.push_back(Sync {
            id,
            is_read: false,
            tokens: std::mem::take(&mut self.tokens),
            bad: std::mem::take(&mut self.bad),
            is_wide: std::mem::take(&mut self.is_wide),
        });
    }

    /// Has the shard read so many bytes at most, if it reads this connection; the events that it has whole now.
    pub fn feed(&mut self, shard: &mut Bare, bytes_max: usize) -> Vec<u64> {
        let (mut bytes, mut whole) = (Vec::new(), Vec::new());
        if !self.is_read(shard) {
            return whole;
        }
        while let Some(frame) = self.outbox.front() {
            let rest = &frame.bytes[self.offset..];
            let taken = rest.len().min(bytes_max - bytes.len());
            bytes.extend_from_slice(&rest[..taken]);
            if taken < rest.len() {
                self.offset += taken;
                break;
            }
            self.offset = 0;
            whole.extend(frame.token);
            if frame.bytes.starts_with(b"!sync") {
                let read = self.pending.iter_mut().find(|sync| !sync.is_read);
                read.expect("a sync is pending before it is read").is_read = true;
            }
            self.outbox.pop_front();
        }
        if !bytes.is_empty() {
            shard.data(self.key, &bytes);
        }
        whole
    }

    /// Whether the shard reads the connection.
    pub fn is_read(&self, shard: &Bare) -> bool {
        shard.is_read(self.key)
    }

    /// Whether the shard has closed the connection.
    pub fn is_closed(&self, shard: &Bare) -> bool {
        !shard.is_open(self.key)
    }

    /// Waits for nothing any more; gives the events that were not read.
    pub fn give_up(&mut self) -> impl Iterator<Item = u64> {
        self.pending.clear();
        self.offset = 0;
        std::mem::take(&mut self.outbox).into_iter().filter_map(|frame| frame.token)
    }

    /// Whether this is the connection.
    pub fn is(&self, shard: usize, key: Key) -> bool {
        (self.shard, self.key) == (shard, key)
    }

    /// Whether everything was read and answered.
    pub fn is_done(&self) -> bool {
        self.outbox.is_empty() && self.pending.is_empty()
    }

    /// The events of which nothing or not all was read.
    pub fn unread(&self) -> impl Iterator<Item = u64> + '_ {
        self.outbox.iter().filter_map(|frame| frame.token)
    }

    /// Whether the first sync is still not answered although it covers no stream of which `is_unsettled` says that
    /// something of this shard is on its way.
    pub fn is_delayed(&self, shard: &Bare, ledger: &Ledger, is_unsettled: impl Fn(usize) -> bool) -> bool {
        // While it is paused nothing is answered.
        let Some(head) = self.pending.front().filter(|head| head.is_read && !head.is_wide) else {
            return false;
        };
        self.is_read(shard) && !head.tokens.iter().any(|token| is_unsettled(ledger.get(*token).stream))
    }

    /// Hears an answer. `needs_delivery`: what is safe is delivered, or else it may be on disk alone.
    pub fn hear(&mut self, answer: &[u8], ledger: &mut Ledger, needs_delivery: bool) {
        let text = std::str::from_utf8(answer).expect("an answer is text").trim_end();
        let mut words = text.split(' ');
        let (verb, id, count) = (words.next(), words.next(), words.next());
        let verb = verb.expect("an answer has a verb");
        if verb == "!hello" {
            return;
        }
        let sync = self.pending.pop_front().expect("nobody is told what it did not ask");
        assert_eq!(id.and_then(|id| id.parse().ok()), Some(sync.id), "answers come in order");
        assert!(sync.is_read, "a sync is answered after it was read");
        let undelivered =
            sync.tokens.iter().filter(|token| ledger.get(**token).deliveries == 0).count() as u64;
        match (verb, count) {
            ("!synced", None) => {
                assert_eq!(sync.bad, 0, "frames that were rejected are lost");
                assert!(!needs_delivery || undelivered == 0, "{undelivered} events are said to be delivered");
                sync.tokens.iter().for_each(|token| ledger.get_mut(*token).is_safe = true);
            }
            ("!lost", Some(count)) => {
                let count: u64 = count.parse().expect("a count");
                assert!(count >= sync.bad, "{count} are said to be lost, and {} were rejected", sync.bad);
                let rest = undelivered.saturating_sub(count - sync.bad);
                assert!(
                    !needs_delivery || rest == 0,
                    "{undelivered} events are lost, {count} are said to be"
                );
            }
            _ => panic!("{text} is no answer"),
        }
    }
}
