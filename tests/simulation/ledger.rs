//! What was sent over all processes, and what became of it as its sender and the destination see it. The relay's own
//! figures are held against this; it knows nothing of how the relay works.

use std::time::Instant;

/// The streams, and the delivery streams that each is mapped to: one stream has two, and two share one.
pub const STREAMS: [(&str, &[&str]); 4] = [
    ("clicks", &["one", "two"]),
    ("views", &["two"]),
    ("logs", &["three"]),
    ("a.rather-long_name", &["four"]),
];
/// Fewer failed reads than that, and a batch is read again.
const READS_MAX: u32 = 5;
/// What marks an event that the destination never takes.
const POISON: &str = "poison";

/// One event.
#[derive(Clone, Debug)]
pub struct Sent {
    pub stream: usize,
    /// Its LF included.
    payload: Vec<u8>,
    /// When a shard read it.
    pub received_at: Option<Instant>,
    pub deliveries: u32,
    /// How often it was written as a dead letter.
    letters: u32,
    /// A call with it ended without a known outcome, or it was found on disk after an end without order.
    may_repeat: bool,
    /// A process was killed, or closed the connection, before anybody was told that it is safe.
    may_vanish: bool,
    /// Its sender was told that it is safe.
    pub is_safe: bool,
    /// The destination has refused it, or a record with it, by itself.
    pub was_refused: bool,
    /// The destination took it and lost it.
    pub was_lost: bool,
    /// Reads of what holds it that failed.
    failed_reads: u32,
    /// It is no longer delivered when it is too old.
    may_age: bool,
}

impl Sent {
    /// Whether it is somewhere where it can be found.
    fn is_somewhere(&self) -> bool {
        self.deliveries + self.letters > 0
    }

    /// Whether it may be lost although its sender was told that it is safe, which is counted.
    fn may_be_lost(&self) -> bool {
        self.was_refused || self.was_lost || self.failed_reads >= READS_MAX || self.may_age
    }
}

/// What the processes that have ended counted of one stream, in events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// That may have been sent twice.
    pub possible: u64,
    pub recovered: u64,
    /// That became dead letters.
    pub letters: u64,
    /// That were dropped and are nowhere.
    pub dropped: u64,
    /// Those of them that may have been on disk: could not be read from there, were refused for good, were too old, were
    /// lost behind the destination.
    pub damaged: u64,
    pub rejected: u64,
    pub aged: u64,
    pub lost: u64,
}

impl std::ops::AddAssign for Counted {
    fn add_assign(&mut self, other: Self) {
        self.possible += other.possible;
        self.recovered += other.recovered;
        self.letters += other.letters;
        self.dropped += other.dropped;
        self.damaged += other.damaged;
        self.rejected += other.rejected;
        self.aged += other.aged;
        self.lost += other.lost;
    }
}

#[derive(Debug, Default)]
pub struct Ledger {
    sent: Vec<Sent>,
    pub repeats: [u64; STREAMS.len()],
    pub counted: [Counted; STREAMS.len()],
    pub deliveries: u64,
}

impl Ledger {
    /// An event is to be sent: its token and its frame. `may_age`: its stream has a `max_age`.
    pub fn send(&mut self, stream: usize, filler: &str, is_poison: bool, may_age: bool) -> (u64, Vec<u8>) {
        let token = self.sent.len() as u64;
        let poison = if is_poison { POISON } else { "sound" };
        let payload = format!("token {token} {poison} {filler}\n").into_bytes();
        let frame = [STREAMS[stream].0.as_bytes(), b" ", &payload[..]].concat();
        self.sent.push(Sent {
            stream,
            payload,
            received_at: None,
            deliveries: 0,
            letters: 0,
            may_repeat: false,
            may_vanish: false,
            is_safe: false,
            was_refused: false,
            was_lost: false,
            failed_reads: 0,
            may_age,
        });
        (token, frame)
    }

