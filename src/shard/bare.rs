//! A shard without its driver and its clock: bytes in, sealed batches out, and nobody sleeps. For the benches, the
//! instruction guard and the fuzz targets, which must not depend on how a kernel batches by timing. It is no second shard: every
//! step is the one that the driver's loop takes.

use std::sync::Arc;
use std::time::Instant;

use super::intake::Intake;
use super::{Shared, Wheel};
use crate::net::{Handler, Key};

/// See the module. It is shard 0 of what it shares, and its connections were accepted by listener 0.
#[derive(Debug)]
pub struct Bare(Intake);

impl Bare {
    /// A shard with `connections` open connections, which have the keys from 0 on.
    pub fn new(shared: Arc<Shared>, connections: Key) -> Self {
        let wheel = Wheel::new(shared.metrics.epoch, shared.config.linger);
        let mut intake = Intake::new(0, wheel, shared);
        (0..connections).for_each(|key| {
            intake.shared().places.enter(0);
            intake.opened(key, 0);
        });
        Self(intake)
    }

    /// Takes bytes that were read from a connection.
    pub fn data(&mut self, key: Key, bytes: &[u8]) {
        self.0.data(key, bytes);
    }

    /// Does what is done once after each wait: seals what is due at `now`, hears of outcomes. What the driver would
    /// be told is kept and never done, so a stream must not come to its cap.
    pub fn turn(&mut self, now: Instant) {
        self.0.woke(now);
        self.0.turn();
    }

    /// Seals whatever is open.
    pub fn seal_all(&mut self) {
        self.0.seal_all();
    }

    /// The answers to control frames since the last look, with the connection of each.
    pub fn take_answers(&mut self) -> Vec<(Key, Vec<u8>)> {
        self.0.take_answers()
    }

    /// Whether a connection waits for memory: from then on a bench would measure nothing.
    pub fn has_waiting(&self) -> bool {
        self.0.has_waiting()
    }
}
