//! The writer on a real file system whose operations can be made to fail, and the directory as its callers see it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::MutexGuard;

use bytes::Bytes;
use rustix::io::Errno;
use tempfile::TempDir;
use time::OffsetDateTime;
use time::macros::datetime;

use super::disk::Status;
use super::writer::FILES_MAX;
use super::*;

/// What the disk is to do, and what it has seen.
#[derive(Debug)]
struct Plan {
    now: OffsetDateTime,
    /// Bytes that may still be written before the disk is full.
    space: u64,
    truncate_fails: bool,
    file_sync_fails: bool,
    /// The folder whose sync fails.
    folder_sync_fails: Option<&'static str>,
    /// Whether syncs go to the disk; thousands of them would only take time.
    sync_for_real: bool,
    open: usize,
    open_most: usize,
    file_syncs: usize,
    folder_syncs: Vec<String>,
}

#[derive(Clone, Debug)]
struct TestDisk {
    inner: Arc<HostDisk>,
    plan: Arc<Mutex<Plan>>,
}

/// A file that is counted as long as it is open.
#[derive(Debug)]
struct TestFile {
    file: OwnedFd,
    plan: Arc<Mutex<Plan>>,
}

impl Drop for TestFile {
    fn drop(&mut self) {
        self.plan.lock().expect("not poisoned").open -= 1;
    }
}

impl TestDisk {
    fn new(root: &TempDir) -> Self {
        let plan = Plan {
            now: datetime!(2026-03-04 12:13:14 UTC),
            space: u64::MAX,
            truncate_fails: false,
            file_sync_fails: false,
            folder_sync_fails: None,
            sync_for_real: true,
            open: 0,
            open_most: 0,
            file_syncs: 0,
            folder_syncs: Vec::new(),
        };
        let inner = HostDisk::open(root.path(), "probe").expect("a temporary directory can be written to");
        Self { inner: Arc::new(inner), plan: Arc::new(Mutex::new(plan)) }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("not poisoned")
    }

    fn counted(&self, file: OwnedFd) -> TestFile {
        let mut plan = self.plan();
        plan.open += 1;
        plan.open_most = plan.open_most.max(plan.open);
        TestFile { file, plan: Arc::clone(&self.plan) }
    }
}

impl Disk for TestDisk {
    type File = TestFile;

    fn now(&self) -> OffsetDateTime {
        self.plan().now
    }

    fn create(&self, folder: &str, name: &str) -> io::Result<TestFile> {
        Ok(self.counted(self.inner.create(folder, name)?))
    }

    fn reopen(&self, folder: &str, name: &str) -> io::Result<TestFile> {
        Ok(self.counted(self.inner.reopen(folder, name)?))
    }

    fn status(&self, file: &TestFile) -> io::Result<Status> {
        self.inner.status(&file.file)
    }

    fn write_at(&self, file: &TestFile, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let room = usize::try_from(self.plan().space).unwrap_or(usize::MAX).min(bytes.len());
        if room == 0 {
            return Err(Errno::NOSPC.into());
        }
        let written = self.inner.write_at(&file.file, &bytes[..room], offset)?;
        self.plan().space -= written as u64;
        Ok(written)
    }

    fn truncate(&self, file: &TestFile, length: u64) -> io::Result<()> {
        if self.plan().truncate_fails {
            return Err(Errno::IO.into());
        }
        self.inner.truncate(&file.file, length)
    }

    fn sync_file(&self, file: &TestFile) -> io::Result<()> {
        let mut plan = self.plan();
        plan.file_syncs += 1;
        match plan.file_sync_fails {
            true => Err(Errno::IO.into()),
            false if plan.sync_for_real => self.inner.sync_file(&file.file),
            false => Ok(()),
        }
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut plan = self.plan();
        plan.folder_syncs.push(folder.to_owned());
        match plan.folder_sync_fails {
            Some(failing) if failing == folder => Err(Errno::IO.into()),
            _ if plan.sync_for_real => self.inner.sync_folder(folder),
            _ => Ok(()),
        }
    }
}

/// A writer on a disk of its own, driven without its thread.
struct Rig {
    root: TempDir,
    disk: TestDisk,
    writer: Writer<TestDisk>,
}

