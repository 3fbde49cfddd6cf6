//! A disk in memory with a page cache before it. What is not synced may be lost, torn or reordered when power goes,
//! by sectors and by names; an fsync that fails drops what it did not write, and the next one says nothing of it.
//! It takes no decision but by the generator it is handed, so that a seed is a history.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use standpipe::spool::{File, Kind, Listed, Op, OpResult};

mod inode;

use self::inode::Inode;

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A file of the spool.
    File(u32, Kind),
    /// The note of an orderly end.
    Clean,
}

#[derive(Clone, Debug, Default)]
struct Dir {
    names: BTreeMap<Name, u64>,
    durable: BTreeMap<Name, u64>,
    changes: Vec<(Name, Option<u64>)>,
}

/// How often what fails, in 1,000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub writes: u32,
    pub syncs: u32,
    pub reads: u32,
    pub names: u32,
}

/// What flips did to a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Damage {
    pub lines: bool,
    pub heads: bool,
}

/// The disk. A directory has a number that is never used again.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    dirs: BTreeMap<u64, Dir>,
    inodes: BTreeMap<u64, Inode>,
    quarantine: BTreeSet<u64>,
    next: u64,
    pub faults: Faults,
    /// A mutation: an fsync of a file does nothing, and says that it did.
    pub skips_syncs: bool,
    /// How many operations failed.
    pub failed: u64,
    /// The events of batches of which a read failed, once for each read.
    unreadable: Vec<u64>,
    /// The events of directories in which something else could not be read: it may have said that they are done.
    doubtful: BTreeSet<u64>,
}

impl Disk {
    /// A new, empty directory.
    pub fn make_dir(&mut self) -> u64 {
        self.next += 1;
        self.dirs.insert(self.next, Dir::default());
        self.next
    }

    /// Every directory.
    pub fn dirs(&self) -> Vec<u64> {
        self.dirs.keys().copied().collect()
    }

    /// The files of a directory.
    pub fn list(&self, dir: u64) -> Vec<Listed> {
        let file = |(name, inode): (&Name, &u64)| match name {
            Name::File(number, kind) => {
                let length = self.inodes[inode].cached.len() as u64;
                Some(Listed { number: *number, kind: *kind, length, modified: 0 })
            }
            Name::Clean => None,
        };
        self.dirs[&dir].names.iter().filter_map(file).collect()
    }

    /// Removes a directory that is empty.
    pub fn remove_if_empty(&mut self, dir: u64) {
        if self.dirs.get(&dir).is_some_and(|dir| dir.names.is_empty()) {
            self.dirs.remove(&dir);
        }
    }

    /// Takes the note of an orderly end away, durably; whether there was one.
    pub fn take_clean(&mut self, dir: u64) -> bool {
        let dir = self.dirs.get_mut(&dir).expect("it is there");
        dir.durable.remove(&Name::Clean);
        dir.names.remove(&Name::Clean).is_some()
    }

    /// Notes an orderly end, and makes all names of the directory durable.
    pub fn note_clean(&mut self, dir: u64) {
        let inode = self.new_inode();
        let Some(dir) = self.dirs.get_mut(&dir) else { return };
        dir.names.insert(Name::Clean, inode);
        dir.sync();
    }

    /// The events that stand where no orderly end was noted.
    pub fn left_in_doubt(&self) -> BTreeSet<u64> {
        let is_in_doubt = |dir: &&Dir| !dir.names.contains_key(&Name::Clean);
        self.dirs.values().filter(is_in_doubt).flat_map(|dir| self.tokens(dir)).collect()
    }

    /// The events of a directory.
    fn tokens(&self, dir: &Dir) -> BTreeSet<u64> {
        dir.names.values().flat_map(|inode| self.inodes[inode].tokens()).collect()
    }

    /// The events of which a read has failed since the last time, once for each; and those beside something else that
    /// could not be read, which may have said that they are done.
    pub fn take_failed_reads(&mut self) -> (Vec<u64>, BTreeSet<u64>) {
        (std::mem::take(&mut self.unreadable), std::mem::take(&mut self.doubtful))
    }

    /// A read fails: of a batch, or of what says which batches there are and which are done.
    fn note_failed_read(&mut self, dir: u64, file: File, offset: usize, length: usize) {
        let Some(inode) = self.inode(dir, file) else { return };
        match inode.tokens_at(offset, length) {
            Some(tokens) => self.unreadable.extend(tokens),
            None => self.doubtful.append(&mut self.tokens(&self.dirs[&dir])),
        }
    }

