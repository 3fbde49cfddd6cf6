//! Files and folders in two layers, in memory: pure, without FUSE, clock or threads.
//!
//! Invariants: a node lives as long as either layer has a name for it or somebody has it open; a cut leaves what was
//! synced, and may leave more only where it is asked to tear.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use fuser::Errno;

use crate::contents::Contents;
use crate::faults::{Faults, Operation};

/// A node's number; the root is 1.
pub type Number = u64;

/// The number of the root.
pub const ROOT: Number = 1;

/// The room on a disk for which no limit was set, in bytes.
pub const CAPACITY_BYTES: u64 = 16 << 30;

/// A file or a folder.
#[derive(Debug)]
pub struct Node {
    /// What it holds.
    pub body: Body,
    /// Permission bits.
    pub mode: u32,
    /// Who owns it: user and group.
    pub owner: (u32, u32),
    /// When its body was last changed.
    pub modified: SystemTime,
    open: u64,
}

/// What a node holds.
#[derive(Debug)]
pub enum Body {
    /// Bytes.
    File(Contents),
    /// Names.
    Folder(Folder),
}

/// The names in a folder.
#[derive(Debug, Default)]
pub struct Folder {
    now: BTreeMap<OsString, Number>,
    durable: BTreeMap<OsString, Number>,
    /// What was changed since the last sync, in order.
    pending: Vec<(OsString, Option<Number>)>,
}

impl Folder {
    /// What a reader sees.
    pub fn now(&self) -> &BTreeMap<OsString, Number> {
        &self.now
    }

    fn set(&mut self, name: &OsStr, number: Option<Number>) {
        apply(&mut self.now, name, number);
        self.pending.push((name.to_owned(), number));
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.now);
        self.pending.clear();
    }

    /// A journal keeps the order of changes, so what survives is a beginning of them.
    fn cut(&mut self, survives: &mut impl FnMut() -> bool) -> u64 {
        let pending = std::mem::take(&mut self.pending);
        let kept = pending.iter().take_while(|_| survives()).count();
        for (name, number) in &pending[..kept] {
            apply(&mut self.durable, name, *number);
        }
        self.now.clone_from(&self.durable);
        (pending.len() - kept) as u64
    }
}

fn apply(names: &mut BTreeMap<OsString, Number>, name: &OsStr, number: Option<Number>) {
    match number {
        Some(number) => names.insert(name.to_owned(), number),
        None => names.remove(name),
    };
}

/// What was done so far, and what a cut would take now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Writes done.
    pub writes: u64,
    /// Syncs of files and folders done.
    pub syncs: u64,
    /// Operations that were made to fail.
    pub failures: u64,
    /// Cuts.
    pub cuts: u64,
}

/// What a cut has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of files.
    pub bytes: u64,
    /// Changes of names.
    pub names: u64,
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    nodes: HashMap<Number, Node>,
    next: Number,
    limit_bytes: Option<u64>,
    stats: Stats,
    /// What fails.
    pub faults: Faults,
}

impl Default for Disk {
    fn default() -> Self {
        let root = Node::new(Body::Folder(Folder::default()), 0o777, (0, 0));
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            next: ROOT + 1,
            limit_bytes: None,
            stats: Stats::default(),
            faults: Faults::default(),
        }
    }
}

impl Node {
    fn new(body: Body, mode: u32, owner: (u32, u32)) -> Self {
        Self { body, mode, owner, modified: SystemTime::now(), open: 0 }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(contents) => contents.now().len() as u64,
            Body::Folder(_) => 0,
        }
    }
}

impl Disk {
    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Bytes that a cut would take.
    pub fn unsynced(&self) -> u64 {
        let files = self.nodes.values().filter_map(|node| match &node.body {
            Body::File(contents) => Some(contents.unsynced()),
            Body::Folder(_) => None,
        });
        files.sum()
    }

    /// Bytes of all files, and the room for them.
    pub fn space(&self) -> (u64, u64) {
        let used = self.nodes.values().map(Node::size).sum();
        (used, self.limit_bytes.unwrap_or(CAPACITY_BYTES))
    }

    /// Sets how many bytes all files may have; `None` takes the limit away.
    pub fn set_limit(&mut self, bytes: Option<u64>) {
        self.limit_bytes = bytes;
    }

    /// Whether an operation is made to fail this time.
    ///
    /// # Errors
    ///
    /// The error that it is to fail with.
    pub fn check(&mut self, operation: Operation) -> Result<(), Errno> {
        let checked = self.faults.check(operation);
        self.stats.failures += u64::from(checked.is_err());
        checked
    }

