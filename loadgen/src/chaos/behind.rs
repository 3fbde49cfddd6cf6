//! What stands behind a relay: the sink, or the next relay of a chain. What a relay did after it was last looked at,
//! nobody can ask it any more once it is dead; what came here meanwhile says how much that can have been.

use std::time::{Duration, Instant};

use super::station::Station;
use crate::sink::Sink;

/// How long what a dead relay has sent may take to be read.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether it is.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Clone, Copy)]
pub enum Behind<'a> {
    /// The sink.
    Sink(&'a Sink),
    /// The next relay.
    Relay(&'a Station),
    /// Nobody who can be asked.
    Nobody,
}

impl<'a> Behind<'a> {
    /// What stands behind a relay of a chain, of which `next` are those that follow.
    pub fn new(next: &'a [Station], sink: Option<&'a Sink>) -> Self {
        match (next.first(), sink) {
            (Some(next), _) => Self::Relay(next),
            (None, Some(sink)) => Self::Sink(sink),
            (None, None) => Self::Nobody,
        }
    }

    /// Events that have come here so far. The sink knows which of them it had already, and tells of those alone; a
    /// relay does not.
    pub fn came(&self) -> u64 {
        match self {
            Self::Sink(sink) => sink.with_ledger(|ledger| ledger.duplicates()),
            Self::Relay(next) => next.asked("standpipe_events_received_total").unwrap_or(0),
            Self::Nobody => 0,
        }
    }

    /// Waits until everything is read that a relay has sent which is dead now. What takes longer came too late to be
    /// a part of what it may have repeated.
    pub fn wait_until_quiet(&self) {
        let deadline = Instant::now() + QUIET_PATIENCE;
        while self.connections() > 0 && Instant::now() < deadline {
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    fn connections(&self) -> u64 {
        match self {
            Self::Sink(sink) => sink.connections() as u64,
            Self::Relay(next) => next.asked("standpipe_connections").unwrap_or(0),
            Self::Nobody => 0,
        }
    }
}
