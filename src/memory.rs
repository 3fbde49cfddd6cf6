//! One limit on memory, and who holds how much of it. Charges are allocated capacity, made when a buffer grows
//! and returned when it is dropped; nothing is charged per event. [`Plan`] is the sum that `standpipe check`
//! prints; [`Memory`] is what enforces its part for events at run time.
//!
//! Invariants: with nothing held every figure is zero; a stream's share never depends on what another stream
//! holds until three quarters of the limit are used. What is encoded for a call, and what is read back from disk, is
//! charged whether there is room or not: the limit is overrun by an eighth of it and the bodies of all calls at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

mod machine;
mod plan;

pub use plan::{Machine, Plan, PlanError};

/// A stream may always hold this much, in bytes, whatever the limit.
const STREAM_BYTES_MIN: u64 = 256 * 1024;
/// Above this part of the limit delivery is behind.
const BEHIND_SHARE: u64 = 8;

/// What one stream holds, in bytes.
#[derive(Debug, Default)]
pub struct Account {
    held: AtomicU64,
}

/// The memory that events may take, in bytes, shared by all shards and delivery.
#[derive(Debug)]
pub struct Memory {
    limit: u64,
    stream_max: u64,
    partial_max: u64,
    used: AtomicU64,
    holders: AtomicU64,
    partial: AtomicU64,
    waiting: AtomicUsize,
}

/// How far the share of half-received frames is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartialPressure {
    /// There is room: every connection is read.
    None,
    /// The share is spent: only small connections and one elected holder a shard are read.
    Spent,
    /// Twice the share is used: only the elected holder is read.
    Exceeded,
}

impl Memory {
    /// The limits that a plan leaves for events.
    pub fn new(plan: &Plan) -> Arc<Self> {
        Self::with_limits(plan.events, plan.stream_bytes_max().max(STREAM_BYTES_MIN), plan.partial)
    }