impl Rig {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("there is a temporary directory");
        let disk = TestDisk::new(&root);
        let writer = Writer::new(disk.clone(), "i", histogram());
        Self { root, disk, writer }
    }

    fn take(&mut self, stream: &str, body: &str) -> oneshot::Receiver<Outcome> {
        let (reply, answer) = oneshot::channel();
        self.writer.take(Job { call: call(stream, body), reply });
        answer
    }

    /// A group of one call.
    fn deliver(&mut self, stream: &str, body: &str) -> Outcome {
        let mut answer = self.take(stream, body);
        self.writer.finish_group();
        answer.try_recv().expect("a group that is finished is answered")
    }

    fn expect_syncs_and_open(&self, file_syncs: usize, open: usize) {
        let plan = self.disk.plan();
        assert_eq!((plan.file_syncs, plan.open), (file_syncs, open));
    }

    fn files(&self) -> BTreeMap<String, String> {
        files(self.root.path())
    }

    fn contents(&self) -> Vec<String> {
        self.files().into_values().collect()
    }
}

fn histogram() -> Arc<Histogram> {
    Arc::new(Histogram::new(&[0.01, 1.0]))
}

fn call(stream: &str, body: &str) -> Call {
    Call {
        delivery_stream: stream.into(),
        body: Bytes::from(body.to_owned()),
        records: 1,
        due: std::time::Instant::now(),
        digest: None,
    }
}

/// Every file below `root`, by its path from there.
fn files(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).expect("it is below the root").display().to_string();
                found.insert(name, fs::read_to_string(&path).expect("a file can be read"));
            }
        }
    }
    found
}

fn refusal(outcome: &Outcome) -> Option<Refusal> {
    match outcome {
        Outcome::Refused { kind, .. } => Some(*kind),
        _ => None,
    }
}

#[test]
fn a_group_is_synced_once_and_then_answered() {
    let mut rig = Rig::new();
    let mut answers: Vec<_> = ["a1\n", "a2\n", "a3\n"].map(|body| rig.take("a", body)).into();
    answers.push(rig.take("b", "b1\n"));
    for answer in &mut answers {
        assert!(answer.try_recv().is_err(), "nothing is accepted before it is durable");
    }
    let visible = rig.files();
    assert_eq!(visible["a/2026/03/04/12/a-1-2026-03-04-12-13-14-i-000001"], "a1\na2\na3\n");
    assert_eq!(visible["b/2026/03/04/12/b-1-2026-03-04-12-13-14-i-000001"], "b1\n");
    rig.writer.finish_group();
    for answer in &mut answers {
        assert_eq!(answer.try_recv(), Ok(Outcome::Accepted));
    }
    let plan = rig.disk.plan();
    assert_eq!(plan.file_syncs, 2);
    let expected = ["", "a", "a/2026", "a/2026/03", "a/2026/03/04", "a/2026/03/04/12"];
    assert!(expected.iter().all(|folder| plan.folder_syncs.contains(&(*folder).to_owned())), "{plan:?}");
    assert_eq!(plan.folder_syncs.len(), 11, "the root's once");
}

#[test]
fn a_full_disk_refuses_and_leaves_nothing_behind() {
    let mut rig = Rig::new();
    let mut first = rig.take("a", "first\n");
    rig.disk.plan().space = 3;
    let refused = rig.deliver("a", "second\n");
    assert_eq!(refusal(&refused), Some(Refusal::Transient), "{refused:?}");
    assert_eq!(first.try_recv(), Ok(Outcome::Accepted));
    assert_eq!(rig.contents(), ["first\n"]);
    rig.disk.plan().space = u64::MAX;
    assert_eq!(rig.deliver("a", "second\n"), Outcome::Accepted);
    assert_eq!(rig.contents(), ["first\nsecond\n"]);
}

#[test]
fn a_file_that_cannot_be_cut_back_is_left() {
    let mut rig = Rig::new();
    let mut first = rig.take("a", "first\n");
    {
        let mut plan = rig.disk.plan();
        plan.space = 3;
        plan.truncate_fails = true;
    }
    let mut second = rig.take("a", "second\n");
    assert!(matches!(second.try_recv(), Ok(Outcome::Unknown { .. })));
    rig.disk.plan().space = u64::MAX;
    assert_eq!(rig.deliver("a", "second\n"), Outcome::Accepted);
    assert_eq!(first.try_recv(), Ok(Outcome::Accepted));
    assert_eq!(rig.contents(), ["first\nsec", "second\n"]);
}

