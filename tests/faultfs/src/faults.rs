//! Which operations fail, and which are slow: rules that are looked at before an operation is done.

use std::time::Duration;

use fuser::Errno;

/// What a rule can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Making a file or a folder.
    Create,
    /// Opening a file.
    Open,
    /// Reading a file.
    Read,
    /// fsync and fdatasync, of a file or of a folder.
    Sync,
    /// Changing a length, or reserving room.
    Resize,
    /// Taking a name away or giving another.
    Rename,
    /// Writing to a file.
    Write,
}

impl Operation {
    /// The operation of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "create" => Self::Create,
            "open" => Self::Open,
            "read" => Self::Read,
            "fsync" => Self::Sync,
            "resize" => Self::Resize,
            "rename" => Self::Rename,
            "write" => Self::Write,
            _ => return None,
        })
    }

    /// Whether it changes what is on the disk.
    fn changes(self) -> bool {
        !matches!(self, Self::Open | Self::Read)
    }
}

#[derive(Debug)]
struct Failure {
    operation: Operation,
    error: Errno,
    /// How often it still happens; for ever if there is no number.
    left: Option<u64>,
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Faults {
    failures: Vec<Failure>,
    delays: Vec<(Operation, Duration)>,
    read_only: bool,
    lies: bool,
}

impl Faults {
    /// From now on `operation` fails, `times` times or for ever.
    pub fn fail(&mut self, operation: Operation, error: Errno, times: Option<u64>) {
        self.failures.push(Failure { operation, error, left: times });
    }

    /// From now on `operation` takes so much longer.
    pub fn delay(&mut self, operation: Operation, delay: Duration) {
        self.delays.retain(|(delayed, _)| *delayed != operation);
        self.delays.push((operation, delay));
    }

    /// From now on nothing can be changed, as when a kernel has met a damaged disk.
    pub fn set_read_only(&mut self) {
        self.read_only = true;
    }

    /// From now on a sync says that it is done, and keeps nothing: what a program that forgets to sync would meet.
    pub fn set_lying(&mut self) {
        self.lies = true;
    }

    /// Whether syncs only say that they are done.
    pub fn lies(&self) -> bool {
        self.lies
    }

    /// How long `operation` has to wait before it is done.
    pub fn delay_of(&self, operation: Operation) -> Duration {
        self.delays
            .iter()
            .find(|(delayed, _)| *delayed == operation)
            .map_or(Duration::ZERO, |(_, delay)| *delay)
    }

    /// Whether `operation` fails this time.
    ///
    /// # Errors
    ///
    /// The error that it fails with.
    pub fn check(&mut self, operation: Operation) -> Result<(), Errno> {
        if self.read_only && operation.changes() {
            return Err(Errno::EROFS);
        }
        let due = |failure: &&mut Failure| failure.operation == operation && failure.left != Some(0);
        let Some(failure) = self.failures.iter_mut().find(due) else { return Ok(()) };
        failure.left = failure.left.map(|left| left - 1);
        Err(failure.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_happens_as_often_as_asked() {
        let mut faults = Faults::default();
        faults.fail(Operation::Sync, Errno::EIO, Some(2));
        let seen: Vec<bool> = (0..4).map(|_| faults.check(Operation::Sync).is_err()).collect();
        assert_eq!(seen, [true, true, false, false]);
        assert!(faults.check(Operation::Write).is_ok());
    }

    #[test]
    fn a_read_only_disk_can_still_be_read() {
        let mut faults = Faults::default();
        faults.set_read_only();
        assert!(faults.check(Operation::Read).is_ok() && faults.check(Operation::Open).is_ok());
        assert!(faults.check(Operation::Write).is_err() && faults.check(Operation::Rename).is_err());
    }
}
