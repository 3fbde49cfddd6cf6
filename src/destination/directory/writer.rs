//! The thread that writes: takes the calls that wait, writes them all, syncs each file once, and answers all. It is
//! the only one that touches the files, so it needs no lock. What goes where, the [`Table`] decides.
//!
//! Invariants:
//! - A call is answered `Accepted` only when its bytes, its file's length and every name on the way to it are
//!   durable.
//! - A call is answered `Refused` only when none of its bytes are in a file.
//! - A file whose sync failed is neither written nor synced again.
//! - No more than [`FILES_MAX`] files are open.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::super::{Call, Outcome, Refusal};
use super::disk::{Disk, Status};
use super::names::{is_stream_name, with_parents};
use super::table::{NewFile, Table};
use crate::metrics::Histogram;

/// Open files. With the root and the two descriptors of a walk to a folder that makes 256.
pub(super) const FILES_MAX: usize = 253;

/// A group is closed when it is this old, even if more calls wait.
const GROUP_AGE_MAX: Duration = Duration::from_millis(100);

/// A group is closed when it has this many calls.
const GROUP_CALLS_MAX: usize = 4096;

/// Names that are tried for one new file. More than one are needed only where a process of the same instance name
/// made files in the same second.
const NAMES_TRIED_MAX: usize = 1000;

/// A call with the way back for its outcome.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) call: Call,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// Those who wait for an answer: the stream is for the sentence.
type Waiting = Vec<(Arc<str>, oneshot::Sender<Outcome>)>;

/// An open file with those who wait for it to be synced; none do outside of a group.
struct OpenFile<F> {
    file: F,
    folder: String,
    waiting: Waiting,
}

/// What came of syncing a file.
struct Synced {
    folder: String,
    waiting: Waiting,
    problem: Option<String>,
}

pub(super) struct Writer<D: Disk> {
    disk: D,
    instance: String,
    fsync: Arc<Histogram>,
    table: Table<OpenFile<D::File>>,
    /// Files that are no longer written to but wait to be synced with their group.
    retired: Vec<OpenFile<D::File>>,
    /// Folders in which the group has made names.
    folders: BTreeSet<String>,
    /// Calls written in this group.
    written: usize,
}

impl<D: Disk> Writer<D> {
    pub(super) fn new(disk: D, instance: &str, fsync: Arc<Histogram>) -> Self {
        Self {
            disk,
            instance: instance.to_owned(),
            fsync,
            table: Table::new(),
            retired: Vec::new(),
            folders: BTreeSet::new(),
            written: 0,
        }
    }

