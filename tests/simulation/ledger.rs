//! What was sent over all processes, and what became of it as its sender and the destination see it. The relay's own
//! figures are held against this; it knows nothing of how the relay works.

/// The streams, and the delivery streams that each is mapped to: one stream has two, and two share one.
pub const STREAMS: [(&str, &[&str]); 4] = [
    ("clicks", &["one", "two"]),
    ("views", &["two"]),
    ("logs", &["three"]),
    ("a.rather-long_name", &["four"]),
];
/// What marks an event that the destination never takes.
const POISON: &str = "poison";

/// One event.
#[derive(Clone, Debug)]
pub struct Sent {
    pub stream: usize,
    /// Its LF included.
    payload: Vec<u8>,
    pub deliveries: u32,
    /// A call with it ended without a known outcome, or a process that held it was killed.
    may_repeat: bool,
    /// A process was killed, or closed the connection, before anybody was told that it is safe.
    may_vanish: bool,
    /// Its sender was told that it is safe.
    pub is_safe: bool,
}

/// What the processes that have ended counted of one stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Events that may have been sent twice.
    pub possible: u64,
    pub dropped: u64,
    /// Those of them that were dropped although they may have been on disk.
    pub dropped_from_disk: u64,
}

#[derive(Debug, Default)]
pub struct Ledger {
    sent: Vec<Sent>,
    pub repeats: [u64; STREAMS.len()],
    pub counted: [Counted; STREAMS.len()],
    pub deliveries: u64,
}

impl Ledger {
    /// An event is to be sent, with about so many octets of payload: its token and its frame.
    pub fn send(&mut self, stream: usize, filler: &str, is_poison: bool) -> (u64, Vec<u8>) {
        let token = self.sent.len() as u64;
        let poison = if is_poison { POISON } else { "sound" };
        let payload = format!("token {token} {poison} {filler}\n").into_bytes();
        let frame = [STREAMS[stream].0.as_bytes(), b" ", &payload[..]].concat();
        self.sent.push(Sent {
            stream,
            payload,
            deliveries: 0,
            may_repeat: false,
            may_vanish: false,
            is_safe: false,
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

    /// The destination got an event. It gets none twice unless nobody can know.
    pub fn arrive(&mut self, token: u64) {
        self.deliveries += 1;
        let sent = &mut self.sent[token as usize];
        sent.deliveries += 1;
        if sent.deliveries > 1 {
            self.repeats[sent.stream] += 1;
            assert!(sent.may_repeat, "event {token} is repeated although every outcome was known");
        }
    }

    pub fn is_poison(&self, token: u64) -> bool {
        let marker = format!("token {token} {POISON} ");
        self.get(token).payload.starts_with(marker.as_bytes())
    }

    /// A call with the event ends without a known outcome.
    pub fn doubt(&mut self, token: u64) {
        self.sent[token as usize].may_repeat = true;
    }

    /// A process did not come to its end in time: what it delivered may come again.
    pub fn doubt_all(&mut self) {
        self.sent.iter_mut().for_each(|sent| sent.may_repeat = true);
    }

    /// A process was killed: what was in it may be lost, and what it delivered may come again.
    pub fn kill(&mut self) {
        for sent in &mut self.sent {
            sent.may_repeat = true;
            sent.may_vanish |= sent.deliveries == 0 && !sent.is_safe;
        }
    }

    /// A process ended before it had read an event.
    pub fn leave_unread(&mut self, token: u64) {
        self.sent[token as usize].may_vanish = true;
    }

    /// At the very end every event was delivered, or is counted as dropped, or was lost in a crash before anybody
    /// was told that it is safe. `reads`: whether everything that was on disk could be read; what can not be read to
    /// be moved from a segment that failed, and is lost from memory in a crash after that, is in quarantine.
    pub fn check_end(&self, reads: bool) {
        for (stream, (name, _)) in STREAMS.iter().enumerate() {
            let counted = &self.counted[stream];
            let missing = || self.sent.iter().filter(|sent| sent.stream == stream && sent.deliveries == 0);
            let silent = missing().filter(|sent| !sent.may_vanish).count() as u64;
            assert!(
                silent <= counted.dropped,
                "{silent} events of {name} are lost, of which {} are counted as dropped",
                counted.dropped
            );
            let safe = missing().filter(|sent| sent.is_safe).count() as u64;
            assert!(
                safe <= counted.dropped_from_disk || !reads,
                "{safe} events of {name} are lost that were said to be safe, of which {} are counted",
                counted.dropped_from_disk
            );
            assert!(
                self.repeats[stream] <= counted.possible,
                "{} events of {name} came twice, of which {} are counted as possible",
                self.repeats[stream],
                counted.possible
            );
        }
    }
}
