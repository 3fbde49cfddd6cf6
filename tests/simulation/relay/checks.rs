//! What holds at every moment of a history, whatever happens.

use standpipe::delivery::lane::LaneState;
use standpipe::metrics::Drop;

use super::World;
use crate::ledger::STREAMS;

impl World {
    /// Delivery has its step. A lane that fails has one call in flight, and all of them half of all calls.
    pub(super) fn step_delivery(&mut self) {
        let config = &self.setting.config;
        let before = self.process.delivery.view(self.now).lanes;
        for (call, flight) in self.process.delivery.step(self.now) {
            let lane = before.iter().find(|lane| lane.delivery_stream == call.delivery_stream);
            let was_failing = lane.is_some_and(|lane| lane.state != LaneState::Active);
            self.tally.probes += u64::from(was_failing);
            self.endpoint.start(call, flight, was_failing, self.now, &mut self.rng);
        }
        for lane in self.process.delivery.view(self.now).lanes {
            assert!(lane.in_flight <= config.max_lane_calls, "{lane:?} has too many calls");
            let before = before.iter().find(|before| before.delivery_stream == lane.delivery_stream);
            let has_started = before.is_some_and(|before| before.in_flight < lane.in_flight);
            let is_failing = lane.state != LaneState::Active;
            assert!(
                !has_started || !is_failing || lane.in_flight == 1,
                "{lane:?} fails, and calls twice at once"
            );
        }
        assert!(self.endpoint.len() <= config.max_calls, "{} calls are in flight", self.endpoint.len());
        let failing = self.endpoint.failing();
        assert!(failing <= config.max_calls.div_ceil(2), "failing lanes have {failing} calls");
        self.take_letters();
    }

    /// What delivery has given up goes to the dead letters. Once it waits for calls no more, it waits for them neither.
    fn take_letters(&mut self) {
        let Some(letters) = &mut self.process.letters else { return };
        letters.take(&self.ledger, self.now, |stream| self.setting.max_age(stream));
        if self.process.delivery.cut().is_some() {
            letters.be_late();
        }
    }

    pub(super) fn check(&mut self) {
        for totals in self.process.totals() {
            let arrived = totals.received + totals.recovered;
            let somewhere = totals.delivered + totals.dropped_in_all() + totals.held();
            assert_eq!(arrived, somewhere, "every event is in exactly one place: {totals:?}");
            self.tally.spooled = self.tally.spooled.max(totals.spool);
        }
        for (stream, (name, _)) in STREAMS.iter().enumerate() {
            let label = self.process.label(stream);
            let (delivered, accepted) = (label.totals().delivered, self.process.accepted[stream]);
            assert_eq!(delivered, accepted, "{name}: what is counted as delivered is what was accepted");
            let possible = self.ledger.counted[stream].possible + label.possible_duplicates();
            let repeats = self.ledger.repeats[stream];
            assert!(
                repeats <= possible,
                "{name}: {repeats} events came twice, {possible} are counted as possible"
            );
            self.check_letters(stream, false);
        }
        self.check_memory();
    }

    /// An event counts as a dead letter when that was written, and under its own reason where it could not be: not
    /// before. `is_quiet`: every answer was heard.
    pub(super) fn check_letters(&self, stream: usize, is_quiet: bool) {
        let name = STREAMS[stream].0;
        let dropped = self.process.label(stream).totals().dropped;
        let kept = dropped[Drop::DeadLetter as usize];
        let given_up = dropped[Drop::Rejected as usize] + dropped[Drop::MaxAge as usize];
        let Some(letters) = &self.process.letters else {
            return assert_eq!(kept, 0, "{name}: there are no dead letters");
        };
        let answered = (letters.written[stream], letters.unwritten[stream]);
        assert!(
            kept <= answered.0 && given_up <= answered.1,
            "{name}: {kept} events are counted as dead letters and {given_up} as none, and answered were {answered:?}"
        );
        assert!(
            !is_quiet || (kept, given_up) == answered,
            "{name}: {answered:?} events became dead letters or could not, and {kept} and {given_up} are counted"
        );
    }

    /// Memory is never over its limit but by what is encoded for calls, which is charged whether there is room or not,
    /// and by what is read back from disk: an eighth of the limit and one batch beyond that, larger by a third once it
    /// is encoded.
    fn check_memory(&mut self) {
        let memory = &self.process.shared.memory;
        let over_run = memory.used().saturating_sub(memory.limit());
        self.tally.over_run = self.tally.over_run.max(over_run);
        let calls = (self.setting.config.max_calls as u64 + 1) * self.endpoint.largest();
        let longest = self.process.host.as_ref().map_or(0, |host| host.longest_read);
        let read_back = (memory.limit() / 8 + longest) * 4 / 3;
        assert!(
            over_run <= read_back + calls,
            "memory is {over_run} bytes over its limit of {}, where {read_back} may be read back, and all calls \
             together have {calls} at most",
            memory.limit()
        );
    }

    /// A lane that is stuck delays no sync that does not cover it. Where there is a spool, one batch on disk holds what
    /// several shards had of a stream, and is settled as a whole.
    pub(super) fn check_delays(&self) {
        let unsettled = &self.process.unsettled;
        for client in &self.process.clients {
            let is_unsettled = |stream: usize| match self.process.host {
                Some(_) => unsettled.iter().any(|shard| shard[stream] > 0),
                None => unsettled[client.shard][stream] > 0,
            };
            let is_delayed =
                client.is_delayed(&self.process.shards[client.shard], &self.ledger, is_unsettled);
            assert!(
                !is_delayed,
                "nothing that it covers is on its way, and a sync is not answered: {client:?}"
            );
        }
    }
}
