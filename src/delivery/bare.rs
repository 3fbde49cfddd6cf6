//! Delivery without its task, its clock and its destination: batches and outcomes in, calls out, and nobody waits.
//! For the simulation, which must be able to replay what it has seen. It is no second delivery: every step is the one
//! that the task takes.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Delivery, Ended, Parts, Started, View, spill};
use crate::config::Config;
use crate::dead_letter::DeadLetters;
use crate::destination::{Call, Encoding, Outcome};
use crate::spool::keeper::Keeper;

/// See the module. The destination among its parts is never called.
#[derive(Debug)]
pub struct Bare(Delivery);

/// What delivery keeps of a call until its outcome is told.
#[derive(Debug)]
pub struct Flight(Started);

impl Bare {
    /// Delivery to a destination that takes `encoding`. `epoch` is the same moment on both clocks, the second in
    /// milliseconds since 1970; jitter is drawn from `seed`.
    pub fn new(
        parts: Parts,
        spool: Option<Keeper>,
        encoding: Encoding,
        epoch: (Instant, u64),
        seed: u64,
    ) -> Self {
        let mut delivery = Delivery::new(parts, spool);
        delivery.encoding = encoding;
        delivery.jitter = fastrand::Rng::with_seed(seed);
        if let Some(spill) = &mut delivery.spill {
            spill.epoch = epoch;
        }
        Self(delivery)
    }

    /// The same, which has what can never be delivered kept as dead letters.
    pub fn with_dead_letters(self, dead: DeadLetters) -> Self {
        Self(self.0.with_dead_letters(dead))
    }

    /// Does all that can be done at `now`; gives the calls that start with it.
    pub fn step(&mut self, now: Instant) -> Vec<(Call, Flight)> {
        self.0.step(now);
        self.0.starting.drain(..).map(|(call, started)| (call, Flight(started))).collect()
    }

    /// A call has ended.
    pub fn finish(&mut self, flight: Flight, outcome: Outcome, now: Instant) {
        self.0.finish(Ended { call: flight.0, outcome }, now);
    }

    /// When something is due although nothing has come: a lane's wait is over, or lines have waited for others.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Goes by these settings from now on.
    pub fn reload(&mut self, config: Arc<Config>, now: Instant) {
        self.0.reload(config, now);
    }

    /// Cuts every wait short; what is given resolves once nothing is left to deliver.
    pub fn drain(&mut self, now: Instant) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        self.0.drain(done, now);
        is_done
    }

    /// Calls no more and brings what is left to the spool; what is given resolves once it is synced.
    pub fn leave(&mut self, cut_at: Instant) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        self.0.leave(cut_at, done);
        is_done
    }

    /// The outcome that calls in flight are to have, where they are cut.
    pub fn cut(&self) -> Option<Outcome> {
        self.0.is_cut.then(spill::cut_off)
    }

    /// Drops what is left, counted.
    pub fn abandon(&mut self, now: Instant) {
        self.0.abandon(now);
    }

    /// What delivery looks like from outside.
    pub fn view(&self, now: Instant) -> View {
        self.0.view(now)
    }
}
