//! A file system for tests that has two layers, as a disk behind a page cache has: what was written, and what was
//! synced. A `kill -9` proves nothing about fsync, since the page cache outlives the process; a cut here takes back
//! everything that no fsync covered. It holds its files in memory, and is no place for anything else.
//!
//! - [`disk`]: files and folders in two layers, pure. [`contents`] is one file.
//! - [`faults`]: which operations fail or are slow.
//! - [`mount`]: the same as a mounted file system. It needs `/dev/fuse` and root.
//! - [`command`]: one line of text, what it does, and its answer.
//!
//! What counts as synced is the least that POSIX promises: fsync of a file keeps its bytes but not its name; the
//! name is kept by an fsync of its folder. A failed fsync behaves as on Linux: what it covered is readable until
//! the cut, and no later fsync keeps it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod command;
pub mod contents;
pub mod disk;
pub mod faults;
pub mod mount;
