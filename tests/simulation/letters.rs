//! The thread that keeps dead letters, played, with its disk: what delivery gives up is written whole or not at all,
//! soon or much later, and answered. What is written stays, whatever becomes of the process.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use fastrand::Rng;
use standpipe::dead_letter::{Answer, Bundle, DeadLetters};
use standpipe::metrics::Drop;
use standpipe::spool::keeper::Part;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::endpoint;
use crate::ledger::{Ledger, STREAMS};

/// How the disk of the letters fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// How often a file cannot be written, in 1,000.
    pub writes: u32,
    /// Nothing is answered at all.
    pub is_stuck: bool,
    /// A mutation: what is said to be written is not.
    pub loses: bool,
}

#[derive(Debug)]
pub struct Letters {
    bundles: Receiver<Bundle>,
    answers: UnboundedSender<Answer>,
    /// Bundles that are not answered, with their events.
    waiting: VecDeque<(Bundle, Vec<u64>)>,
    /// Nobody waits for an answer any more: what is written now goes to the next process as well.
    is_late: bool,
    /// Events of each stream that were answered as written, and those that could not be.
    pub written: [u64; STREAMS.len()],
    pub unwritten: [u64; STREAMS.len()],
}

impl Letters {
    pub fn start() -> (Self, DeadLetters) {
        let (bundles_to, bundles) = mpsc::channel();
        let (answers, answers_from) = unbounded_channel();
        let letters = Self {
            bundles,
            answers,
            waiting: VecDeque::new(),
            is_late: false,
            written: Default::default(),
            unwritten: Default::default(),
        };
        let dead = DeadLetters { bundles: bundles_to, answers: answers_from, bytes_max: Arc::default() };
        (letters, dead)
    }

    /// Takes what delivery has given up. That was refused by itself, or every event of it is too old.
    pub fn take(&mut self, ledger: &Ledger, now: Instant, max_age: impl Fn(usize) -> Option<Duration>) {
        while let Ok(bundle) = self.bundles.try_recv() {
            let tokens = tokens(&bundle, ledger);
            for token in &tokens {
                let sent = ledger.get(*token);
                assert_eq!(STREAMS[sent.stream].0, &*bundle.stream, "event {token} changes its stream");
                let age = sent.received_at.map(|at| now - at);
                let is_due = match bundle.reason {
                    Drop::Rejected => sent.was_refused && bundle.error.is_some(),
                    _ => max_age(sent.stream).is_some_and(|max| age > Some(max)) && bundle.error.is_none(),
                };
                assert!(is_due, "event {token} is given up and need not be: {bundle:?}");
            }
            self.waiting.push_back((bundle, tokens));
        }
    }

    /// From now on nobody hears the answers: what waits for them goes its way without.
    pub fn be_late(&mut self) {
        self.is_late = true;
    }

    /// Writes the oldest bundle and answers, if there is one and the disk does anything: its events.
    pub fn perform_one(&mut self, faults: Faults, ledger: &mut Ledger, rng: &mut Rng) -> Option<Vec<u64>> {
        if faults.is_stuck {
            return None;
        }
        let (bundle, tokens) = self.waiting.pop_front()?;
        let is_written = rng.u32(..1000) >= faults.writes;
        let counts = if is_written { &mut self.written } else { &mut self.unwritten };
        tokens.iter().for_each(|token| counts[ledger.get(*token).stream] += 1);
        if is_written && !faults.loses {
            self.write(&tokens, ledger);
        }
        // Delivery is there as long as its process is.
        let _ = self.answers.send(Answer { id: bundle.id, is_written });
        Some(if self.is_late { Vec::new() } else { tokens })
    }

    fn write(&self, tokens: &[u64], ledger: &mut Ledger) {
        for token in tokens {
            if self.is_late {
                ledger.doubt(*token);
            }
            ledger.keep(*token);
        }
    }

    /// The process ends: what was under way is written, or is not, and nobody hears of it.
    pub fn die(mut self, ledger: &mut Ledger, rng: &mut Rng) {
        self.is_late = true;
        for (_, tokens) in &self.waiting {
            if rng.bool() {
                self.write(tokens, ledger);
            }
        }
    }
}

/// The events of a bundle.
fn tokens(bundle: &Bundle, ledger: &Ledger) -> Vec<u64> {
    let lines = match &bundle.part {
        Part::Lines(lines) => lines.to_vec(),
        Part::Records(body, records) => {
            let of = |start: u32, end: u32| endpoint::decode(&body[start as usize..end as usize]).concat();
            records.iter().flat_map(|record| of(record.start, record.end)).collect()
        }
    };
    assert_eq!(lines.len(), bundle.bytes, "a bundle says how long it is");
    lines.split_inclusive(|octet| *octet == b'\n').map(|line| ledger.recognize(line)).collect()
}