    /// Bytes of all files that are not in quarantine.
    pub fn bytes(&self) -> u64 {
        let inodes = self.dirs.values().flat_map(|dir| dir.names.values());
        inodes.map(|inode| self.inodes[inode].cached.len() as u64).sum()
    }

    fn new_inode(&mut self) -> u64 {
        self.next += 1;
        self.inodes.insert(self.next, Inode::default());
        self.next
    }

    fn inode(&mut self, dir: u64, file: File) -> Option<&mut Inode> {
        let inode = *self.dirs.get(&dir)?.names.get(&Name::File(file.number, file.kind))?;
        self.inodes.get_mut(&inode)
    }

    /// Performs an operation in a directory, or lets it fail.
    pub fn perform(&mut self, dir: u64, op: &Op, rng: &mut Rng) -> OpResult {
        let often = match op {
            Op::Write { .. } => self.faults.writes,
            Op::Sync(_) | Op::SyncDir(_) => self.faults.syncs,
            Op::Read { .. } => self.faults.reads,
            Op::Create(_) | Op::Remove(_) | Op::Quarantine(_) | Op::RemoveDir(_) => self.faults.names,
            Op::Close(_) | Op::Space => 0,
        };
        if rng.u32(..1000) < often {
            self.failed += 1;
            return self.fail(dir, op, rng);
        }
        self.succeed(dir, op)
    }

    fn succeed(&mut self, dir: u64, op: &Op) -> OpResult {
        match op {
            Op::Create(file) => {
                let name = Name::File(file.number, file.kind);
                let exists = self.dirs[&dir].names.contains_key(&name);
                assert!(!exists || file.kind == Kind::Done, "{file:?} is made twice");
                if let Some(inode) = self.inode(dir, *file) {
                    // Marks of an earlier try are cut to nothing.
                    inode.cut();
                    return OpResult::Done;
                }
                let inode = self.new_inode();
                self.dirs.get_mut(&dir).expect("it is there").change(name, Some(inode));
            }
            Op::Write { file, offset, parts } => {
                let Some(inode) = self.inode(dir, *file) else { return gone() };
                inode.write(*offset as usize, parts, usize::MAX);
            }
            Op::Sync(file) => {
                let is_skipped = self.skips_syncs;
                let Some(inode) = self.inode(dir, *file) else { return gone() };
                if !is_skipped {
                    inode.sync(|| true);
                }
            }
            Op::SyncDir(_) => self.dirs.get_mut(&dir).expect("it is there").sync(),
            Op::Read { file, offset, length } => {
                let Some(inode) = self.inode(dir, *file) else { return gone() };
                let from = (*offset as usize).min(inode.cached.len());
                let to = (from + *length as usize).min(inode.cached.len());
                return OpResult::Read(Bytes::copy_from_slice(&inode.cached[from..to]));
            }
            Op::Remove(file) => {
                let name = Name::File(file.number, file.kind);
                self.dirs.get_mut(&dir).expect("it is there").change(name, None);
            }
            Op::Quarantine(file) => {
                let name = Name::File(file.number, file.kind);
                let dir = self.dirs.get_mut(&dir).expect("it is there");
                let Some(inode) = dir.names.get(&name).copied() else { return gone() };
                dir.change(name, None);
                self.quarantine.insert(inode);
            }
            Op::RemoveDir(_) => {
                if !self.dirs[&dir].names.is_empty() {
                    return OpResult::Failed("ENOTEMPTY".into());
                }
                self.dirs.remove(&dir);
            }
            Op::Space => return OpResult::Space(1 << 40),
            Op::Close(_) => (),
        }
        OpResult::Done
    }

    fn fail(&mut self, dir: u64, op: &Op, rng: &mut Rng) -> OpResult {
        match op {
            Op::Write { file, offset, parts } => {
                let length: usize = parts.iter().map(Bytes::len).sum();
                if let Some(inode) = self.inode(dir, *file) {
                    inode.write(*offset as usize, parts, rng.usize(..=length));
                }
                return OpResult::Failed("ENOSPC".into());
            }
            Op::Read { file, offset, length } => {
                self.note_failed_read(dir, *file, *offset as usize, *length as usize);
            }
            // Some of it was written; the rest is clean in the cache, and will never be.
            Op::Sync(file) => {
                if let Some(inode) = self.inode(dir, *file) {
                    inode.sync(|| rng.bool());
                }
            }
            _ => (),
        }
        OpResult::Failed("EIO".into())
    }

