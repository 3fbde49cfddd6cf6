//! What histories came to. What nothing comes to is not tested.

/// What a history came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub deliveries: u64,
    pub repeats: u64,
    pub possible_repeats: u64,
    pub dropped: u64,
    /// Events that became dead letters.
    pub letters: u64,
    /// Events that were refused for good, and those that grew too old, where there are no dead letters or could be none.
    pub rejected: u64,
    pub aged: u64,
    /// Events on disk that could not be read, and are counted as that.
    pub damaged: u64,
    pub recovered: u64,
    /// Events on disk, at most at one time.
    pub spooled: u64,
    pub answers: u64,
    /// Answers that said that something is lost.
    pub losses: u64,
    /// How often a connection was not read for want of memory.
    pub pauses: u64,
    /// Calls that started while their lane was failing.
    pub probes: u64,
    pub crashes: u64,
    pub restarts: u64,
    pub reloads: u64,
    /// How far memory was ever over its limit, in bytes, and how long the end ever took.
    pub over_run: u64,
    pub drained_millis: u64,
}

impl Tally {
    /// What some of many histories must have come to.
    pub fn reached(&self) -> [u64; 14] {
        [
            self.repeats,
            self.dropped,
            self.letters,
            self.rejected,
            self.aged,
            self.damaged,
            self.recovered,
            self.spooled,
            self.losses,
            self.pauses,
            self.probes,
            self.crashes,
            self.restarts,
            self.reloads,
        ]
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.deliveries += other.deliveries;
        self.repeats += other.repeats;
        self.possible_repeats += other.possible_repeats;
        self.dropped += other.dropped;
        self.letters += other.letters;
        self.rejected += other.rejected;
        self.aged += other.aged;
        self.damaged += other.damaged;
        self.recovered += other.recovered;
        self.spooled = self.spooled.max(other.spooled);
        self.answers += other.answers;
        self.losses += other.losses;
        self.pauses += other.pauses;
        self.probes += other.probes;
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.reloads += other.reloads;
        self.over_run = self.over_run.max(other.over_run);
        self.drained_millis = self.drained_millis.max(other.drained_millis);
    }
}
