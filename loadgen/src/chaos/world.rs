//! What the clients of a round share: where to send, how much, and the books of the sink against which every
//! `!synced` is held at once.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::time::Instant;

use super::schedule::Phase;
use crate::sink::Sink;

/// See the module.
pub struct World {
    /// The streams' names.
    pub streams: Vec<String>,
    address: SocketAddr,
    phase: AtomicU8,
    enough: AtomicBool,
    deadline: Instant,
    /// With it, what is synced must have been accepted by the sink before.
    delivered_to: Option<std::sync::Arc<Sink>>,
}

impl World {
    /// A world that is over at `deadline`. `delivered_to` is the sink, where `!synced` means delivered.
    pub fn new(
        streams: Vec<String>,
        address: SocketAddr,
        deadline: Instant,
        delivered_to: Option<std::sync::Arc<Sink>>,
    ) -> Self {
        Self {
            streams,
            address,
            phase: AtomicU8::new(Phase::Burst as u8),
            enough: AtomicBool::new(false),
            deadline,
            delivered_to,
        }
    }

    /// Where the relay listens, in all of its lives.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the clients are to do now.
    pub fn phase(&self) -> Phase {
        let now = self.phase.load(Relaxed);
        Phase::ALL.into_iter().find(|phase| *phase as u8 == now).expect("only phases are stored")
    }

    /// Tells the clients what to do.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// Nothing new is to be sent any more.
    pub fn end(&self) {
        self.enough.store(true, Relaxed);
    }

    /// Whether nothing new is to be sent any more.
    pub fn is_enough(&self) -> bool {
        self.enough.load(Relaxed)
    }

    /// Whether it took too long.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Looks whether these events, which were just answered `!synced`, are where they are said to be; a sentence if
    /// not.
    pub fn synced(&self, stream: usize, client: u32, sequences: &Range<u64>) -> Option<String> {
        let sink = self.delivered_to.as_ref()?;
        let name = &self.streams[stream];
        let there = sink.with_ledger(|ledger| {
            let below = |end| ledger.accepted_of(name, std::iter::once((client, end)));
            below(sequences.end) - below(sequences.start)
        });
        let said = sequences.end - sequences.start;
        (there != said).then(|| {
            format!(
                "{said} events of {name} from client {client} were synced, but {there} of them are delivered"
            )
        })
    }
}