    /// A node.
    ///
    /// # Errors
    ///
    /// ENOENT if there is none of this number.
    pub fn node(&self, number: Number) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::ENOENT)
    }

    /// A node, to be changed.
    ///
    /// # Errors
    ///
    /// ENOENT if there is none of this number.
    pub fn node_mut(&mut self, number: Number) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    fn contents(&mut self, number: Number) -> Result<&mut Contents, Errno> {
        let node = self.node_mut(number)?;
        node.modified = SystemTime::now();
        match &mut node.body {
            Body::File(contents) => Ok(contents),
            Body::Folder(_) => Err(Errno::EISDIR),
        }
    }

    /// The names in a folder.
    ///
    /// # Errors
    ///
    /// ENOENT or ENOTDIR.
    pub fn folder(&self, number: Number) -> Result<&Folder, Errno> {
        match &self.node(number)?.body {
            Body::Folder(folder) => Ok(folder),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn folder_mut(&mut self, number: Number) -> Result<&mut Folder, Errno> {
        match &mut self.node_mut(number)?.body {
            Body::Folder(folder) => Ok(folder),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    /// The node that has this name in a folder.
    ///
    /// # Errors
    ///
    /// ENOENT or ENOTDIR.
    pub fn lookup(&self, parent: Number, name: &OsStr) -> Result<Number, Errno> {
        self.folder(parent)?.now.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// Makes a file or a folder.
    ///
    /// # Errors
    ///
    /// EEXIST, ENOENT, ENOTDIR, or a fault.
    pub fn create(
        &mut self,
        parent: Number,
        name: &OsStr,
        body: Body,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Number, Errno> {
        self.check(Operation::Create)?;
        if self.lookup(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let number = self.next;
        self.folder_mut(parent)?.set(name, Some(number));
        self.next += 1;
        self.nodes.insert(number, Node::new(body, mode, owner));
        Ok(number)
    }

    /// Takes a name away.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, EISDIR, ENOTEMPTY, or a fault.
    pub fn remove(&mut self, parent: Number, name: &OsStr, is_folder: bool) -> Result<(), Errno> {
        self.check(Operation::Rename)?;
        let number = self.lookup(parent, name)?;
        match (&self.node(number)?.body, is_folder) {
            (Body::Folder(folder), true) if !folder.now.is_empty() => return Err(Errno::ENOTEMPTY),
            (Body::Folder(_), false) => return Err(Errno::EISDIR),
            (Body::File(_), true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.folder_mut(parent)?.set(name, None);
        Ok(())
    }

    /// Gives another name. Between two folders it is synced at once, since a journal keeps both sides together.
    ///
    /// # Errors
    ///
    /// ENOENT, ENOTDIR, EEXIST, or a fault.
    pub fn rename(
        &mut self,
        from: (Number, &OsStr),
        to: (Number, &OsStr),
        may_replace: bool,
    ) -> Result<(), Errno> {
        self.check(Operation::Rename)?;
        let number = self.lookup(from.0, from.1)?;
        if !may_replace && self.lookup(to.0, to.1).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.folder_mut(to.0)?.set(to.1, Some(number));
        if from != to {
            self.folder_mut(from.0)?.set(from.1, None);
        }
        if from.0 != to.0 {
            self.folder_mut(from.0)?.sync();
            self.folder_mut(to.0)?.sync();
        }
        Ok(())
    }

    /// Opens a node: it lives until it is closed as often.
    ///
    /// # Errors
    ///
    /// ENOENT, or a fault.
    pub fn open(&mut self, number: Number) -> Result<(), Errno> {
        self.check(Operation::Open)?;
        self.node_mut(number)?.open += 1;
        Ok(())
    }

    /// Closes it.
    pub fn close(&mut self, number: Number) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.open = node.open.saturating_sub(1);
        }
        self.collect();
    }

    /// Reads at most so many bytes.
    ///
    /// # Errors
    ///
    /// ENOENT, EISDIR, or a fault.
    pub fn read(&mut self, number: Number, offset: u64, len: u32) -> Result<Vec<u8>, Errno> {
        self.check(Operation::Read)?;
        match &self.node(number)?.body {
            Body::File(contents) => {
                let bytes = contents.now();
                let start = (offset as usize).min(bytes.len());
                Ok(bytes[start..(start + len as usize).min(bytes.len())].to_vec())
            }
            Body::Folder(_) => Err(Errno::EISDIR),
        }
    }

    /// Writes, and returns how many bytes found room.
    ///
    /// # Errors
    ///
    /// ENOENT, EISDIR, ENOSPC, or a fault.
    pub fn write(&mut self, number: Number, offset: u64, bytes: &[u8], sync: bool) -> Result<usize, Errno> {
        self.check(Operation::Write)?;
        let len = self.node(number)?.size();
        let end_max = len.max(offset) + self.room().saturating_sub(offset.saturating_sub(len));
        let taken = bytes.len().min(end_max.saturating_sub(offset) as usize);
        if taken == 0 && !bytes.is_empty() {
            return Err(Errno::ENOSPC);
        }
        self.contents(number)?.write(offset as usize, &bytes[..taken]);
        self.stats.writes += 1;
        if sync {
            self.sync(number)?;
        }
        Ok(taken)
    }

    fn room(&self) -> u64 {
        if self.limit_bytes.is_none() {
            return CAPACITY_BYTES;
        }
        let (used, limit) = self.space();
        limit.saturating_sub(used)
    }

    /// Changes the length of a file.
    ///
    /// # Errors
    ///
    /// ENOENT, EISDIR, ENOSPC, or a fault.
    pub fn resize(&mut self, number: Number, len: u64) -> Result<(), Errno> {
        self.check(Operation::Resize)?;
        let more = len.saturating_sub(self.node(number)?.size());
        if more > self.room() {
            return Err(Errno::ENOSPC);
        }
        self.contents(number)?.resize(len as usize);
        Ok(())
    }

    /// Makes a file's bytes, or a folder's names, survive a cut.
    ///
    /// # Errors
    ///
    /// ENOENT, or a fault: then what a file had unsynced is lost at the next cut, whatever is synced later.
    pub fn sync(&mut self, number: Number) -> Result<(), Errno> {
        if self.faults.lies() {
            return Ok(());
        }
        let checked = self.check(Operation::Sync);
        match (&mut self.node_mut(number)?.body, &checked) {
            (Body::File(contents), Ok(())) => contents.sync(),
            (Body::File(contents), Err(_)) => contents.fail_sync(),
            (Body::Folder(folder), Ok(())) => folder.sync(),
            (Body::Folder(_), Err(_)) => {}
        }
        checked?;
        self.stats.syncs += 1;
        self.collect();
        Ok(())
    }

    /// The power fails: what was not synced is gone. With a seed some of it survives, page by page and name by name.
    pub fn cut(&mut self, tear: Option<u64>) -> Taken {
        let mut random = tear.map(fastrand::Rng::with_seed);
        let mut survives = || random.as_mut().is_some_and(fastrand::Rng::bool);
        let mut numbers: Vec<Number> = self.nodes.keys().copied().collect();
        numbers.sort_unstable();
        let mut taken = Taken::default();
        for number in numbers {
            match self.nodes.get_mut(&number).map(|node| &mut node.body) {
                Some(Body::File(contents)) => taken.bytes += contents.cut(&mut survives),
                Some(Body::Folder(folder)) => taken.names += folder.cut(&mut survives),
                None => {}
            }
        }
        self.stats.cuts += 1;
        self.collect();
        taken
    }

    /// Forgets what nobody can reach any more.
    fn collect(&mut self) {
        let mut reached = HashSet::from([ROOT]);
        let mut open: Vec<Number> = vec![ROOT];
        open.extend(self.nodes.iter().filter(|(_, node)| node.open > 0).map(|(number, _)| *number));
        while let Some(number) = open.pop() {
            reached.insert(number);
            if let Some(Body::Folder(folder)) = self.nodes.get(&number).map(|node| &node.body) {
                let names = folder.now.values().chain(folder.durable.values());
                open.extend(names.filter(|number| !reached.contains(number)));
            }
        }
        self.nodes.retain(|number, _| reached.contains(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &mut Disk, parent: Number, name: &str, bytes: &[u8]) -> Number {
        let body = Body::File(Contents::default());
        let number = disk.create(parent, OsStr::new(name), body, 0o644, (0, 0)).unwrap();
        disk.write(number, 0, bytes, false).unwrap();
        number
    }

    fn folder(disk: &mut Disk, parent: Number, name: &str) -> Number {
        disk.create(parent, OsStr::new(name), Body::Folder(Folder::default()), 0o755, (0, 0)).unwrap()
    }

    fn names(disk: &Disk, number: Number) -> Vec<&str> {
        disk.folder(number).unwrap().now.keys().map(|name| name.to_str().unwrap()).collect()
    }

    #[test]
    fn a_synced_file_without_a_synced_name_is_gone() {
        let mut disk = Disk::default();
        let kept = file(&mut disk, ROOT, "kept", b"1");
        disk.sync(kept).unwrap();
        disk.sync(ROOT).unwrap();
        let lost = file(&mut disk, ROOT, "lost", b"2");
        disk.sync(lost).unwrap();
        assert_eq!(disk.cut(None), Taken { bytes: 0, names: 1 });
        assert_eq!(names(&disk, ROOT), ["kept"]);
        assert_eq!(disk.read(kept, 0, 10).unwrap(), b"1");
        assert!(disk.node(lost).is_err(), "nobody can reach it");
    }

    #[test]
    fn a_synced_name_without_synced_bytes_is_an_empty_file() {
        let mut disk = Disk::default();
        let number = file(&mut disk, ROOT, "a", b"123");
        disk.sync(ROOT).unwrap();
        assert_eq!(disk.unsynced(), 3);
        assert_eq!(disk.cut(None), Taken { bytes: 3, names: 0 });
        assert_eq!(disk.read(number, 0, 10).unwrap(), b"");
    }

    #[test]
    fn removed_and_renamed_files_come_back_until_their_folder_is_synced() {
        let mut disk = Disk::default();
        let (a, b) = (file(&mut disk, ROOT, "a", b"1"), file(&mut disk, ROOT, "b", b"2"));
        [a, b, ROOT].iter().for_each(|number| disk.sync(*number).unwrap());
        disk.remove(ROOT, OsStr::new("a"), false).unwrap();
        disk.rename((ROOT, OsStr::new("b")), (ROOT, OsStr::new("c")), true).unwrap();
        assert_eq!(names(&disk, ROOT), ["c"]);
        disk.cut(None);
        assert_eq!(names(&disk, ROOT), ["a", "b"]);
        disk.remove(ROOT, OsStr::new("a"), false).unwrap();
        disk.sync(ROOT).unwrap();
        disk.cut(None);
        assert_eq!(names(&disk, ROOT), ["b"]);
        assert!(disk.node(a).is_err());
    }

    #[test]
    fn a_folder_is_kept_with_its_parent_synced() {
        let mut disk = Disk::default();
        let outer = folder(&mut disk, ROOT, "outer");
        let inner = file(&mut disk, outer, "inner", b"1");
        [inner, outer].iter().for_each(|number| disk.sync(*number).unwrap());
        disk.cut(None);
        assert!(names(&disk, ROOT).is_empty(), "the folder itself had no synced name");
    }

    #[test]
    fn a_torn_cut_leaves_a_beginning_of_the_names_and_repeats_by_its_seed() {
        let torn = |seed| {
            let mut disk = Disk::default();
            for name in 0..20 {
                file(&mut disk, ROOT, &format!("{name:02}"), &[1; 10_000]);
            }
            let taken = disk.cut(Some(seed));
            let sizes: Vec<u64> =
                disk.folder(ROOT).unwrap().now.values().map(|n| disk.node(*n).unwrap().size()).collect();
            let left = names(&disk, ROOT).len();
            assert_eq!(names(&disk, ROOT), (0..left).map(|name| format!("{name:02}")).collect::<Vec<_>>());
            (taken, sizes)
        };
        assert_eq!(torn(7), torn(7));
        assert!((0..10).any(|seed| torn(seed).0.names < 20), "some seed keeps a name");
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let mut disk = Disk::default();
        disk.set_limit(Some(10));
        let number = file(&mut disk, ROOT, "a", b"12345678");
        assert_eq!(disk.write(number, 8, b"9012", false).unwrap(), 2);
        assert_eq!(disk.write(number, 10, b"x", false).unwrap_err().code(), Errno::ENOSPC.code());
        assert_eq!(disk.write(number, 0, b"0", false).unwrap(), 1, "what is there can be overwritten");
        assert!(disk.resize(number, 11).is_err());
        disk.resize(number, 0).unwrap();
        assert_eq!(disk.space(), (0, 10));
    }

    #[test]
    fn a_lying_disk_keeps_nothing() {
        let mut disk = Disk::default();
        disk.faults.set_lying();
        let number = file(&mut disk, ROOT, "a", b"1");
        [number, ROOT].iter().for_each(|number| disk.sync(*number).unwrap());
        assert_eq!(disk.cut(None), Taken { bytes: 1, names: 1 });
    }

    #[test]
    fn a_file_that_is_open_lives_without_a_name() {
        let mut disk = Disk::default();
        let number = file(&mut disk, ROOT, "a", b"1");
        disk.open(number).unwrap();
        disk.remove(ROOT, OsStr::new("a"), false).unwrap();
        disk.sync(ROOT).unwrap();
        assert_eq!(disk.read(number, 0, 1).unwrap(), b"1");
        disk.close(number);
        assert!(disk.node(number).is_err());
    }
}
