//! When streams are sealed: each at its own phase of `linger`, the same instants on every shard, so that the
//! pieces of a low-rate stream meet in delivery and share a call. A wheel of slots; pure.

use std::time::{Duration, Instant};

/// Slots of the wheel: the resolution of a stream's phase.
pub const SLOTS: usize = 256;

/// The open streams of one shard, by phase.
#[derive(Debug)]
pub struct Wheel {
    /// When tick 0 was; shared by all shards.
    epoch: Instant,
    tick: Duration,
    /// The last tick that was handed out.
    last: u64,
    slots: Vec<Vec<u32>>,
    occupied: [u64; SLOTS / 64],
}

impl Wheel {
    /// A wheel that turns once in `linger` and has stood at tick 0 at `epoch`.
    pub fn new(epoch: Instant, linger: Duration) -> Self {
        Self {
            epoch,
            tick: linger / SLOTS as u32,
            last: 0,
            slots: vec![Vec::new(); SLOTS],
            occupied: [0; SLOTS / 64],
        }
    }

    /// Has the stream `index` sealed at the next instant of its phase.
    pub fn add(&mut self, phase: usize, index: u32) {
        self.slots[phase].push(index);
        self.occupied[phase / 64] |= 1 << (phase % 64);
    }

    /// Hands out the streams whose instant has come.
    pub fn take_due(&mut self, now: Instant, mut due: impl FnMut(u32)) {
        let current = self.tick_at(now);
        if self.is_empty() {
            self.last = current;
            return;
        }
        let turns = (current - self.last).min(SLOTS as u64);
        for tick in (current - turns + 1)..=current {
            let slot = (tick % SLOTS as u64) as usize;
            if self.occupied[slot / 64] & (1 << (slot % 64)) != 0 {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
                self.slots[slot].drain(..).for_each(&mut due);
            }
        }
        self.last = current;
    }

    /// When the next stream falls due.
    pub fn next_due(&self) -> Option<Instant> {
        let start = self.last + 1;
        let ahead = (0..SLOTS as u64).find(|ahead| {
            let slot = ((start + ahead) % SLOTS as u64) as usize;
            self.occupied[slot / 64] & (1 << (slot % 64)) != 0
        })?;
        let tick = u64::try_from(self.tick.as_nanos()).expect("a tick is far shorter than 500 years");
        Some(self.epoch + Duration::from_nanos(tick * (start + ahead)))
    }

    fn is_empty(&self) -> bool {
        self.occupied == [0; SLOTS / 64]
    }

    fn tick_at(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(elapsed / self.tick.as_nanos()).expect("a process does not live that long")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_due_at_its_phase_and_only_then() {
        let epoch = Instant::now();
        let mut wheel = Wheel::new(epoch, Duration::from_millis(256));
        let at = |millis| epoch + Duration::from_millis(millis);
        wheel.take_due(at(1000), |_| panic!("nothing is open"));
        wheel.add(1020 % SLOTS, 7);
        wheel.add(1010 % SLOTS, 8);
        assert_eq!(wheel.next_due(), Some(at(1010)));
        let mut due = Vec::new();
        wheel.take_due(at(1009), |index| due.push(index));
        assert!(due.is_empty());
        wheel.take_due(at(1010), |index| due.push(index));
        assert_eq!(due, [8]);
        assert_eq!(wheel.next_due(), Some(at(1020)));
        wheel.take_due(at(9000), |index| due.push(index));
        assert_eq!((due, wheel.next_due()), (vec![8, 7], None));
    }

    #[test]
    fn two_wheels_of_one_epoch_agree() {
        let epoch = Instant::now();
        let linger = Duration::from_secs(1);
        let (mut one, mut two) = (Wheel::new(epoch, linger), Wheel::new(epoch, linger));
        one.take_due(epoch + Duration::from_millis(3_100), |_| ());
        two.take_due(epoch + Duration::from_millis(3_200), |_| ());
        one.add(200, 0);
        two.add(200, 0);
        assert_eq!(one.next_due(), two.next_due());
    }
}