    /// Serves calls until all senders are gone and the channel is empty.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let close_at = Instant::now() + GROUP_AGE_MAX;
            self.take(first);
            while self.written < GROUP_CALLS_MAX && Instant::now() < close_at {
                let Ok(job) = jobs.try_recv() else { break };
                self.take(job);
            }
            self.finish_group();
        }
    }

    /// Writes one call. Its answer comes at the end of the group, or at once if it cannot be accepted.
    pub(super) fn take(&mut self, job: Job) {
        let Job { call, reply } = job;
        match self.write(&call) {
            Ok(file) => {
                file.waiting.push((call.delivery_stream, reply));
                self.written += 1;
            }
            // Nobody may be left to be told; that is the caller's decision.
            Err(outcome) => drop(reply.send(outcome)),
        }
    }

    fn write(&mut self, call: &Call) -> Result<&mut OpenFile<D::File>, Outcome> {
        let stream = &call.delivery_stream;
        if !is_stream_name(stream) {
            return Err(refused(Refusal::Permanent, stream, "this name cannot be that of a folder"));
        }
        self.ready_file(stream, call.body.len() as u64).map_err(|error| {
            let in_the_way = error.kind() == io::ErrorKind::NotADirectory;
            refused(if in_the_way { Refusal::Permanent } else { Refusal::Transient }, stream, error)
        })?;
        let place = self.table.current(stream).expect("ready_file made sure of it");
        let file = &place.handle.as_ref().expect("ready_file opened it").file;
        match write_whole(&self.disk, file, &call.body, place.length) {
            Ok(()) => place.length += call.body.len() as u64,
            Err(error) => return Err(self.take_back(stream, &error)),
        }
        let place = self.table.current(stream).expect("it was just written to");
        Ok(place.handle.as_mut().expect("it was just written to"))
    }

    /// Cuts off what a failed write may have left, so that the call can be said to be refused.
    fn take_back(&mut self, stream: &Arc<str>, error: &io::Error) -> Outcome {
        let place = self.table.current(stream).expect("a write to it has just failed");
        let file = &place.handle.as_ref().expect("a write to it has just failed").file;
        match self.disk.truncate(file, place.length) {
            Ok(()) => refused(Refusal::Transient, stream, error),
            Err(second) => {
                let name = format!("{}/{}", place.folder, place.name);
                if let Some(file) = self.table.forget(stream) {
                    self.retire(file);
                }
                unknown(stream, format_args!("{error}; and {name} could not be cut back ({second})"))
            }
        }
    }

    /// Sees to it that the stream has an open file that takes `bytes` more.
    fn ready_file(&mut self, stream: &Arc<str>, bytes: u64) -> io::Result<()> {
        let now = self.disk.now();
        let place = match self.table.place(stream, bytes, now) {
            Ok(place) => place,
            Err(full) => {
                self.retire(full);
                None
            }
        };
        match place.map(|place| (place.length, &place.handle)) {
            None => self.create(stream),
            Some((length, Some(open))) => {
                let status = self.disk.status(&open.file)?;
                if status.linked && status.length == length {
                    return Ok(());
                }
                // Deleted, cut, or written to by somebody else: what we would write there might be lost.
                if let Some(foreign) = self.table.forget_path(stream) {
                    self.retire(foreign);
                }
                self.create(stream)
            }
            Some((_, None)) => {
                if self.reopen(stream) {
                    return Ok(());
                }
                self.table.forget_path(stream);
                self.create(stream)
            }
        }
    }

    /// Opens the stream's closed file again; false where it is not as it was left.
    fn reopen(&mut self, stream: &Arc<str>) -> bool {
        self.make_room();
        // To make room a group may have ended, and a folder that failed then takes this file's place with it.
        let Some(place) = self.table.current(stream) else { return false };
        let Ok(file) = self.disk.reopen(&place.folder, &place.name) else { return false };
        let as_left = |status: Status| (status.identity, status.length) == (place.identity, place.length);
        if !self.disk.status(&file).is_ok_and(as_left) {
            return false;
        }
        let folder = place.folder.clone();
        self.table.reopened(stream, OpenFile { file, folder, waiting: Vec::new() });
        true
    }

    fn create(&mut self, stream: &Arc<str>) -> io::Result<()> {
        self.make_room();
        let now = self.disk.now();
        for _ in 1..NAMES_TRIED_MAX {
            let new = self.table.next_file(stream, &self.instance, now);
            match self.disk.create(&new.folder, &new.name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(file) => return self.created(stream, new, file),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "every name for a new file is taken"))
    }

    fn created(&mut self, stream: &Arc<str>, new: NewFile, file: D::File) -> io::Result<()> {
        let status = self.disk.status(&file)?;
        self.folders.extend(new.folders_to_sync().map(str::to_owned));
        let open = OpenFile { file, folder: new.folder.clone(), waiting: Vec::new() };
        self.table.created(stream, new, status.identity, open);
        Ok(())
    }

    /// Closes files until one more may be opened. Where all are being written to, the group ends early.
    fn make_room(&mut self) {
        while self.table.open_files() + self.retired.len() >= FILES_MAX {
            if self.table.close_idlest(|open| open.waiting.is_empty()).is_none() {
                self.finish_group();
            }
        }
    }

    fn retire(&mut self, file: OpenFile<D::File>) {
        if !file.waiting.is_empty() {
            self.retired.push(file);
        }
    }

    /// Makes durable what was written and answers everybody who waits.
    pub(super) fn finish_group(&mut self) {
        self.written = 0;
        let files = self.sync_files();
        let failed_folders = self.sync_folders();
        for Synced { folder, waiting, problem } in files {
            let above = |name: &String| with_parents(&folder).any(|parent| parent == name);
            let of_folder =
                || failed_folders.iter().find(|(name, _)| above(name)).map(|(_, problem)| problem);
            let problem = problem.as_ref().or_else(of_folder);
            for (stream, reply) in waiting {
                let _ = reply.send(problem.map_or(Outcome::Accepted, |problem| unknown(&stream, problem)));
            }
        }
    }

    /// Syncs every file that the group wrote to, once. One that fails is not used again.
    fn sync_files(&mut self) -> Vec<Synced> {
        let mut synced = Vec::new();
        for stream in self.table.open_streams() {
            let open = self.table.current(&stream).and_then(|place| place.handle.as_mut());
            let open = open.expect("open_streams names streams whose file is open");
            if open.waiting.is_empty() {
                continue;
            }
            let file = sync_file(&self.disk, &self.fsync, open);
            if file.problem.is_some() {
                self.table.forget(&stream);
            }
            synced.push(file);
        }
        for mut open in std::mem::take(&mut self.retired) {
            synced.push(sync_file(&self.disk, &self.fsync, &mut open));
        }
        synced
    }

    /// Syncs the folders in which names were made. Where that fails the files below are not written to again.
    fn sync_folders(&mut self) -> Vec<(String, String)> {
        let mut failed = Vec::new();
        for folder in std::mem::take(&mut self.folders) {
            if let Err(error) = timed(&self.fsync, || self.disk.sync_folder(&folder)) {
                self.table.forget_below(&folder);
                failed.push((folder, describe(&error)));
            }
        }
        failed
    }
}

fn write_whole<D: Disk>(disk: &D, file: &D::File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = disk.write_at(file, bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

fn sync_file<D: Disk>(disk: &D, fsync: &Histogram, open: &mut OpenFile<D::File>) -> Synced {
    let problem = timed(fsync, || disk.sync_file(&open.file)).err();
    Synced {
        folder: open.folder.clone(),
        waiting: std::mem::take(&mut open.waiting),
        problem: problem.as_ref().map(describe),
    }
}

fn timed<T>(histogram: &Histogram, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    histogram.observe(start.elapsed());
    result
}

fn describe(error: &io::Error) -> String {
    format!("it could not be made durable ({error}) and is written again elsewhere")
}

fn refused(kind: Refusal, stream: &str, what: impl Display) -> Outcome {
    Outcome::Refused {
        kind,
        message: format!("Directory of stream {stream:?}: {what}. Nothing was written."),
    }
}

fn unknown(stream: &str, what: impl Display) -> Outcome {
    Outcome::Unknown { message: format!("Directory of stream {stream:?}: {what}.") }
}
