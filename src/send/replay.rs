//! `standpipe send --dead-letter`: what relays gave up is sent again, every event to the stream that it came from. A
//! file is removed when a relay has synced all of it, and not before: whatever ends this in between, the file is
//! there, and is sent once more.
//!
//! A file of which something is lost again is kept, and so is one with a line that is no dead letter, of which nothing
//! is sent.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use super::TOLD_EVERY;
use crate::client::Client;
use crate::dead_letter::EXTENSION;
use crate::dead_letter::letter::{LINE_BYTES_MAX, Letter};
use crate::failpoint::{self, Point};

/// Files that are sent at one time, each over a connection of its own: a sync takes as long as a delivery.
const FILES_AT_ONCE: usize = 8;

/// What became of the files.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Files whose events are all synced, and which are removed.
    pub files: u64,
    /// Their events.
    pub events: u64,
    /// Files that are still there, each with why, as a sentence.
    pub kept: Vec<String>,
}

/// Sends every file of dead letters at these paths, which are files or directories, and waits until all are synced,
/// however long that takes; `tell` hears a sentence now and then meanwhile.
///
/// # Errors
/// Where a path or the address is none; then nothing was sent.
pub fn replay(paths: &[PathBuf], to: &str, tell: impl Fn(String) + Sync) -> anyhow::Result<Replayed> {
    let mut files = Vec::new();
    for path in paths {
        find(path, &mut files)
            .with_context(|| format!("dead letters at {} cannot be read", path.display()))?;
    }
    let clients = (0..FILES_AT_ONCE.min(files.len())).map(|_| Client::connect(to));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    let (files, replayed) = (Mutex::new(files.into_iter()), Mutex::new(Replayed::default()));
    let next = || files.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| {
                while let Some(file) = next() {
                    let sent = send_file(client, &file, &tell);
                    replayed.lock().unwrap_or_else(PoisonError::into_inner).add(&file, sent);
                }
            });
        }
    });
    Ok(replayed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Replayed {
    fn add(&mut self, file: &Path, sent: anyhow::Result<u64>) {
        match sent {
            Ok(events) => {
                self.files += 1;
                self.events += events;
            }
            Err(error) => self.kept.push(format!("{} is kept: {error:#}", file.display())),
        }
    }
}

/// A file itself, or the files of dead letters below a directory, the oldest of a stream first.
fn find(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        // What is a link does not belong to a relay.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            find(&entry.path(), files)?;
        } else if kind.is_file() && entry.path().extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Sends a file and removes it once all of it is synced: how many events it had.
fn send_file(client: &Client, path: &Path, tell: &impl Fn(String)) -> anyhow::Result<u64> {
    let mut events = 0;
    each_letter(path, |_| Ok(()))?;
    let before = client.report().lost;
    each_letter(path, |letter| {
        events += 1;
        Ok(client.send(&letter.stream, &letter.payload)?)
    })?;
    let report = loop {
        match client.sync(TOLD_EVERY) {
            Ok(report) => break report,
            Err(waits) => tell(waits.to_string()),
        }
    };
    let lost = report.lost - before;
    anyhow::ensure!(lost == 0, "of its {events} events the relay has lost {lost} again");
    failpoint::pass(Point::ReplayedBefore);
    fs::remove_file(path).context("all of it is synced, but it cannot be removed; remove it")?;
    Ok(events)
}

/// Reads the letters of a file one by one.
fn each_letter(path: &Path, mut take: impl FnMut(Letter) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        if file.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let letter = Letter::parse(&line).map_err(|error| anyhow::anyhow!("line {number}: {error}"))?;
        take(letter)?;
    }
    Ok(())
}
