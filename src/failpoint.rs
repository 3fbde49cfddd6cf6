//! Named points at which a relay can be made to kill itself, as if by `kill -9`, for tests of what survives. In a
//! release build there are none: [`pass`] is empty there.
//!
//! Beside them stand flaws: mistakes that a test has its own thread make, to show that it would notice them.
//!
//! The variable `FAILPOINT=NAME:TIMES` lets the process die when it comes to that point for the so many-th time. It
//! is no setting, so it does not begin with `STANDPIPE_`. `MUTATION=skip-fsync` makes the spool a liar, for tests of
//! the tests: whoever cannot find that out proves nothing about fsync.

/// A point. Its name is what stands in the variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A batch was sealed, and is about to be handed over.
    Seal,
    /// A call is about to be made.
    CallBefore,
    /// A call has ended, and nobody has heard of it.
    CallAfter,
    /// What became of a call is about to be settled.
    Settle,
    /// The answer to a sync is about to be written.
    Answer,
    /// Bytes are about to be appended to a segment of the spool.
    AppendBefore,
    /// They were.
    AppendAfter,
    /// A segment, or a folder of the spool, is about to be synced.
    SyncBefore,
    /// It was.
    SyncAfter,
    /// A segment of the spool is about to be removed.
    RemoveBefore,
    /// It was.
    RemoveAfter,
    /// A file of dead letters is about to get its name.
    LetterBefore,
    /// It has it, synced, and nobody has heard of it.
    LetterAfter,
    /// A file of dead letters was sent again and synced, and is about to be removed.
    ReplayedBefore,
}

impl Point {
    /// Every point.
    pub const ALL: [Point; 14] = [
        Point::Seal,
        Point::CallBefore,
        Point::CallAfter,
        Point::Settle,
        Point::Answer,
        Point::AppendBefore,
        Point::AppendAfter,
        Point::SyncBefore,
        Point::SyncAfter,
        Point::RemoveBefore,
        Point::RemoveAfter,
        Point::LetterBefore,
        Point::LetterAfter,
        Point::ReplayedBefore,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Point::Seal => "seal",
            Point::CallBefore => "call.before",
            Point::CallAfter => "call.after",
            Point::Settle => "settle",
            Point::Answer => "answer",
            Point::AppendBefore => "append.before",
            Point::AppendAfter => "append.after",
            Point::SyncBefore => "fsync.before",
            Point::SyncAfter => "fsync.after",
            Point::RemoveBefore => "remove.before",
            Point::RemoveAfter => "remove.after",
            Point::LetterBefore => "letter.before",
            Point::LetterAfter => "letter.after",
            Point::ReplayedBefore => "replayed.before",
        }
    }
}

/// A mistake in the relay's own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// What goes into a call is settled when the call starts, whatever becomes of it.
    SettlesEarly,
    /// A call that was accepted in part is made again as a whole.
    ResendsWhole,
    /// What could not be written as a dead letter counts as one.
    TrustsLetters,
}

/// Passes a point, or dies there.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_point: Point) {}

/// Whether this thread is to make a mistake: never in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn has(_flaw: Flaw) -> bool {
    false
}

/// Whether this thread is to make a mistake.
#[cfg(debug_assertions)]
pub fn has(flaw: Flaw) -> bool {
    FLAW.get() == Some(flaw)
}

/// Has this thread make a mistake from now on, or none. In a release build it makes none.
#[doc(hidden)]
pub fn make(flaw: Option<Flaw>) {
    #[cfg(debug_assertions)]
    FLAW.set(flaw);
    #[cfg(not(debug_assertions))]
    let _ = flaw;
}

#[cfg(debug_assertions)]
thread_local! {
    static FLAW: std::cell::Cell<Option<Flaw>> = const { std::cell::Cell::new(None) };
}

/// Passes a point, or dies there.
#[cfg(debug_assertions)]
pub fn pass(point: Point) {
    if let Some((fatal, left)) = &*fate::FATE
        && *fatal == point
        && left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1
    {
        fate::die();
    }
}

/// Whether the spool is to say that it has synced when it has not.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn skips_fsync() -> bool {
    false
}

/// Whether the spool is to say that it has synced when it has not.
#[cfg(debug_assertions)]
pub fn skips_fsync() -> bool {
    *fate::SKIPS_FSYNC
}

#[cfg(debug_assertions)]
mod fate {
    use std::sync::LazyLock;
    use std::sync::atomic::AtomicI64;

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    pub(super) static FATE: LazyLock<Option<(Point, AtomicI64)>> =
        LazyLock::new(|| parse(&std::env::var("FAILPOINT").ok()?));

    pub(super) static SKIPS_FSYNC: LazyLock<bool> =
        LazyLock::new(|| std::env::var("MUTATION").is_ok_and(|name| name == "skip-fsync"));

    pub(super) fn parse(text: &str) -> Option<(Point, AtomicI64)> {
        let (name, times) = text.split_once(':')?;
        let point = Point::ALL.into_iter().find(|point| point.name() == name)?;
        Some((point, AtomicI64::new(times.parse().ok()?)))
    }

    pub(super) fn die() -> ! {
        // Nothing else may run any more, not even what aborting would.
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_found_by_its_name() {
        for point in Point::ALL {
            let (found, left) = fate::parse(&format!("{}:3", point.name())).unwrap();
            assert_eq!((found, left.into_inner()), (point, 3));
        }
        assert!(fate::parse("nowhere:1").is_none() && fate::parse("seal:x").is_none());
    }
}