    /// Performs a part of an operation that was under way when the process ended.
    pub fn perform_partly(&mut self, dir: u64, op: &Op, rng: &mut Rng) {
        match op {
            Op::Write { .. } if rng.bool() => drop(self.fail(dir, op, rng)),
            Op::Read { .. } => (),
            _ if rng.bool() && self.dirs.contains_key(&dir) => drop(self.succeed(dir, op)),
            _ => (),
        }
    }

    /// Power is lost: of what was not synced some is there, and some is not.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        // One crash in three keeps nothing that was not synced, one nearly everything.
        let often = [0, 50, 95][rng.usize(..3)];
        for dir in self.dirs.values_mut() {
            dir.lose_power(often, rng);
        }
        for inode in self.inodes.values_mut() {
            inode.lose_power(often, rng);
        }
        let named = self.dirs.values().flat_map(|dir| dir.names.values().copied());
        let kept: BTreeSet<u64> = named.chain(self.quarantine.iter().copied()).collect();
        // What was flipped is remembered, for `damage`.
        self.inodes.retain(|number, inode| kept.contains(number) || !inode.flips.is_empty());
    }

    /// Flips a bit of what is on disk; false where there is nothing.
    pub fn flip(&mut self, rng: &mut Rng) -> bool {
        let named: Vec<u64> = self.dirs.values().flat_map(|dir| dir.names.values().copied()).collect();
        let Some(inode) = rng.choice(named).and_then(|inode| self.inodes.get_mut(&inode)) else {
            return false;
        };
        if inode.durable.is_empty() || inode.cached.len() < inode.durable.len() {
            return false;
        }
        let at = rng.usize(..inode.durable.len());
        let bit = 1 << rng.u32(..8);
        inode.durable[at] ^= bit;
        inode.cached[at] ^= bit;
        inode.flips.insert(at);
        true
    }

    /// What flips did to the batch with this token, wherever it stands: `heads` where its header and its trailer,
    /// or both headers of its file, are gone, so that nobody can know of it.
    pub fn damage(&self, token: u64) -> Damage {
        let mut damage = Damage::default();
        for inode in self.inodes.values() {
            let has = |from: usize, to: usize| inode.flips.range(from..to).next().is_some();
            for extent in inode.extents.iter().filter(|extent| extent.token == token) {
                let (start, end) = (extent.start, extent.start + extent.lines);
                damage.lines |= has(start, end);
                damage.heads |=
                    (has(0, 32) && has(32, 64)) || (has(start - 128, start) && has(end, end + 128));
            }
        }
        damage
    }

    /// Whether any bit was flipped.
    pub fn has_flips(&self) -> bool {
        self.inodes.values().any(|inode| !inode.flips.is_empty())
    }
}

fn gone() -> OpResult {
    OpResult::Failed("ENOENT".into())
}

impl Dir {
    fn change(&mut self, name: Name, inode: Option<u64>) {
        match inode {
            Some(inode) => drop(self.names.insert(name, inode)),
            None => drop(self.names.remove(&name)),
        }
        self.changes.push((name, inode));
    }

    fn sync(&mut self) {
        self.durable = self.names.clone();
        self.changes.clear();
    }

    /// Of each name's changes the first few are there.
    fn lose_power(&mut self, often: u32, rng: &mut Rng) {
        let mut ended = BTreeSet::new();
        for (name, inode) in std::mem::take(&mut self.changes) {
            if ended.contains(&name) || rng.u32(..100) >= often {
                ended.insert(name);
                continue;
            }
            match inode {
                Some(inode) => drop(self.durable.insert(name, inode)),
                None => drop(self.durable.remove(&name)),
            }
        }
        self.names = self.durable.clone();
    }
}

/// The token that a line, or the lines of a batch, begin with: `token N `.
pub fn token_of(lines: &[u8]) -> Option<u64> {
    let rest = lines.strip_prefix(b"token ")?;
    let end = rest.iter().position(|octet| *octet == b' ')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}
