//! The thread that keeps the spool: it owns the machine and its files, takes what delivery asks, and reports what
//! became of it. It decides nothing.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::executor::perform;
use super::host::{Host, Taken};
pub use super::lines::Part;
use super::{Event, Limits, Lines, NewBatch, Notice, OWN, OpId, OpResult, Spool};
use crate::metrics::{Histogram, SpoolGauges};
use crate::rarely::Rarely;

/// How often directories of other processes are looked for.
const ADOPT_EVERY: Duration = Duration::from_secs(3);
/// Operations under way at one time.
const OPS_MAX: usize = 64;
/// Commands taken before operations are started again.
const COMMANDS_AT_ONCE: usize = 256;
/// How often the age of what waits on disk is told, which takes a look at every stream.
const AGES_EVERY: Duration = Duration::from_millis(500);
/// Of what concerns single files or directories so many are named at once: there may be thousands of them.
const NAMES_LOGGED: u32 = 10;

/// What the spool is made of.
#[derive(Debug)]
pub struct Settings {
    /// Below this every process has its directory.
    pub root: PathBuf,
    /// The name of this process's.
    pub instance: String,
    /// Whether io_uring may be used.
    pub uses_uring: bool,
    /// The bounds.
    pub limits: Limits,
    /// Where the time of every fsync is counted.
    pub fsync: Arc<Histogram>,
    /// What a scrape shows.
    pub gauges: Arc<SpoolGauges>,
}

/// What delivery asks.
#[derive(Debug)]
pub enum Command {
    /// Store a batch: its parts behind each other.
    Append {
        /// Its id, below 2⁶³, never used before.
        id: u64,
        /// Its stream.
        stream: Arc<str>,
        /// Its bytes.
        parts: Vec<Part>,
        /// Its events.
        events: u64,
        /// When the oldest was received.
        oldest: Instant,
        /// Whether some may have been delivered.
        is_unknown: bool,
    },
    /// Read the oldest batch of a stream back.
    Fetch(Arc<str>),
    /// A stored batch is no longer in memory; whether a call with it ended without a known outcome.
    Release(u64, bool),
    /// A batch is settled.
    Done(u64),
    /// These are the bounds from now on; segments are as large as before.
    Limit {
        /// Bytes of all files, adopted ones too.
        bytes_max: u64,
        /// Bytes that are left free on the file system.
        free_floor: u64,
        /// How long a segment is kept once everything in it is delivered.
        keep_sent: Duration,
    },
    /// Bring everything to disk, note the orderly end, give up all locks, and say when that is done.
    Stop(oneshot::Sender<()>),
}

/// The way to the thread, and back from it.
#[derive(Debug)]
pub struct Keeper {
    /// To it.
    pub commands: mpsc::UnboundedSender<Command>,
    /// From it. Notices have been logged already.
    pub events: mpsc::UnboundedReceiver<Event>,
}

impl Keeper {
    /// Starts the thread. A disk that fails is tried again, with a warning.
    ///
    /// # Errors
    /// Where this user may not write there, which no time will mend, and where the system gives no thread.
    pub fn start(settings: Settings) -> io::Result<Self> {
        use io::ErrorKind::{NotADirectory, PermissionDenied};
        let root = settings.root.display();
        match Host::new(&settings.root, &settings.instance, false).probe() {
            Ok(()) => (),
            Err(error) if matches!(error.kind(), PermissionDenied | NotADirectory) => {
                let what = format!(
                    "cannot write to the spool's directory {root}: {error}; name another, or let this user write there"
                );
                return Err(io::Error::new(error.kind(), what));
            }
            Err(error) => warn!(
                "the spool's directory {root} cannot be written to ({error}): what memory has no room for is dropped or \
                 waits until it can"
            ),
        }
        let (commands, receiver) = mpsc::unbounded_channel();
        let (sender, events) = mpsc::unbounded_channel();
        let body = move || run(settings, receiver, sender);
        std::thread::Builder::new().name("spool".to_owned()).spawn(body)?;
        Ok(Self { commands, events })
    }
}