#[test]
fn a_file_that_cannot_be_synced_is_left_and_never_synced_again() {
    let mut rig = Rig::new();
    assert_eq!(rig.deliver("a", "first\n"), Outcome::Accepted);
    rig.disk.plan().file_sync_fails = true;
    let mut answers = ["x", "y"].map(|body| rig.take("a", body));
    rig.writer.finish_group();
    for answer in &mut answers {
        assert!(matches!(answer.try_recv(), Ok(Outcome::Unknown { .. })));
    }
    rig.expect_syncs_and_open(2, 0);
    rig.disk.plan().file_sync_fails = false;
    assert_eq!(rig.deliver("a", "xy"), Outcome::Accepted);
    assert_eq!(rig.contents(), ["first\nxy", "xy"]);
}

#[test]
fn a_folder_that_cannot_be_synced_makes_everything_below_unknown() {
    let mut rig = Rig::new();
    rig.disk.plan().folder_sync_fails = Some("a/2026");
    let mut beside = rig.take("b", "b");
    assert!(matches!(rig.deliver("a", "x"), Outcome::Unknown { .. }));
    assert_eq!(beside.try_recv(), Ok(Outcome::Accepted));
    rig.disk.plan().folder_sync_fails = None;
    rig.disk.plan().folder_syncs.clear();
    assert_eq!(rig.deliver("a", "x"), Outcome::Accepted);
    assert_eq!(rig.disk.plan().folder_syncs.len(), 6, "the whole path is synced anew");
    assert_eq!(rig.contents(), ["x", "x", "b"]);
}

#[test]
fn more_streams_than_files_need_no_more_files_than_allowed() {
    const STREAMS: usize = 1000;
    let mut rig = Rig::new();
    rig.disk.plan().sync_for_real = false;
    let mut answers = Vec::new();
    for round in ["1", "2"] {
        answers.extend((0..STREAMS).map(|i| rig.take(&format!("s{i}"), round)));
    }
    rig.writer.finish_group();
    assert!(answers.iter_mut().all(|answer| answer.try_recv() == Ok(Outcome::Accepted)));
    assert_eq!(rig.disk.plan().open_most, FILES_MAX);
    let contents = rig.contents();
    assert_eq!(contents.len(), STREAMS, "a file that was closed is opened again");
    assert!(contents.iter().all(|content| content == "12"));
}

#[test]
fn files_are_rotated_by_size_and_by_the_hour() {
    let mut rig = Rig::new();
    rig.disk.plan().sync_for_real = false;
    let large = "x".repeat(40 << 20);
    let mut answers = vec![rig.take("a", &large), rig.take("a", &large)];
    rig.disk.plan().now = datetime!(2026-03-04 13:00:00 UTC);
    answers.push(rig.take("a", "later"));
    rig.writer.finish_group();
    assert!(answers.iter_mut().all(|answer| answer.try_recv() == Ok(Outcome::Accepted)));
    let names: Vec<String> = rig.files().into_keys().collect();
    let expected = [
        "a/2026/03/04/12/a-1-2026-03-04-12-13-14-i-000001",
        "a/2026/03/04/12/a-1-2026-03-04-12-13-14-i-000002",
        "a/2026/03/04/13/a-1-2026-03-04-13-00-00-i-000003",
    ];
    assert_eq!(names, expected);
    rig.expect_syncs_and_open(3, 1);
}

#[test]
fn a_file_that_somebody_touched_is_left() {
    let mut rig = Rig::new();
    let path =
        |rig: &Rig| rig.root.path().join(rig.files().into_keys().next_back().expect("there is a file"));
    assert_eq!(rig.deliver("a", "1"), Outcome::Accepted);
    fs::remove_file(path(&rig)).expect("it is there");
    assert_eq!(rig.deliver("a", "2"), Outcome::Accepted);
    fs::write(path(&rig), "").expect("it is there");
    assert_eq!(rig.deliver("a", "3"), Outcome::Accepted);
    assert_eq!(rig.contents(), ["", "3"]);
    fs::remove_dir_all(rig.root.path().join("a")).expect("it is there");
    assert_eq!(rig.deliver("a", "4"), Outcome::Accepted);
    assert_eq!(rig.contents(), ["4"]);
}

