//! The spool's thread and its files, played: the machine runs over the modelled disk, asked by delivery as the thread
//! is asked, operation by operation in drawn order.

use std::collections::BTreeMap;
use std::time::Instant;

use fastrand::Rng;
use standpipe::spool::keeper::{self, Command, Keeper};
use standpipe::spool::{Event, File, Limits, Notice, OWN, Op, OpId, RETRY_AFTER, Spool};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use crate::disk::Disk;

/// Operations under way at one time.
const OPS_MAX: usize = 8;

/// A moment: on the clock that never jumps, and in milliseconds since 1970.
pub type Moment = (Instant, u64);

#[derive(Debug)]
pub struct Host {
    pub spool: Spool,
    /// Directories of the disk by the number that the machine knows.
    dirs: BTreeMap<u32, u64>,
    under_way: Vec<(OpId, Op)>,
    commands: UnboundedReceiver<Command>,
    events: UnboundedSender<Event>,
    stopping: Option<oneshot::Sender<()>>,
    /// Directories that are still being taken over.
    adopting: usize,
    /// The longest batch that was read back, in bytes of its lines.
    pub longest_read: u64,
}

impl Host {
    /// The spool of a process that starts: it takes over what others left.
    pub fn start(disk: &mut Disk, limits: Limits, seed: u64) -> (Self, Keeper) {
        let (commands_to, commands) = mpsc::unbounded_channel();
        let (events, events_from) = mpsc::unbounded_channel();
        let left: Vec<u64> = disk.dirs();
        let own = disk.make_dir();
        let mut host = Self {
            spool: Spool::new(limits, seed),
            dirs: BTreeMap::from([(OWN, own)]),
            under_way: Vec::new(),
            commands,
            events,
            stopping: None,
            adopting: left.len(),
            longest_read: 0,
        };
        for dir in left {
            let number = host.dirs.len() as u32;
            host.dirs.insert(number, dir);
            let is_clean = disk.take_clean(dir);
            host.spool.adopt(number, &disk.list(dir), !is_clean);
        }
        (host, Keeper { commands: commands_to, events: events_from })
    }

    /// Takes what delivery asks, and tells it what was learned.
    pub fn exchange(&mut self, (now, millis): Moment) {
        while let Ok(command) = self.commands.try_recv() {
            self.stopping = keeper::obey(&mut self.spool, command, now, millis).or(self.stopping.take());
        }
        while let Some(event) = self.spool.next_event() {
            match event {
                Event::Notice(notice) => {
                    self.adopting -= usize::from(matches!(notice, Notice::Adopted { .. }));
                    drop(notice.to_string());
                }
                Event::Left(dir) => panic!("directory {dir} is left alone"),
                event => {
                    if let Event::Loaded { lines, .. } = &event {
                        self.longest_read = self.longest_read.max(lines.len() as u64);
                    }
                    drop(self.events.send(event));
                }
            }
        }
    }

    /// Starts an operation, or ends one that is under way; false where there is nothing to do.
    pub fn perform_one(&mut self, disk: &mut Disk, rng: &mut Rng, millis: u64) -> bool {
        if self.under_way.is_empty() || (self.under_way.len() < OPS_MAX && rng.bool()) {
            match self.spool.next_op(millis) {
                Some(started) => self.under_way.push(started),
                None if self.under_way.is_empty() => return false,
                None => (),
            }
        }
        if rng.u32(..3) > 0 {
            let (id, op) = self.under_way.swap_remove(rng.usize(..self.under_way.len()));
            let result = disk.perform(self.dirs[&dir_of(&op)], &op, rng);
            self.spool.completed(id, result, millis);
        }
        true
    }

    /// Performs until nothing is left to do for now.
    pub fn perform_all(&mut self, disk: &mut Disk, rng: &mut Rng, millis: u64) {
        for _ in 0..100_000 {
            if !self.perform_one(disk, rng, millis) {
                return;
            }
        }
        panic!("the machine never comes to rest");
    }

    /// The process dies: what is under way may be done in part.
    pub fn die(self, disk: &mut Disk, rng: &mut Rng) {
        for (_, op) in self.under_way {
            disk.perform_partly(self.dirs[&dir_of(&op)], &op, rng);
        }
    }

    /// Whether nothing is on disk, and nothing is still to be found there.
    pub fn is_empty(&self) -> bool {
        self.adopting == 0 && self.spool.batches() == 0
    }

    /// Whether it was told to stop, and has.
    pub fn has_stopped(&self) -> bool {
        self.stopping.is_some() && self.under_way.is_empty() && self.spool.is_idle()
    }

    /// Notes the orderly end; whether that could be noted everywhere.
    pub fn finish(self, disk: &mut Disk) -> bool {
        let mut is_clean = true;
        for (dir, on_disk) in self.dirs {
            if !self.spool.has_files(dir) {
                disk.remove_if_empty(on_disk);
            }
            if self.spool.is_doubtful(dir) {
                is_clean = false;
            } else {
                disk.note_clean(on_disk);
            }
        }
        if let Some(done) = self.stopping {
            let _ = done.send(());
        }
        is_clean
    }
}

/// Which directory an operation is about.
pub fn dir_of(op: &Op) -> u32 {
    let of = |file: &File| file.dir;
    match op {
        Op::Create(file) | Op::Sync(file) | Op::Close(file) | Op::Remove(file) | Op::Quarantine(file) => {
            of(file)
        }
        Op::Write { file, .. } | Op::Read { file, .. } => of(file),
        Op::SyncDir(dir) | Op::RemoveDir(dir) => *dir,
        Op::Space => OWN,
    }
}

/// A disk that fails for a moment while a directory is taken over: what is in it comes a second later.
#[test]
fn a_spool_is_not_empty_before_it_has_read_what_others_left() {
    let limits = Limits {
        bytes_max: 1 << 20,
        free_floor: 0,
        batches_max: 100,
        segment_bytes: 1 << 10,
        group_bytes: 1 << 10,
        keep_sent: 0,
    };
    let (mut disk, mut rng, now) = (Disk::default(), Rng::with_seed(0), Instant::now());
    let (mut first, keeper) = Host::start(&mut disk, limits, 1);
    let parts = vec![keeper::Part::Lines("token 0 \n".into())];
    let (stream, oldest) = ("clicks".into(), now);
    let append = Command::Append { id: 0, stream, parts, events: 1, oldest, is_unknown: false };
    keeper.commands.send(append).unwrap();
    first.exchange((now, 0));
    first.perform_all(&mut disk, &mut rng, 0);
    first.die(&mut disk, &mut rng);
    let (mut heir, _keeper) = Host::start(&mut disk, limits, 2);
    disk.faults.reads = 1000;
    heir.perform_all(&mut disk, &mut rng, 0);
    disk.faults.reads = 0;
    heir.exchange((now, 0));
    assert!(heir.spool.batches() == 0 && !heir.is_empty(), "the read is tried again later");
    heir.perform_all(&mut disk, &mut rng, RETRY_AFTER);
    heir.exchange((now, RETRY_AFTER));
    assert!(heir.spool.batches() == 1 && !heir.is_empty());
}
