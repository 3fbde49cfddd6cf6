//! Dead letters: events that can never be delivered, kept as files until somebody has looked at them and sends them
//! again (`standpipe send --dead-letter`). One thread writes them, so that delivery waits for no disk. It decides
//! nothing: what is a dead letter, and what becomes of one that cannot be written, is delivery's.
//!
//! `DIR/STREAM/YYYY-MM-DD-HH-MM-SS-INSTANCE-NUMBER.ndjson`, in UTC, holds one JSON object a line ([`letter`]). A file
//! gets that name when all of it is synced, and is never written again: whoever finds it may read it and remove it,
//! while relays run. Until then its name ends in `.part`; what a killed process left of those is removed later.
//!
//! Invariants: a bundle is answered once, as written only where its file and the file's name are synced; no error of
//! the disk ends the thread, and the next bundle tries anew; files are within the limit, each counted as a block of
//! the disk at least; one file is open at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{info, warn};

use crate::failpoint::{self, Point};
use crate::metrics::Drop;
use crate::rarely::Rarely;
use crate::spool::Lines;
use crate::spool::keeper::Part;

pub mod letter;

use self::letter::Head;

/// Raw bytes that should wait for the thread, at most.
pub const QUEUED_BYTES_MAX: usize = 8 << 20;
/// How the names of files end.
pub const EXTENSION: &str = "ndjson";
/// How they end before they are synced.
const PARTIAL: &str = "part";
/// Bundles are gathered for so long before they are written, or until they come to so many raw bytes.
const GATHER: Duration = Duration::from_millis(500);
const GATHER_BYTES: usize = 4 << 20;
/// A file counts as so many bytes at least, so that the limit bounds their number, too.
const FILE_BYTES_MIN: u64 = 4096;
/// How often files are counted: others write and remove them, too.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// The same while they are at their limit.
const COUNT_FULL_EVERY: Duration = Duration::from_secs(5);
/// What was not finished after so long never will be.
const PARTIAL_AGE: Duration = Duration::from_secs(3600);

const STAMP: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]-[hour]-[minute]-[second]");

/// What dead letters are made of.
#[derive(Debug)]
pub struct Settings {
    /// The directory.
    pub root: PathBuf,
    /// The most bytes of all files; may be changed at any time.
    pub bytes_max: Arc<AtomicU64>,
    /// A name that no other process has: it stands in file names.
    pub instance: String,
    /// What a scrape shows: bytes of all files.
    pub bytes: Arc<AtomicU64>,
}

/// Events of one stream, on their way to the dead letters.
#[derive(Debug)]
pub struct Bundle {
    /// By which it is answered.
    pub id: u64,
    /// The stream.
    pub stream: Arc<str>,
    /// Why they cannot be delivered.
    pub reason: Drop,
    /// What the destination said.
    pub error: Option<String>,
    /// When the oldest was received.
    pub received: SystemTime,
    /// The events.
    pub part: Part,
    /// Their raw bytes.
    pub bytes: usize,
}

/// What became of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which.
    pub id: u64,
    /// Whether it is on disk, synced. Else it is not, or only in part.
    pub is_written: bool,
}

/// The way to the thread, and back from it.
#[derive(Debug)]
pub struct DeadLetters {
    /// To it. What waits should be bounded by [`QUEUED_BYTES_MAX`].
    pub bundles: Sender<Bundle>,
    /// From it, in any order.
    pub answers: UnboundedReceiver<Answer>,
    /// The most bytes of all files.
    pub bytes_max: Arc<AtomicU64>,
}

impl DeadLetters {
    /// Starts the thread. A directory that cannot be made or written is tried again with every bundle.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let (bundles, receiver) = mpsc::channel();
        let (sender, answers) = unbounded_channel();
        let bytes_max = Arc::clone(&settings.bytes_max);
        let body = move || Writer::new(settings).run(&receiver, &sender);
        std::thread::Builder::new().name("dead-letters".to_owned()).spawn(body)?;
        Ok(Self { bundles, answers, bytes_max })
    }
}

/// All that the thread owns.
struct Writer {
    settings: Settings,
    used: u64,
    counted_at: Option<Instant>,
    next_number: u64,
    kept: Rarely,
    failing: Rarely,
}

impl Writer {
    fn new(settings: Settings) -> Self {
        let (kept, failing) = (Rarely::default(), Rarely::default());
        Self { settings, used: 0, counted_at: None, next_number: 0, kept, failing }
    }

