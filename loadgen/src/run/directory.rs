//! Reads back what the directory destination wrote: each line under `ROOT/STREAM/` is an event of that stream.
//! Order is not judged: a file holds many records.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context;

use crate::sink::ledger::{Check, Ledger};

/// The most bytes of one line that are read at once; the longest event and its LF fit.
const LINE_BYTES_MAX: u64 = 2 << 20;

/// The deepest nesting below a stream that is followed; the layout has four levels.
const DEPTH_MAX: usize = 16;

/// Enters every line of every file into new books.
///
/// # Errors
///
/// A sentence with the path that cannot be read.
pub(crate) fn read(root: &Path, seed: u64) -> anyhow::Result<Ledger> {
    let mut ledger = Ledger::new(Check::Full, seed, HashMap::new());
    if !root.exists() {
        return Ok(ledger);
    }
    for entry in entries(root)? {
        let stream = entry.file_name().to_string_lossy().into_owned();
        walk(&entry.path(), &stream, &mut ledger, DEPTH_MAX)?;
    }
    Ok(ledger)
}

fn entries(path: &Path) -> anyhow::Result<Vec<std::fs::DirEntry>> {
    std::fs::read_dir(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("{} cannot be read", path.display()))
}

fn walk(path: &Path, stream: &str, ledger: &mut Ledger, depth: usize) -> anyhow::Result<()> {
    anyhow::ensure!(depth > 0, "{} is nested too deeply", path.display());
    if !path.is_dir() {
        return read_file(path, stream, ledger).with_context(|| format!("{} cannot be read", path.display()));
    }
    entries(path)?.iter().try_for_each(|entry| walk(&entry.path(), stream, ledger, depth - 1))
}

fn read_file(path: &Path, stream: &str, ledger: &mut Ledger) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = std::io::Read::take(&mut reader, LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        ledger.accept(stream, std::iter::once(line.as_slice()), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Builder, Event, StreamSeed};
    use crate::units::Sizes;

    #[test]
    fn lines_of_all_files_are_entered() {
        let directory = tempfile::tempdir().unwrap();
        let builder = Builder::new(1, Sizes { min: 90, max: 90 }).unwrap();
        for (file, sequences) in [("clicks/2026/01/01/00/a", 0..5), ("clicks/2026/01/01/01/b", 4..9)] {
            let mut lines = Vec::new();
            for sequence in sequences {
                let event = Event { connection: 0, sequence, planned_ns: 0, check: 0 };
                builder.append(&mut lines, StreamSeed::new("clicks"), sequence, &event);
                lines.push(b'\n');
            }
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, lines).unwrap();
        }
        let ledger = read(directory.path(), 1).unwrap();
        let counts = ledger.totals().totals;
        assert_eq!((counts.events_accepted, counts.duplicate_events, counts.unterminated_records), (9, 1, 0));
        assert_eq!(ledger.accepted_of("clicks", [(0, 9)].into_iter()), 9);
        assert_eq!(read(&directory.path().join("nothing"), 1).unwrap().totals().totals.events_accepted, 0);
    }
}
