//! The file operations that the machine asks for, and what became of them. How they are done is the executor's.

use bytes::Bytes;

use super::Kind;

/// One file of the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct File {
    /// The directory: [`OWN`](super::OWN), or the number under which one was adopted.
    pub dir: u32,
    /// Its number in the directory.
    pub number: u32,
    /// What it is for.
    pub kind: Kind,
}

/// A file operation that the machine asks for. Those of one file may be under way together only where their order
/// does not matter.
#[derive(Clone, Debug)]
pub enum Op {
    /// Make this file, which must not exist.
    Create(File),
    /// Write these parts behind each other from `offset` on, all or fail.
    Write {
        /// Where to.
        file: File,
        /// From which byte on.
        offset: u64,
        /// What.
        parts: Vec<Bytes>,
    },
    /// Make the bytes and the length of the file durable.
    Sync(File),
    /// Make the names in this directory durable.
    SyncDir(u32),
    /// Read `length` bytes from `offset` on, or as many as there are.
    Read {
        /// Where from.
        file: File,
        /// From which byte on.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Close the file, without syncing it; it may be opened again for reading.
    Close(File),
    /// Remove the file; one that is gone already counts as removed.
    Remove(File),
    /// Move the segment out of the way, beside the instances.
    Quarantine(File),
    /// Remove an adopted directory, which is empty, and give up its lock.
    RemoveDir(u32),
    /// Tell how many bytes are free on the file system.
    Space,
}

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub(super) u64);

/// What became of an operation.
#[derive(Clone, Debug)]
pub enum OpResult {
    /// Done.
    Done,
    /// What was read.
    Read(Bytes),
    /// Bytes free.
    Space(u64),
    /// It failed; how, in words for the log.
    Failed(String),
}

/// A file of a directory that is adopted.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Its number.
    pub number: u32,
    /// What it is for.
    pub kind: Kind,
    /// Its length in bytes.
    pub length: u64,
    /// When it was last written, in milliseconds since 1970.
    pub modified: u64,
}