    /// Limits of one's own, in bytes, for tests: of everything, of a stream, and of half-received frames.
    #[doc(hidden)]
    pub fn with_limits(limit: u64, stream_max: u64, partial_max: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            stream_max,
            partial_max,
            used: AtomicU64::new(0),
            holders: AtomicU64::new(0),
            partial: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Bytes held by events, in all.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Bytes held by half-received frames and by what paused connections had already sent.
    pub fn partial(&self) -> u64 {
        self.partial.load(Relaxed)
    }

    /// Whether more than half of the limit is used, so that open buffers should be sealed early.
    pub fn is_above_half(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// Whether enough is held that delivery, where it shares a processor with the shards, should have its turn: what
    /// waits long leaves the caches, and holding it costs page faults.
    pub fn is_behind(&self) -> bool {
        self.used() > self.limit / BEHIND_SHARE
    }

    /// Whether a stream could take `bytes` more.
    ///
    /// A stream that holds nothing may always take one event, so that no share is too small for a large frame;
    /// the limit in all still holds, except for the only holder.
    pub fn has_room(&self, account: &Account, bytes: u64) -> bool {
        let (used, held) = (self.used(), account.held.load(Relaxed));
        let share_allows = held == 0 || held + bytes <= self.share(used);
        let limit_allows = used == 0 || used + bytes <= self.limit;
        share_allows && limit_allows
    }

    /// What a stream may hold now, in bytes.
    fn share(&self, used: u64) -> u64 {
        if used <= self.short_from() {
            return self.stream_max;
        }
        let equal = self.limit / self.holders.load(Relaxed).max(1);
        self.stream_max.min(2 * equal)
    }

    /// How many bytes a stream is over what it should hold where the rest can go to disk: above three quarters of
    /// its share everything beyond half of it; else none.
    pub fn beyond_share(&self, account: &Account) -> u64 {
        let (held, share) = (account.held.load(Relaxed), self.share(self.used()));
        if held > share / 4 * 3 { held - share / 2 } else { 0 }
    }

    /// Whether a stream may read so many bytes back from disk and still hold no more than half of its share.
    pub fn may_read_back(&self, account: &Account, bytes: u64) -> bool {
        account.held.load(Relaxed) + bytes <= self.share(self.used()) / 2
    }

    /// How many bytes are used beyond three quarters of the limit.
    pub fn beyond_limit(&self) -> u64 {
        self.used().saturating_sub(self.short_from())
    }

    /// With more than so many bytes used, memory is short: three quarters of the limit.
    fn short_from(&self) -> u64 {
        self.limit / 4 * 3
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The largest open buffer that leaves a stream room to gather while earlier batches are under way.
    pub fn batch_bytes_max(&self) -> u64 {
        self.stream_max / 4
    }

    fn charge(&self, account: &Account, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.used.fetch_add(bytes, Relaxed);
        if account.held.fetch_add(bytes, Relaxed) == 0 {
            self.holders.fetch_add(1, Relaxed);
        }
    }

    fn release(&self, account: &Account, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.used.fetch_sub(bytes, Relaxed);
        if account.held.fetch_sub(bytes, Relaxed) == bytes {
            self.holders.fetch_sub(1, Relaxed);
        }
    }

    /// Moves one connection's part of the partial share from `before` to `after` bytes.
    pub fn move_partial(&self, before: u64, after: u64) {
        // Wrapping addition of the difference: one atomic step whichever way it goes.
        self.partial.fetch_add(after.wrapping_sub(before), Relaxed);
    }

    /// How far the partial share is spent. `now` gives hysteresis: pressure that stands goes away only below
    /// three quarters of the share.
    pub fn partial_pressure(&self, now: PartialPressure) -> PartialPressure {
        let used = self.partial();
        if used > 2 * self.partial_max {
            PartialPressure::Exceeded
        } else if used > self.partial_max || (now > PartialPressure::None && used > self.partial_max / 4 * 3)
        {
            PartialPressure::Spent
        } else {
            PartialPressure::None
        }
    }

    /// A connection was paused for memory.
    pub fn add_waiting(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// A paused connection went on or away.
    pub fn remove_waiting(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// How many connections are paused for memory.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

/// Memory charged to an account until this is dropped.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    account: Arc<Account>,
    bytes: u64,
}

impl Charge {
    /// A charge of nothing yet.
    pub fn none(memory: &Arc<Memory>, account: &Arc<Account>) -> Self {
        Self { memory: Arc::clone(memory), account: Arc::clone(account), bytes: 0 }
    }

    /// A charge of `bytes`, made whether there is room or not: for what must be held in any case.
    pub fn forced(memory: &Arc<Memory>, account: &Arc<Account>, bytes: u64) -> Self {
        let mut charge = Self::none(memory, account);
        charge.set(bytes);
        charge
    }

    /// Adds `bytes` if there is room for them.
    #[must_use]
    pub fn try_add(&mut self, bytes: u64) -> bool {
        if !self.memory.has_room(&self.account, bytes) {
            return false;
        }
        self.memory.charge(&self.account, bytes);
        self.bytes += bytes;
        true
    }

    /// Makes the charge `bytes`, whether there is room or not.
    pub fn set(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.memory.charge(&self.account, bytes - self.bytes);
        } else {
            self.memory.release(&self.account, self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// The bytes charged.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands the whole charge on and leaves none.
    pub fn take(&mut self) -> Charge {
        let bytes = std::mem::take(&mut self.bytes);
        Charge { memory: Arc::clone(&self.memory), account: Arc::clone(&self.account), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.release(&self.account, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const MIB: u64 = 1 << 20;

    fn memory(total: u64) -> (Arc<Memory>, Plan) {
        let config = Config { memory: Some(total), ..Config::default() };
        let plan = Plan::new(&config, Machine { memory: 1 << 40, cpus: 2, files: 20_000 }).expect("enough");
        (Memory::new(&plan), plan)
    }

    #[test]
    fn a_stream_holds_an_eighth_of_the_limit_and_no_other_notices() {
        let (memory, plan) = memory(1024 * MIB);
        let (greedy, other) = (Arc::default(), Arc::default());
        let mut charge = Charge::none(&memory, &greedy);
        let mut taken = 0;
        while charge.try_add(MIB) {
            taken += MIB;
        }
        assert_eq!(taken, plan.stream_bytes_max());
        assert!(Charge::none(&memory, &other).try_add(MIB));
        drop(charge);
        assert_eq!((memory.used(), memory.holders.load(Relaxed)), (0, 0));
    }

    #[test]
    fn above_three_quarters_nobody_holds_more_than_twice_an_equal_share() {
        let (memory, plan) = memory(1024 * MIB);
        let accounts: Vec<Arc<Account>> = (0..40).map(|_| Arc::default()).collect();
        let charges: Vec<Charge> =
            accounts.iter().map(|account| Charge::forced(&memory, account, plan.events / 50)).collect();
        assert!(memory.used() > plan.events / 4 * 3);
        let equal = plan.events / 40;
        assert!(memory.has_room(&accounts[0], equal / 2));
        assert!(!memory.has_room(&accounts[0], 2 * equal - plan.events / 50 + 1));
        drop(charges);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn an_empty_stream_takes_one_large_event_whatever_its_share() {
        let (memory, _) = memory(64 * MIB);
        let account = Arc::default();
        let mut charge = Charge::none(&memory, &account);
        assert!(charge.try_add(10 * MIB), "the share is 8 MiB, but nothing is held");
        assert!(!charge.try_add(1));
        let handed_on = charge.take();
        drop(charge);
        assert_eq!(memory.used(), 10 * MIB);
        drop(handed_on);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn the_partial_share_has_two_steps_and_hysteresis() {
        let (memory, plan) = memory(64 * MIB);
        let none = PartialPressure::None;
        memory.move_partial(0, plan.partial + 1);
        assert_eq!(memory.partial_pressure(none), PartialPressure::Spent);
        memory.move_partial(0, plan.partial);
        assert_eq!(memory.partial_pressure(none), PartialPressure::Exceeded);
        memory.move_partial(plan.partial + plan.partial / 8, 0);
        assert_eq!(memory.partial_pressure(PartialPressure::Spent), PartialPressure::Spent);
        assert_eq!(memory.partial_pressure(none), none);
    }

    #[test]
    fn a_plan_adds_up_to_its_limit_and_says_what_is_too_small() {
        let (_, plan) = memory(64 * MIB);
        let parts = [
            plan.base,
            plan.rings,
            plan.stacks,
            plan.connections,
            plan.labels,
            plan.slack,
            plan.partial,
            plan.spool,
        ];
        assert_eq!(parts.iter().sum::<u64>() + plan.events, plan.total);
        let config = Config { memory: Some(16 * MIB), ..Config::default() };
        let machine = Machine { memory: 1 << 40, cpus: 2, files: 20_000 };
        let error = Plan::new(&config, machine).expect_err("too small").to_string();
        assert!(error.contains("set memory to"), "{error}");
        let needed =
            error.rsplit("set memory to ").next().and_then(|rest| rest.split(' ').next()).expect("a size");
        let needed = needed.parse::<f64>().expect("a number") * MIB as f64;
        let enough = Config { memory: Some(needed as u64), ..Config::default() };
        assert!(Plan::new(&enough, machine).is_ok(), "what the message asks for is enough");
    }

    #[test]
    fn a_spool_takes_its_part_of_the_memory() {
        let machine = Machine { memory: 1 << 40, cpus: 2, files: 20_000 };
        let plan = |spool| {
            let config = Config { memory: Some(1024 * MIB), spool, ..Config::default() };
            Plan::new(&config, machine).expect("enough")
        };
        let (without, with) = (plan(None), plan(Some("spool".into())));
        assert_eq!((without.spool, with.events + with.spool), (0, without.events));
        assert!(with.spool > 2 * with.spool_group && with.spool_group == 8 * MIB);
    }
}