    pub fn get(&self, token: u64) -> &Sent {
        &self.sent[token as usize]
    }

    pub fn get_mut(&mut self, token: u64) -> &mut Sent {
        &mut self.sent[token as usize]
    }

    /// How many events were sent.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// The event that a payload is, which must be as it was sent.
    pub fn recognize(&self, payload: &[u8]) -> u64 {
        let text = std::str::from_utf8(payload).expect("nothing is delivered that was not sent");
        let token = text.strip_prefix("token ").and_then(|rest| rest.split(' ').next());
        let token: u64 = token.and_then(|token| token.parse().ok()).expect("what is delivered has its token");
        assert!((token as usize) < self.sent.len(), "event {token} was never sent");
        assert_eq!(self.get(token).payload, payload, "event {token} was changed");
        token
    }

    /// The destination got an event. It gets none twice, and none that is a dead letter, unless nobody can know.
    pub fn arrive(&mut self, token: u64) {
        self.deliveries += 1;
        let sent = &mut self.sent[token as usize];
        assert!(
            !sent.is_somewhere() || sent.may_repeat,
            "event {token} is repeated although every outcome was known: {sent:?}"
        );
        self.repeats[sent.stream] += u64::from(sent.deliveries > 0);
        sent.deliveries += 1;
    }

    /// An event was written as a dead letter. None is that was delivered, or twice, unless nobody can know.
    pub fn keep(&mut self, token: u64) {
        let sent = &mut self.sent[token as usize];
        assert!(
            !sent.is_somewhere() || sent.may_repeat,
            "event {token} is a dead letter and not only that: {sent:?}"
        );
        sent.letters += 1;
    }

    pub fn is_poison(&self, token: u64) -> bool {
        let marker = format!("token {token} {POISON} ");
        self.get(token).payload.starts_with(marker.as_bytes())
    }

    /// Nobody can know whether the event was delivered, or kept as a dead letter: it may come again.
    pub fn doubt(&mut self, token: u64) {
        self.sent[token as usize].may_repeat = true;
    }

    /// The disk did not give the event when it was asked for.
    pub fn note_failed_read(&mut self, token: u64) {
        self.sent[token as usize].failed_reads += 1;
    }

    /// A process was killed: what was in it may be lost, unless somebody was told that it is safe.
    pub fn kill(&mut self) {
        for sent in &mut self.sent {
            sent.may_vanish |= !sent.is_safe;
        }
    }

    /// A process ended before it had read an event.
    pub fn leave_unread(&mut self, token: u64) {
        self.sent[token as usize].may_vanish = true;
    }

    /// At the very end every event was delivered, or is a dead letter, or is counted as dropped, or was lost in a crash
    /// before anybody was told that it is safe. What was said to be safe is lost only where it could never be
    /// delivered or the disk did not give it back, and is counted as that.
    pub fn check_end(&self) {
        for (stream, (name, _)) in STREAMS.iter().enumerate() {
            let counted = &self.counted[stream];
            let missing = || self.sent.iter().filter(|sent| sent.stream == stream && !sent.is_somewhere());
            let silent = missing().filter(|sent| !sent.may_vanish).count() as u64;
            assert!(
                silent <= counted.dropped,
                "{silent} events of {name} are lost, and counted are {counted:?}"
            );
            let safe = missing().filter(|sent| sent.is_safe);
            safe.clone().for_each(|sent| {
                assert!(sent.may_be_lost(), "an event of {name} is lost that was said to be safe: {sent:?}");
            });
            let safe = safe.count() as u64;
            assert!(
                safe <= counted.damaged + counted.rejected + counted.aged + counted.lost,
                "{safe} events of {name} are lost that were said to be safe, and counted are {counted:?}"
            );
            let repeats = self.repeats[stream];
            assert!(
                repeats <= counted.possible,
                "{repeats} events of {name} came twice, counted are {counted:?}"
            );
        }
    }
}