fn run(settings: Settings, commands: mpsc::UnboundedReceiver<Command>, events: mpsc::UnboundedSender<Event>) {
    let uses_uring = settings.uses_uring;
    let work = async move { Work::new(settings, commands, events).serve().await };
    if uses_uring {
        tokio_uring::start(work);
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime of one thread needs a descriptor or two");
    tokio::task::LocalSet::new().block_on(&runtime, work);
}

/// An operation that has ended.
type Ended = (OpId, OpResult);

/// All that the thread owns.
struct Work {
    spool: Spool,
    host: Rc<RefCell<Host>>,
    fsync: Arc<Histogram>,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<Event>,
    results: (mpsc::UnboundedSender<Ended>, mpsc::UnboundedReceiver<Ended>),
    under_way: usize,
    gauges: Arc<SpoolGauges>,
    /// The same moment on both clocks: from here on only the one that never jumps counts.
    epoch: (Instant, u64),
    adopt_at: Instant,
    logged: Logged,
    aged_at: Option<Instant>,
    stopping: Option<oneshot::Sender<()>>,
}

/// What the thread logs, by its cause.
struct Logged {
    failing: Rarely,
    unreadable: Rarely,
    works: Rarely,
    found: Rarely,
    damaged: Rarely,
}

impl Default for Logged {
    fn default() -> Self {
        let [found, damaged] = [const { Rarely::up_to(NAMES_LOGGED) }; 2];
        let [failing, unreadable, works] = [const { Rarely::up_to(1) }; 3];
        Self { failing, unreadable, works, found, damaged }
    }
}

impl Work {
    fn new(
        settings: Settings,
        commands: mpsc::UnboundedReceiver<Command>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        settings.gauges.limit.store(settings.limits.bytes_max, Relaxed);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let host = Host::new(&settings.root, &settings.instance, settings.uses_uring);
        Self {
            spool: Spool::new(settings.limits, fastrand::u64(..)),
            host: Rc::new(RefCell::new(host)),
            fsync: settings.fsync,
            commands,
            events,
            results: mpsc::unbounded_channel(),
            under_way: 0,
            gauges: settings.gauges,
            epoch: (Instant::now(), as_millis(since)),
            adopt_at: Instant::now(),
            logged: Logged::default(),
            aged_at: None,
            stopping: None,
        }
    }

    fn now(&self) -> u64 {
        self.epoch.1 + as_millis(self.epoch.0.elapsed())
    }

    async fn serve(mut self) {
        loop {
            self.adopt();
            self.start_ops();
            self.report();
            if self.stopping.is_some() && self.under_way == 0 && self.spool.is_idle() {
                break;
            }
            let wait = Duration::from_millis(self.spool.wakes_after());
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.take_commands(command),
                    // Delivery is gone: the process is about to end.
                    None if self.stopping.is_none() => return,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                },
                Some((id, result)) = self.results.1.recv() => self.complete(id, result),
                () = tokio::time::sleep(wait) => (),
            }
        }
        self.finish();
    }

    fn take_commands(&mut self, first: Command) {
        self.take(first);
        for _ in 0..COMMANDS_AT_ONCE {
            match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(_) => break,
            }
        }
    }

    fn take(&mut self, command: Command) {
        if let Command::Limit { bytes_max, .. } = command {
            self.gauges.limit.store(bytes_max, Relaxed);
        }
        let (now, millis) = (Instant::now(), self.now());
        self.stopping = obey(&mut self.spool, command, now, millis).or(self.stopping.take());
    }

    fn start_ops(&mut self) {
        while self.under_way < OPS_MAX
            && let Some((id, op)) = self.spool.next_op(self.now())
        {
            self.under_way += 1;
            let (host, results, fsync) =
                (Rc::clone(&self.host), self.results.0.clone(), Arc::clone(&self.fsync));
            tokio::task::spawn_local(async move {
                let result = perform(host, op, &fsync).await;
                // The receiver is gone only when the thread is about to end.
                let _ = results.send((id, result));
            });
        }
    }

    fn complete(&mut self, id: OpId, result: OpResult) {
        self.under_way -= 1;
        self.spool.completed(id, result, self.now());
        while let Ok((id, result)) = self.results.1.try_recv() {
            self.under_way -= 1;
            self.spool.completed(id, result, self.now());
        }
    }

    fn report(&mut self) {
        while let Some(event) = self.spool.next_event() {
            match event {
                Event::Notice(notice) => self.log(&notice),
                Event::Left(dir) => self.host.borrow_mut().leave(dir),
                event => drop(self.events.send(event)),
            }
        }
        self.gauges.bytes.store(self.spool.bytes(), Relaxed);
        self.gauges.damaged_segments.store(self.spool.damaged_segments(), Relaxed);
        self.gauges.failing.store(u64::from(self.spool.is_failing()), Relaxed);
        if self.aged_at.is_none_or(|at| at.elapsed() >= AGES_EVERY) {
            self.aged_at = Some(Instant::now());
            *self.gauges.oldest.lock().unwrap_or_else(PoisonError::into_inner) = self.spool.oldest();
        }
    }

    fn log(&mut self, notice: &Notice) {
        let cause = match notice {
            Notice::Adopted { dir, batches: 0, .. } => {
                return debug!("spool directory {}: {notice}", self.host.borrow().name(*dir));
            }
            Notice::Works => &mut self.logged.works,
            Notice::Failing(_) => &mut self.logged.failing,
            Notice::Torn(..) | Notice::Adopted { .. } => &mut self.logged.found,
            Notice::Newer(..) | Notice::Quarantined(_) | Notice::Unreadable(..) => &mut self.logged.damaged,
        };
        let Some(more) = cause.say(Instant::now()) else { return };
        let host = self.host.borrow();
        match notice {
            Notice::Works => info!("{notice}{more}"),
            Notice::Failing(_) => warn!("{}: {notice}{more}", host.root().display()),
            Notice::Torn(file, _) => info!("spool directory {}: {notice}{more}", host.name(file.dir)),
            Notice::Adopted { dir, .. } => info!("spool directory {}: {notice}{more}", host.name(*dir)),
            Notice::Newer(dir, _) => warn!("spool directory {}: {notice}{more}", host.name(*dir)),
            Notice::Quarantined(file) | Notice::Unreadable(file, _) => {
                warn!("spool directory {}: {notice}{more}", host.name(file.dir));
            }
        }
    }

    /// Takes over what nobody holds, every few seconds.
    fn adopt(&mut self) {
        if self.stopping.is_some() || Instant::now() < self.adopt_at {
            return;
        }
        self.adopt_at = Instant::now() + ADOPT_EVERY;
        let taken = self.host.borrow_mut().take_over();
        match taken {
            Ok(taken) => {
                for Taken { dir, files, is_doubtful, .. } in taken {
                    self.spool.adopt(dir, &files, is_doubtful);
                }
            }
            Err(error) => {
                if let Some(more) = self.logged.unreadable.say(Instant::now()) {
                    warn!(
                        "the spool's directory {} cannot be read ({error}); it is tried again every few seconds{more}",
                        self.host.borrow().root().display()
                    );
                }
            }
        }
    }

    /// Everything is on disk: says so to whoever takes it over, and to whoever waits.
    fn finish(self) {
        let mut host = self.host.borrow_mut();
        for dir in host.dirs() {
            if let Err(error) = host.finish(dir, self.spool.has_files(dir), !self.spool.is_doubtful(dir)) {
                warn!(
                    "the orderly end could not be noted in the spool ({error}): what it holds will be counted as \
                     possible duplicates"
                );
            }
        }
        debug_assert!(OWN == 0 && self.under_way == 0);
        if let Some(done) = self.stopping {
            let _ = done.send(());
        }
    }
}