    fn run(mut self, bundles: &Receiver<Bundle>, answers: &UnboundedSender<Answer>) {
        self.count();
        loop {
            match bundles.recv_timeout(COUNT_EVERY) {
                Ok(first) => gather(first, bundles).into_iter().for_each(|(stream, bundles)| {
                    let is_written = self.write_and_tell(&stream, &bundles);
                    for bundle in bundles {
                        // Delivery is gone only when the process is about to end.
                        let _ = answers.send(Answer { id: bundle.id, is_written });
                    }
                }),
                Err(RecvTimeoutError::Timeout) => self.count(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes bundles of one stream as a file, and says in the log what came of it, now and then.
    fn write_and_tell(&mut self, stream: &str, bundles: &[Bundle]) -> bool {
        let written = self.write(stream, bundles);
        let cause = if written.is_ok() { &mut self.kept } else { &mut self.failing };
        if let Some(more) = cause.say(Instant::now()) {
            match &written {
                Ok(file) => warn!(
                    "stream {stream}: events that can never be delivered ({}) are kept in {}{more}",
                    bundles[0].reason.label(),
                    file.display()
                ),
                Err(error) => warn!(
                    "dead letters cannot be written below {} ({error}): what can never be delivered is dropped and \
                     counted, and the next is tried again{more}",
                    self.settings.root.display()
                ),
            }
        }
        written.is_ok()
    }

    fn write(&mut self, stream: &str, bundles: &[Bundle]) -> io::Result<PathBuf> {
        let dropped = SystemTime::now();
        let head = |bundle: &Bundle| {
            Head::new(stream, bundle.reason, bundle.error.as_deref(), bundle.received, dropped)
        };
        let letters: Vec<_> = bundles
            .iter()
            .map(|bundle| (head(bundle), Lines::new(vec![bundle.part.clone()]).together()))
            .collect();
        let length = letters.iter().map(|(head, lines)| head.length_of_all(lines)).sum::<u64>();
        self.make_room(length)?;
        let folder = self.settings.root.join(stream);
        make_folder(&self.settings.root, &folder)?;
        let stamp = OffsetDateTime::from(dropped).format(STAMP).expect("a time is all that the format needs");
        let name = format!("{stamp}-{}-{:06}", self.settings.instance, self.next_number);
        self.next_number += 1;
        let (partial, file) =
            (folder.join(format!("{name}.{PARTIAL}")), folder.join(format!("{name}.{EXTENSION}")));
        let written = write_file(&partial, |out| {
            letters.iter().try_for_each(|(head, lines)| head.write_all(lines, out))
        });
        failpoint::pass(Point::LetterBefore);
        let named = written.and_then(|()| fs::rename(&partial, &file)).and_then(|()| sync_folder(&folder));
        if let Err(error) = named {
            // What counts as dropped otherwise should not be sent again.
            for path in [&partial, &file] {
                let _ = fs::remove_file(path);
            }
            return Err(error);
        }
        failpoint::pass(Point::LetterAfter);
        self.used += length.max(FILE_BYTES_MIN);
        self.settings.bytes.store(self.used, Relaxed);
        Ok(file)
    }

    fn make_room(&mut self, length: u64) -> io::Result<()> {
        let bytes_max = self.settings.bytes_max.load(Relaxed);
        let fits = |writer: &Self| writer.used + length.max(FILE_BYTES_MIN) <= bytes_max;
        let interval = if fits(self) { COUNT_EVERY } else { COUNT_FULL_EVERY };
        if self.counted_at.is_none_or(|at| at.elapsed() >= interval) {
            self.count();
        }
        if fits(self) {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "dead_letter_limit, {bytes_max} bytes, is reached; send them again or remove them"
        )))
    }

    /// Sums up the files that there are, and removes what was never finished.
    fn count(&mut self) {
        self.counted_at = Some(Instant::now());
        self.used = 0;
        let folders = fs::read_dir(&self.settings.root).into_iter().flatten().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
        for file in files {
            // One that is gone meanwhile counts no more.
            let Ok(metadata) = file.metadata() else { continue };
            let is_partial = file.path().extension().is_some_and(|extension| extension == PARTIAL);
            let age = metadata.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            if is_partial && age > PARTIAL_AGE && fs::remove_file(file.path()).is_ok() {
                info!("{} was never finished and is removed", file.path().display());
                continue;
            }
            self.used += metadata.len().max(FILE_BYTES_MIN);
        }
        self.settings.bytes.store(self.used, Relaxed);
    }
}

/// What comes within a short while, by stream.
fn gather(first: Bundle, bundles: &Receiver<Bundle>) -> BTreeMap<Arc<str>, Vec<Bundle>> {
    let until = Instant::now() + GATHER;
    let (mut bytes, mut next) = (0, Some(first));
    let mut gathered: BTreeMap<Arc<str>, Vec<Bundle>> = BTreeMap::new();
    while let Some(bundle) = next {
        bytes += bundle.bytes;
        gathered.entry(Arc::clone(&bundle.stream)).or_default().push(bundle);
        let left = until.saturating_duration_since(Instant::now());
        next = if bytes < GATHER_BYTES { bundles.recv_timeout(left).ok() } else { None };
    }
    gathered
}

/// Makes a new file of what `fill` writes, and syncs its bytes.
fn write_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).open(path)?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    fill(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()
}

/// Makes a stream's folder where there is none, durably.
fn make_folder(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    sync_folder(root)?;
    match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::letter::Letter;
    use super::*;
    use bytes::Bytes;

    fn settings(root: &Path, bytes_max: u64) -> Settings {
        let bytes_max = Arc::new(AtomicU64::new(bytes_max));
        Settings { root: root.to_owned(), bytes_max, instance: "test".to_owned(), bytes: Arc::default() }
    }

    fn bundle(id: u64, stream: &str, lines: &'static [u8]) -> Bundle {
        let part = Part::Lines(Bytes::from_static(lines));
        let (reason, received) = (Drop::Rejected, SystemTime::UNIX_EPOCH);
        let error = Some("it says \"no\"".to_owned());
        Bundle { id, stream: stream.into(), reason, error, received, part, bytes: lines.len() }
    }

    fn files(root: &Path) -> Vec<PathBuf> {
        let folders = fs::read_dir(root).into_iter().flatten().flatten();
        folders
            .flat_map(|folder| fs::read_dir(folder.path()).unwrap())
            .map(|file| file.unwrap().path())
            .collect()
    }

    #[tokio::test]
    async fn bundles_of_a_stream_become_a_file_of_letters() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(&root.path().join("deep/down"), 1 << 20);
        let (root, bytes) = (settings.root.clone(), Arc::clone(&settings.bytes));
        let mut letters = DeadLetters::start(settings).unwrap();
        for (id, stream, lines) in
            [(1, "clicks", &b"\0\xff\r\nb\n"[..]), (2, "views", b"x\n"), (3, "clicks", b"c\n")]
        {
            letters.bundles.send(bundle(id, stream, lines)).unwrap();
        }
        for _ in 0..3 {
            assert!(letters.answers.recv().await.unwrap().is_written);
        }
        let files = files(&root);
        let of_clicks = files.iter().find(|file| file.starts_with(root.join("clicks"))).unwrap();
        let name = of_clicks.file_name().unwrap().to_str().unwrap();
        assert!(name.len() == 38 && name.ends_with("-test-000000.ndjson"), "{name}");
        let text = fs::read(of_clicks).unwrap();
        let read: Vec<Letter> =
            text.split_inclusive(|octet| *octet == b'\n').map(|line| Letter::parse(line).unwrap()).collect();
        let payloads: Vec<&[u8]> = read.iter().map(|letter| &letter.payload[..]).collect();
        assert_eq!(payloads, [&b"\0\xff\r"[..], b"b", b"c"]);
        assert!(read.iter().all(|letter| letter.stream == "clicks"));
        assert_eq!((files.len(), bytes.load(Relaxed)), (2, 2 * FILE_BYTES_MIN));
    }

    #[test]
    fn the_limit_holds_and_what_is_removed_makes_room() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(settings(root.path(), 2 * FILE_BYTES_MIN));
        let bundle = [bundle(1, "clicks", b"a\n")];
        let kept = writer.write("clicks", &bundle).unwrap();
        writer.write("clicks", &bundle).unwrap();
        let error = writer.write("clicks", &bundle).unwrap_err().to_string();
        assert!(error.contains("dead_letter_limit, 8192 bytes"), "{error}");
        fs::remove_file(kept).unwrap();
        writer.counted_at = None;
        writer.write("clicks", &bundle).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_said_and_works_again_by_itself() {
        let root = tempfile::tempdir().unwrap();
        let blocked = root.path().join("a-file");
        fs::write(&blocked, "").unwrap();
        let mut writer = Writer::new(settings(&blocked, 1 << 20));
        let bundle = [bundle(1, "clicks", b"a\n")];
        assert!(!writer.write_and_tell("clicks", &bundle));
        fs::remove_file(&blocked).unwrap();
        assert!(writer.write_and_tell("clicks", &bundle));
        assert_eq!(files(&blocked).len(), 1);
    }
}