#[test]
fn a_closed_file_that_is_not_as_it_was_left_is_not_opened_again() {
    let mut rig = Rig::new();
    rig.disk.plan().sync_for_real = false;
    assert_eq!(rig.deliver("a", "1"), Outcome::Accepted);
    for i in 0..FILES_MAX {
        assert_eq!(rig.deliver(&format!("s{i}"), "x"), Outcome::Accepted);
    }
    fs::remove_dir_all(rig.root.path().join("a")).expect("it is there");
    assert_eq!(rig.deliver("a", "2"), Outcome::Accepted);
    assert_eq!(files(&rig.root.path().join("a")).into_values().collect::<Vec<_>>(), ["2"]);
    assert_eq!(rig.disk.plan().open_most, FILES_MAX);
}

#[test]
fn names_and_links_that_lead_elsewhere_are_refused() {
    let mut rig = Rig::new();
    let outside = tempfile::tempdir().expect("there is a temporary directory");
    std::os::unix::fs::symlink(outside.path(), rig.root.path().join("link")).expect("a link can be made");
    for name in ["..", ".", "", "_other", "../x", "a/b", "/tmp", "link", &"x".repeat(65)] {
        let outcome = rig.deliver(name, "x");
        assert_eq!(refusal(&outcome), Some(Refusal::Permanent), "{name:?}: {outcome:?}");
    }
    assert_eq!(files(outside.path()).len(), 0);
    fs::remove_file(rig.root.path().join("link")).expect("it is there");
    assert_eq!(rig.contents().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_from_many_tasks_are_all_in_the_files() {
    let root = tempfile::tempdir().expect("there is a temporary directory");
    let directory =
        Arc::new(Directory::open(root.path(), "host.1", histogram()).expect("it can be written to"));
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..2000 {
        let directory = Arc::clone(&directory);
        calls.spawn(async move { directory.call(call(&format!("s{}", i % 7), &format!("{i}\n"))).await });
    }
    assert!(calls.join_all().await.iter().all(|outcome| *outcome == Outcome::Accepted));
    let mut lines: Vec<u32> = files(root.path())
        .values()
        .flat_map(|text| text.lines())
        .map(|line| line.parse().expect("ours"))
        .collect();
    lines.sort_unstable();
    assert!(lines.into_iter().eq(0..2000));
}

#[tokio::test]
async fn a_later_process_never_appends_to_a_file() {
    let root = tempfile::tempdir().expect("there is a temporary directory");
    for _ in 0..3 {
        let directory = Directory::open(root.path(), "i", histogram()).expect("it can be written to");
        assert_eq!(directory.call(call("a", "x")).await, Outcome::Accepted);
    }
    assert_eq!(files(root.path()).into_values().collect::<Vec<_>>(), ["x", "x", "x"]);
}

#[tokio::test]
async fn closing_answers_what_waits_and_refuses_the_rest() {
    let root = tempfile::tempdir().expect("there is a temporary directory");
    let directory = Arc::new(Directory::open(root.path(), "i", histogram()).expect("it can be written to"));
    let mut calls = Box::pin(directory.call(call("a", "x")));
    let started = futures_poll(calls.as_mut()).await;
    let closing = Arc::clone(&directory);
    tokio::task::spawn_blocking(move || closing.close()).await.expect("it does not panic");
    assert_eq!(started.unwrap_or(calls.await), Outcome::Accepted);
    assert_eq!(refusal(&directory.call(call("a", "y")).await), Some(Refusal::Transient));
    directory.close();
    assert_eq!(files(root.path()).into_values().collect::<Vec<_>>(), ["x"]);
}

/// Polls once, so that the call is handed over.
async fn futures_poll(mut future: std::pin::Pin<&mut impl Future<Output = Outcome>>) -> Option<Outcome> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(outcome) => Some(outcome),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn a_root_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("there is a temporary directory");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("it can be written");
    for root in [file.as_path(), &file.join("below"), Path::new("/proc/self/standpipe")] {
        let error =
            Directory::open(root, "i", histogram()).expect_err("no files can be made there").to_string();
        assert!(error.contains(&root.display().to_string()), "{error}");
    }
    for instance in ["", "a/b", "a b", &"x".repeat(65)] {
        let error =
            Directory::open(folder.path(), instance, histogram()).expect_err("no part of a file name");
        assert!(error.to_string().contains("instance name"), "{error}");
    }
}
