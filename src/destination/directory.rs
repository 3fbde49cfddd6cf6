//! Files on this host, laid out as Firehose lays out S3:
//! `STREAM/YYYY/MM/DD/HH/STREAM-1-YYYY-MM-DD-HH-MM-SS-INSTANCE-SEQ`, in UTC, below one root. Files are appended to
//! in place, so `tail -f` works; they are rotated at 64 MiB or with the hour, and a later process never appends to
//! them. It is not a spool: nothing is read back.
//!
//! This file is the asynchronous face. One thread owns the files (`writer`), what goes where is decided by pure
//! code (`table`, `names`), and everything that touches the disk goes through `disk`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::{Call, Outcome, Refusal};
use crate::metrics::Histogram;

mod disk;
mod names;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use self::disk::{Disk, HostDisk};
use self::writer::{Job, Writer};

/// Calls that may wait for the thread; further ones wait for a place.
const QUEUE_CALLS: usize = 1024;

/// Why the directory cannot be delivered to.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// The instance's name cannot stand in a file name.
    #[error(
        "the instance name {0:?} cannot be part of a file name: \
         use 1 to 64 letters, digits, dots, underscores and hyphens"
    )]
    BadInstance(String),
    /// The root cannot be made, opened or written to.
    #[error("cannot write to the directory {}: {error}; name another, or let this user write there", root.display())]
    Unusable {
        /// The root as it was given.
        root: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The system gave no thread.
    #[error("cannot start the thread that writes files: {0}")]
    NoThread(io::Error),
}

/// A directory that calls are delivered to.
#[derive(Debug)]
pub struct Directory {
    /// Taken when the directory is closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Directory {
    /// Makes `root` if needed, proves that files can be made in it, and starts the thread that writes. `instance`
    /// tells this process's files from those of others that share the root: 1 to 64 characters of
    /// `[A-Za-z0-9_.-]`. Each sync is timed into `fsync`.
    pub fn open(root: &Path, instance: &str, fsync: Arc<Histogram>) -> Result<Self, DirectoryError> {
        if !names::is_plain(instance) {
            return Err(DirectoryError::BadInstance(instance.to_owned()));
        }
        let probe = format!(".standpipe-probe-{instance}-{}", std::process::id());
        let disk = HostDisk::open(root, &probe)
            .map_err(|error| DirectoryError::Unusable { root: root.to_owned(), error })?;
        Self::start(Writer::new(disk, instance, fsync))
    }

    fn start<D: Disk + Send + 'static>(writer: Writer<D>) -> Result<Self, DirectoryError>
    where
        D::File: Send,
    {
        let (sender, receiver) = mpsc::channel(QUEUE_CALLS);
        let thread = std::thread::Builder::new()
            .name("directory".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(DirectoryError::NoThread)?;
        Ok(Self { jobs: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Appends the body to the file of the call's delivery stream. `Accepted` means durable: bytes and names are
    /// synced. If the future is dropped, the body may still be written.
    pub async fn call(&self, call: Call) -> Outcome {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (reply, answer) = oneshot::channel();
        let handed_over = match jobs {
            Some(jobs) => jobs.send(Job { call, reply }).await.is_ok(),
            None => false,
        };
        if !handed_over {
            let message = "The directory is closed. Nothing was written.".to_owned();
            return Outcome::Refused { kind: Refusal::Transient, message };
        }
        answer.await.unwrap_or_else(|_| Outcome::Unknown {
            message: "The thread that writes files ended before it answered.".to_owned(),
        })
    }

    /// Writes and syncs what was handed over, and ends the thread. Blocks until that is done, which a hanging disk
    /// can delay without bound. Calls made later are refused.
    pub fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was printed by the thread, and its calls were answered as unknown.
            let _ = thread.join();
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.close();
    }
}