/// Has the machine do what is asked; `now` and `millis` are the same moment, the second since 1970. Gives whoever is to
/// be told when it has stopped, where it is to stop.
#[doc(hidden)]
pub fn obey(spool: &mut Spool, command: Command, now: Instant, millis: u64) -> Option<oneshot::Sender<()>> {
    match command {
        Command::Append { id, stream, parts, events, oldest, is_unknown } => {
            let oldest = millis.saturating_sub(as_millis(now.saturating_duration_since(oldest)));
            let events = u32::try_from(events).unwrap_or(u32::MAX);
            let batch = NewBatch { stream, lines: Lines::new(parts), events, oldest, is_unknown };
            spool.append(id, batch, millis);
        }
        Command::Fetch(stream) => drop(spool.fetch(&stream)),
        Command::Release(id, is_unknown) => spool.release(id, is_unknown),
        Command::Done(id) => spool.done(id, millis),
        Command::Limit { bytes_max, free_floor, keep_sent } => {
            spool.limit(bytes_max, free_floor, as_millis(keep_sent));
        }
        Command::Stop(done) => {
            spool.stop();
            return Some(done);
        }
    }
    None
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::net::probe;

    fn start(root: &std::path::Path, instance: &str, uses_uring: bool) -> Keeper {
        let limits = Limits {
            bytes_max: 1 << 30,
            free_floor: 0,
            batches_max: 1000,
            segment_bytes: 64 << 10,
            group_bytes: 8 << 20,
            keep_sent: 0,
        };
        let fsync = crate::metrics::Metrics::new(Instant::now(), 1, Vec::new(), 1).fsync_duration.clone();
        let settings = Settings {
            root: root.to_owned(),
            instance: instance.to_owned(),
            uses_uring,
            limits,
            fsync,
            gauges: Arc::default(),
        };
        Keeper::start(settings).unwrap()
    }

    fn append(keeper: &Keeper, id: u64, lines: &'static [u8]) {
        let command = Command::Append {
            id,
            stream: "clicks".into(),
            parts: vec![Part::Lines(Bytes::from_static(lines))],
            events: 1,
            oldest: Instant::now(),
            is_unknown: false,
        };
        keeper.commands.send(command).unwrap();
    }

    async fn stop(keeper: &Keeper) {
        let (done, is_done) = oneshot::channel();
        keeper.commands.send(Command::Stop(done)).unwrap();
        is_done.await.unwrap();
    }

    async fn survives_a_restart(uses_uring: bool) {
        let root = tempfile::tempdir().unwrap();
        let mut first = start(root.path(), "first", uses_uring);
        append(&first, 1, b"one\n");
        append(&first, 2, b"two\n");
        for id in [1, 2] {
            assert!(matches!(first.events.recv().await, Some(Event::Stored(stored)) if stored == id));
        }
        first.commands.send(Command::Done(1)).unwrap();
        stop(&first).await;
        assert!(root.path().join("first/clean").exists());
        let mut second = start(root.path(), "second", uses_uring);
        let recovered = second.events.recv().await;
        assert!(matches!(recovered, Some(Event::Recovered { batches: 1, events: 1, .. })), "{recovered:?}");
        second.commands.send(Command::Fetch("clicks".into())).unwrap();
        let Some(Event::Loaded { id, lines, is_doubtful, .. }) = second.events.recv().await else {
            panic!("it is read back");
        };
        assert_eq!((&lines[..], is_doubtful), (&b"two\n"[..], false));
        second.commands.send(Command::Done(id)).unwrap();
        stop(&second).await;
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn what_a_killed_process_left_stays_doubtful_when_its_heir_ends_in_order() {
        let root = tempfile::tempdir().unwrap();
        let mut killed = start(root.path(), "killed", false);
        append(&killed, 1, b"one\n");
        assert!(matches!(killed.events.recv().await, Some(Event::Stored(1))));
        let Keeper { commands, mut events } = killed;
        drop(commands);
        assert!(events.recv().await.is_none(), "its lock is given up");
        let mut heir = start(root.path(), "heir", false);
        assert!(matches!(heir.events.recv().await, Some(Event::Recovered { events: 1, .. })));
        stop(&heir).await;
        let mut last = start(root.path(), "last", false);
        assert!(matches!(last.events.recv().await, Some(Event::Recovered { events: 1, .. })));
        last.commands.send(Command::Fetch("clicks".into())).unwrap();
        let Some(Event::Loaded { is_doubtful, .. }) = last.events.recv().await else {
            panic!("it is read back")
        };
        assert!(is_doubtful, "the killed process may have delivered it");
        stop(&last).await;
    }

    #[tokio::test]
    async fn what_is_spooled_survives_a_restart_with_plain_files() {
        survives_a_restart(false).await;
    }

    #[tokio::test]
    async fn what_is_spooled_survives_a_restart_with_io_uring() {
        if probe::probe().is_ok() {
            survives_a_restart(true).await;
        }
    }
}
