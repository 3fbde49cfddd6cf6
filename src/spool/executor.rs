//! Performs the machine's operations on real files, in one of two ways behind one face: through io_uring
//! (tokio-uring), so that a read waits for no fsync, or with plain pwrite, pread and fdatasync, one after the
//! other, where io_uring is refused. What is rare (making, removing, directories) is a plain call in both.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;

use super::host::Host;
use super::{Op, OpResult};
use crate::failpoint::{self, Point};
use crate::metrics::Histogram;

/// Parts of one vectored write: the kernel takes no more than 1,024 (IOV_MAX).
const PARTS_MAX: usize = 512;

/// An open file.
pub(super) enum Handle {
    Uring(tokio_uring::fs::File),
    Plain(std::fs::File),
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Handle")
    }
}

impl Handle {
    /// With `uses_uring` this must be called on a thread of tokio-uring's.
    pub(super) fn new(descriptor: OwnedFd, uses_uring: bool) -> Self {
        let file = std::fs::File::from(descriptor);
        if uses_uring { Handle::Uring(tokio_uring::fs::File::from_std(file)) } else { Handle::Plain(file) }
    }

    async fn write(&self, parts: Vec<Bytes>, mut offset: u64) -> io::Result<()> {
        let mut parts = parts.into_iter().filter(|part| !part.is_empty()).peekable();
        while parts.peek().is_some() {
            let some: Vec<Bytes> = parts.by_ref().take(PARTS_MAX).collect();
            let length: u64 = some.iter().map(|part| part.len() as u64).sum();
            match self {
                Handle::Uring(file) => {
                    let total = usize::try_from(length).unwrap_or(usize::MAX);
                    let (written, some) = file.writev_at(some, offset).await;
                    let written = written?;
                    if written < total {
                        // Rare: the rest goes as one piece.
                        let rest = some.concat().split_off(written);
                        file.write_all_at(rest, offset + written as u64).await.0?;
                    }
                }
                Handle::Plain(file) => write_plain(file, &some, offset)?,
            }
            offset += length;
        }
        Ok(())
    }

    async fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut all = Vec::with_capacity(length);
        while all.len() < length {
            let at = offset + all.len() as u64;
            let read = match self {
                Handle::Uring(file) => {
                    let (read, bytes) = file.read_at(Vec::with_capacity(length - all.len()), at).await;
                    if all.is_empty() {
                        all = bytes;
                    } else {
                        all.extend_from_slice(&bytes);
                    }
                    read?
                }
                Handle::Plain(file) => {
                    let filled = all.len();
                    all.resize(length, 0);
                    let read = file.read_at(&mut all[filled..], at)?;
                    all.truncate(filled + read);
                    read
                }
            };
            if read == 0 {
                break;
            }
        }
        Ok(Bytes::from(all))
    }

    async fn sync(&self) -> io::Result<()> {
        match self {
            _ if failpoint::skips_fsync() => Ok(()),
            Handle::Uring(file) => file.sync_data().await,
            Handle::Plain(file) => file.sync_data(),
        }
    }
}

fn write_plain(file: &std::fs::File, parts: &[Bytes], offset: u64) -> io::Result<()> {
    let slices: Vec<io::IoSlice<'_>> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
    let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, &slices, offset))?;
    let total: usize = parts.iter().map(Bytes::len).sum();
    if written < total {
        file.write_all_at(&parts.concat()[written..], offset + written as u64)?;
    }
    Ok(())
}

/// Performs one operation, between its two fail points.
pub(super) async fn perform(host: Rc<RefCell<Host>>, op: Op, fsync: &Histogram) -> OpResult {
    let points = match op {
        Op::Write { .. } => Some((Point::AppendBefore, Point::AppendAfter)),
        Op::Sync(_) | Op::SyncDir(_) => Some((Point::SyncBefore, Point::SyncAfter)),
        Op::Remove(_) => Some((Point::RemoveBefore, Point::RemoveAfter)),
        _ => None,
    };
    let pass = |point: Option<Point>| point.into_iter().for_each(failpoint::pass);
    pass(points.map(|(before, _)| before));
    let result = execute(host, op, fsync).await;
    pass(points.map(|(_, after)| after));
    result
}

async fn execute(host: Rc<RefCell<Host>>, op: Op, fsync: &Histogram) -> OpResult {
    let result = match op {
        Op::Write { file, offset, parts } => {
            let handle = host.borrow_mut().open(file);
            match handle {
                Ok(handle) => handle.write(parts, offset).await,
                Err(error) => Err(error),
            }
        }
        Op::Sync(file) => {
            let handle = host.borrow_mut().open(file);
            let start = Instant::now();
            let synced = match handle {
                Ok(handle) => handle.sync().await,
                Err(error) => Err(error),
            };
            fsync.observe(start.elapsed());
            synced
        }
        Op::Read { file, offset, length } => {
            let handle = host.borrow_mut().open(file);
            let read = match handle {
                Ok(handle) => handle.read(offset, length).await,
                Err(error) => Err(error),
            };
            return read.map_or_else(|error| OpResult::Failed(error.to_string()), OpResult::Read);
        }
        Op::Space => {
            let space = host.borrow().space();
            return space.map_or_else(|error| OpResult::Failed(error.to_string()), OpResult::Space);
        }
        Op::Create(file) => host.borrow_mut().create(file),
        Op::SyncDir(dir) => host.borrow_mut().sync_dir(dir),
        Op::Close(file) => {
            host.borrow_mut().close(file);
            Ok(())
        }
        Op::Remove(file) => host.borrow_mut().remove(file),
        Op::Quarantine(file) => host.borrow_mut().quarantine(file),
        Op::RemoveDir(dir) => host.borrow_mut().remove_dir(dir),
    };
    result.map_or_else(|error| OpResult::Failed(error.to_string()), |()| OpResult::Done)
}
