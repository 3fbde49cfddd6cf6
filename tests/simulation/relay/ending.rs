//! How the processes of a history end, in order or not, and how another follows; and the end of it all.

use std::sync::Arc;
use std::time::Duration;

use standpipe::shard::bare::Bare as Shard;

use super::World;
use super::process::Process;
use crate::client::Client;
use crate::disk::Faults;
use crate::host::Host;
use crate::ledger::STREAMS;
use crate::letters;

/// When nothing fails any more, everything is delivered within so long.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);
/// How long an orderly end may take.
const DRAIN_DEADLINE: Duration = Duration::from_secs(8);

impl World {
    /// The configuration is read again and is another: streams move to other lanes, are packed otherwise, or lose their
    /// table. Shards and delivery hear of it one after the other, as in a process.
    pub(super) fn reload(&mut self) {
        self.tally.reloads += 1;
        self.setting.change(&mut self.rng);
        let config = Arc::new(self.setting.config.clone());
        self.endpoint.map_too(&config);
        self.process.shared.config.store(Arc::clone(&config));
        self.process.shared.registry.reload(Arc::clone(&config));
        for index in 0..self.process.shards.len() {
            self.process.shards[index].adopt();
            self.run(false);
        }
        self.endpoint.map(&config);
        self.process.delivery.reload(config, self.now);
    }

    /// The process is killed; with it goes power, or not.
    pub(super) fn crash(&mut self, power: bool) {
        self.tally.crashes += 1;
        self.note(format!("killed, with power: {power}"));
        drop(self.endpoint.cut(&mut self.ledger, &mut self.rng));
        if let Some(host) = self.process.host.take() {
            host.die(&mut self.disk, &mut self.rng);
        }
        if power {
            self.disk.lose_power(&mut self.rng);
        }
        self.ledger.kill();
        self.replace();
    }

    /// Another process takes the place of one that has ended. What it finds without the note of an orderly end may have
    /// been delivered.
    fn replace(&mut self) {
        if let Some(letters) = self.process.letters.take() {
            letters.die(&mut self.ledger, &mut self.rng);
        }
        self.process.close(&mut self.ledger);
        self.disk.left_in_doubt().into_iter().for_each(|token| self.ledger.doubt(token));
        let moment = self.moment();
        self.process = Process::start(&self.setting, &mut self.disk, moment, &mut self.rng);
    }

    /// The process ends in order, and another starts.
    pub(super) fn restart(&mut self) {
        self.tally.restarts += 1;
        self.feed_all();
        self.run(true);
        self.process.shards.iter_mut().for_each(Shard::close_all);
        let mut drained = self.process.delivery.drain(self.now);
        let until = self.now + DRAIN_DEADLINE;
        while drained.try_recv().is_err() && self.now < until {
            self.pass_all(50);
        }
        let has_left = self.process.host.is_none() || self.leave();
        self.process.delivery.abandon(self.now);
        self.run(true);
        for totals in self.process.totals() {
            assert_eq!(totals.held(), totals.spool, "what is left is on disk: {totals:?}");
        }
        drop(self.endpoint.cut(&mut self.ledger, &mut self.rng));
        let is_clean = match self.process.host.take() {
            Some(host) if has_left => host.finish(&mut self.disk),
            Some(host) => {
                host.die(&mut self.disk, &mut self.rng);
                false
            }
            None => true,
        };
        self.note(format!("ended, in time: {has_left}, clean: {is_clean}"));
        self.replace();
    }

    /// Brings what is left to disk; false where the disk does not take it in time.
    fn leave(&mut self) -> bool {
        let _left = self.process.delivery.leave(self.now + Duration::from_secs(1));
        for _ in 0..200 {
            self.pass_all(50);
            if let Some(outcome) = self.process.delivery.cut() {
                for flight in self.endpoint.cut(&mut self.ledger, &mut self.rng) {
                    self.process.delivery.finish(flight, outcome.clone(), self.now);
                }
            }
            if self.process.host.as_ref().is_some_and(Host::has_stopped) {
                return true;
            }
        }
        false
    }

    /// Nothing fails any more: everything is delivered, in this process and in those that find what others left.
    pub(super) fn finish(&mut self) {
        self.endpoint.heal();
        self.disk.faults = Faults::default();
        self.letters = letters::Faults { loses: self.letters.loses, ..letters::Faults::default() };
        self.process.clients.iter_mut().for_each(Client::sync);
        self.drain();
        for _ in 0..2 {
            self.restart();
            self.drain();
        }
        let recovered: u64 = self.process.totals().iter().map(|totals| totals.recovered).sum();
        assert_eq!((recovered, self.disk.bytes()), (0, 0), "nothing is left behind");
        self.restart();
        self.ledger.check_end();
        self.sum_up();
    }

    fn drain(&mut self) {
        let began = self.now;
        // What an earlier process left is found first.
        self.pass_all(100);
        loop {
            self.feed_all();
            self.pass_all(100);
            let process = &self.process;
            let is_spool_empty = process.host.as_ref().is_none_or(Host::is_empty);
            if process.clients.iter().all(Client::is_done) && process.held() == 0 && is_spool_empty {
                break;
            }
            assert!(
                self.now - began <= DRAINED_WITHIN,
                "nothing fails, and it is not delivered: {:?} {:?}",
                process.totals(),
                process.clients
            );
        }
        let took = u64::try_from((self.now - began).as_millis()).expect("it is short");
        self.tally.drained_millis = self.tally.drained_millis.max(took);
        // Segments that are kept for a while go, too.
        for _ in 0..10 {
            self.pass_all(1_000);
        }
        let left = (self.process.held(), self.process.shared.memory.used());
        assert_eq!(left, (0, 0), "nothing is held, and all memory has come home");
        (0..STREAMS.len()).for_each(|stream| self.check_letters(stream, true));
    }

    fn sum_up(&mut self) {
        let tally = &mut self.tally;
        tally.sent = self.ledger.len() as u64;
        tally.deliveries = self.ledger.deliveries;
        tally.repeats = self.ledger.repeats.iter().sum();
        for counted in &self.ledger.counted {
            tally.possible_repeats += counted.possible;
            tally.recovered += counted.recovered;
            tally.letters += counted.letters;
            tally.dropped += counted.dropped + counted.letters;
            tally.damaged += counted.damaged;
            tally.rejected += counted.rejected;
            tally.aged += counted.aged;
        }
    }
}
