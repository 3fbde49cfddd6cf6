//! The spool's directories on this host: one of this process's own, locked, made when it is first needed; others
//! that are taken over when their lock is free; and the files in them, opened when they are first used. It decides
//! nothing: names, locks and descriptors only.
//!
//! Invariants: no link below the root is followed; a directory is touched only while its lock is held; it comes
//! under its final name only after it was locked, so that nobody takes it over in between.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tracing::warn;

use super::executor::Handle;
use super::{File, Kind, Listed, OWN};
use crate::rarely::Rarely;

/// Where damaged segments go.
const QUARANTINE: &str = "quarantine";
/// Says that the process that had the directory ended in order: nothing in it was sent without being marked.
const CLEAN: &str = "clean";
/// What a file system keeps at its root for its own repairs: no process's directory, and not ours to remove.
const LOST_AND_FOUND: &str = "lost+found";
/// A directory that is being made; left over where a process was killed meanwhile.
const UNFINISHED: &str = ".new-";
/// Descriptors of files that are kept open.
const OPEN_FILES_MAX: usize = 64;
/// A left-over of a directory that was being made is removed when it is this old.
const UNFINISHED_AGE: Duration = Duration::from_secs(60);

/// So many directories that cannot be taken over are named at once.
const REFUSED_LOGGED: u32 = 4;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory whose lock is held as long as this lives.
#[derive(Debug)]
struct Folder {
    name: String,
    descriptor: OwnedFd,
}

/// The directories and open files.
#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
    instance: String,
    uses_uring: bool,
    folders: HashMap<u32, Folder>,
    /// Directories that are not looked at again.
    left: HashSet<String>,
    /// Directories whose note of an orderly end was removed, and that not synced: they are not taken over yet.
    begun: HashSet<String>,
    /// A directory cannot be taken over.
    refused: Rarely,
    next_dir: u32,
    open: HashMap<File, Rc<Handle>>,
    /// The segment made last, which is never closed on the side.
    writing: Option<File>,
}

/// A directory that was taken over.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) dir: u32,
    pub(super) name: String,
    pub(super) files: Vec<Listed>,
    /// Whether whoever had it ended without order.
    pub(super) is_doubtful: bool,
}

impl Host {
    /// Nothing is touched yet. `instance` names this process's directory and must be nobody else's.
    pub(super) fn new(root: &Path, instance: &str, uses_uring: bool) -> Self {
        Self {
            root: root.to_owned(),
            instance: instance.to_owned(),
            uses_uring,
            folders: HashMap::new(),
            left: HashSet::new(),
            begun: HashSet::new(),
            refused: Rarely::up_to(REFUSED_LOGGED),
            next_dir: OWN + 1,
            open: HashMap::new(),
            writing: None,
        }
    }

    /// Where all of it lies.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the root where there is none, and a directory in it, which is removed again: whether this user may.
    ///
    /// # Errors
    /// What the system says where one of these fails.
    pub(super) fn probe(&self) -> io::Result<()> {
        let root = self.open_root()?;
        let unfinished = self.unfinished();
        rustix::fs::mkdirat(&root, &unfinished, Mode::from_raw_mode(0o777))?;
        Ok(rustix::fs::unlinkat(&root, &unfinished, AtFlags::REMOVEDIR)?)
    }

    /// The name of a directory that is held, for the log.
    pub(super) fn name(&self, dir: u32) -> &str {
        self.folders.get(&dir).map_or(&self.instance, |folder| &folder.name)
    }

    /// What this process's own directory is called while it is made.
    fn unfinished(&self) -> String {
        format!("{UNFINISHED}{}", self.instance)
    }

    fn open_root(&self) -> io::Result<OwnedFd> {
        fs::create_dir_all(&self.root)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.root, flags, Mode::empty())?)
    }

    fn folder(&mut self, dir: u32) -> io::Result<&OwnedFd> {
        if dir == OWN && !self.folders.contains_key(&OWN) {
            let folder = self.make_own()?;
            self.folders.insert(OWN, folder);
        }
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the directory is not held");
        self.folders.get(&dir).map(|folder| &folder.descriptor).ok_or_else(gone)
    }

    fn make_own(&self) -> io::Result<Folder> {
        let root = self.open_root()?;
        let unfinished = self.unfinished();
        match rustix::fs::mkdirat(&root, &unfinished, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(errno) => return Err(errno.into()),
        }
        let descriptor = rustix::fs::openat(&root, &unfinished, FOLDER, Mode::empty())?;
        rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive)?;
        rustix::fs::renameat(&root, &unfinished, &root, &self.instance)?;
        rustix::fs::fsync(&root)?;
        Ok(Folder { name: self.instance.clone(), descriptor })
    }

    /// Takes over every directory whose lock is free. One that cannot be taken over stands in nobody else's way.
    pub(super) fn take_over(&mut self) -> io::Result<Vec<Taken>> {
        let root = self.open_root()?;
        let mut taken = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let Ok(entry) = entry else { continue };
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with(UNFINISHED) {
                remove_unfinished(&root, &name, entry.metadata().and_then(|data| data.modified()));
                continue;
            }
            let is_known = name == self.instance
                || name == QUARANTINE
                || name == LOST_AND_FOUND
                || name.starts_with('.')
                || self.left.contains(&name)
                || self.folders.values().any(|folder| folder.name == name);
            if is_known || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match self.take(&root, name.clone()) {
                Ok(found) => taken.extend(found),
                Err(error) => {
                    if let Some(more) = self.refused.say(Instant::now()) {
                        warn!(
                            "spool directory {name} cannot be taken over ({error}); it is tried again every few \
                             seconds{more}"
                        );
                    }
                }
            }
        }
        taken.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(taken)
    }

    fn take(&mut self, root: &OwnedFd, name: String) -> io::Result<Option<Taken>> {
        let descriptor = match rustix::fs::openat(root, &name, FOLDER, Mode::empty()) {
            Ok(descriptor) => descriptor,
            // Somebody else has just removed it.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        if rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // Its last holder may have removed it between the two.
        let (here, there) =
            (rustix::fs::fstat(&descriptor)?, rustix::fs::statat(root, &name, AtFlags::SYMLINK_NOFOLLOW));
        if !there.is_ok_and(|there| there.st_ino == here.st_ino) {
            return Ok(None);
        }
        let files = list(&self.root.join(&name))?;
        // Gone for good before anything of it is sent: whoever found it again, should this process be killed, would
        // send the same and count none of it.
        if remove_clean(&descriptor)? {
            self.begun.insert(name.clone());
        }
        let is_clean = self.begun.contains(&name);
        if is_clean {
            rustix::fs::fsync(&descriptor)?;
            self.begun.remove(&name);
        }
        let dir = self.next_dir;
        self.next_dir += 1;
        self.folders.insert(dir, Folder { name: name.clone(), descriptor });
        Ok(Some(Taken { dir, name, files, is_doubtful: !is_clean }))
    }

    /// Gives the lock of a directory up, and does not look at it again.
    pub(super) fn leave(&mut self, dir: u32) {
        self.open.retain(|file, _| file.dir != dir);
        if let Some(folder) = self.folders.remove(&dir) {
            self.left.insert(folder.name);
        }
    }

    /// Notes that this process ends in order, in a directory that still has files, unless there `is_clean` says
    /// otherwise; removes one that has none.
    pub(super) fn finish(&mut self, dir: u32, has_files: bool, is_clean: bool) -> io::Result<()> {
        if (!has_files && self.remove_dir(dir).is_ok()) || !is_clean {
            return Ok(());
        }
        let Some(folder) = self.folders.get(&dir) else { return Ok(()) };
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let clean = rustix::fs::openat(&folder.descriptor, CLEAN, flags, Mode::from_raw_mode(0o666))?;
        rustix::fs::fsync(&clean)?;
        rustix::fs::fsync(&folder.descriptor)?;
        Ok(())
    }

    /// Every directory that is held.
    pub(super) fn dirs(&self) -> Vec<u32> {
        self.folders.keys().copied().collect()
    }

    pub(super) fn create(&mut self, file: File) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = self.folder(file.dir)?;
        let descriptor = match rustix::fs::openat(folder, file_name(file), flags, Mode::from_raw_mode(0o666))
        {
            // Marks of an earlier try, which may have failed halfway.
            Err(Errno::EXIST) if file.kind == Kind::Done => {
                let flags = OFlags::RDWR | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(folder, file_name(file), flags, Mode::empty())?
            }
            other => other?,
        };
        if file.kind == Kind::Segment {
            self.writing = Some(file);
        }
        self.keep(file, descriptor);
        Ok(())
    }

    /// The open file, opened if need be.
    pub(super) fn open(&mut self, file: File) -> io::Result<Rc<Handle>> {
        if let Some(handle) = self.open.get(&file) {
            return Ok(Rc::clone(handle));
        }
        let access = if file.kind == Kind::Done { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let descriptor = rustix::fs::openat(self.folder(file.dir)?, file_name(file), flags, Mode::empty())?;
        Ok(self.keep(file, descriptor))
    }

    fn keep(&mut self, file: File, descriptor: OwnedFd) -> Rc<Handle> {
        if self.open.len() >= OPEN_FILES_MAX {
            let writing = self.writing;
            self.open.retain(|file, handle| Some(*file) == writing || Rc::strong_count(handle) > 1);
        }
        let handle = Rc::new(Handle::new(descriptor, self.uses_uring));
        self.open.insert(file, Rc::clone(&handle));
        handle
    }

    pub(super) fn close(&mut self, file: File) {
        self.open.remove(&file);
        self.writing = self.writing.filter(|writing| *writing != file);
    }

    pub(super) fn remove(&mut self, file: File) -> io::Result<()> {
        self.close(file);
        match rustix::fs::unlinkat(self.folder(file.dir)?, file_name(file), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn quarantine(&mut self, file: File) -> io::Result<()> {
        self.close(file);
        let root = self.open_root()?;
        match rustix::fs::mkdirat(&root, QUARANTINE, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(errno) => return Err(errno.into()),
        }
        let quarantine = rustix::fs::openat(&root, QUARANTINE, FOLDER, Mode::empty())?;
        let target = format!("{}-{}", self.name(file.dir), file_name(file));
        rustix::fs::renameat(self.folder(file.dir)?, file_name(file), &quarantine, target)?;
        Ok(rustix::fs::fsync(&quarantine)?)
    }

    pub(super) fn sync_dir(&mut self, dir: u32) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.folder(dir)?)?)
    }

    /// Removes an empty directory; its lock goes with it.
    pub(super) fn remove_dir(&mut self, dir: u32) -> io::Result<()> {
        self.open.retain(|file, _| file.dir != dir);
        let root = self.open_root()?;
        let Some(folder) = self.folders.get(&dir) else { return Ok(()) };
        match rustix::fs::unlinkat(&root, &folder.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => (),
            Err(errno) => return Err(errno.into()),
        }
        self.folders.remove(&dir);
        Ok(rustix::fs::fsync(&root)?)
    }

    /// Bytes free for this user on the root's file system.
    pub(super) fn space(&self) -> io::Result<u64> {
        let status = rustix::fs::fstatvfs(self.open_root()?.as_fd())?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }
}

fn file_name(file: File) -> String {
    let extension = match file.kind {
        Kind::Segment => "seg",
        Kind::Done => "done",
    };
    format!("{:08}.{extension}", file.number)
}

/// Removes what says that the last holder ended in order; whether there was any.
fn remove_clean(folder: &OwnedFd) -> io::Result<bool> {
    let stat = || rustix::fs::statat(folder, CLEAN, AtFlags::SYMLINK_NOFOLLOW);
    match rustix::fs::unlinkat(folder, CLEAN, AtFlags::empty()) {
        Ok(()) => Ok(true),
        // A file system that is read-only refuses even where there is nothing to remove.
        Err(_) if matches!(stat(), Err(Errno::NOENT)) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('.'));
        let kind = match parts {
            Some((_, "seg")) => Kind::Segment,
            Some((_, "done")) => Kind::Done,
            _ => continue,
        };
        let Some(number) = parts.and_then(|(number, _)| number.parse().ok()) else { continue };
        let status = entry.metadata()?;
        if status.is_file() {
            let modified = status.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let modified = u64::try_from(modified.as_millis()).unwrap_or(u64::MAX);
            files.push(Listed { number, kind, length: status.len(), modified });
        }
    }
    Ok(files)
}

/// Removes what a process left that was killed while it made its directory.
fn remove_unfinished(root: &OwnedFd, name: &str, modified: io::Result<SystemTime>) {
    let age = modified.ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
    if age > UNFINISHED_AGE {
        // Not empty, or not ours to remove: it harms nobody.
        let _ = rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_belongs_to_the_file_system_is_neither_taken_over_nor_removed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(LOST_AND_FOUND)).unwrap();
        fs::create_dir(root.path().join("dead")).unwrap();
        let taken = Host::new(root.path(), "own", false).take_over().unwrap();
        assert_eq!(taken.iter().map(|taken| &taken.name[..]).collect::<Vec<_>>(), ["dead"]);
    }

    #[test]
    fn what_cannot_be_noted_as_begun_is_not_sent() {
        let root = tempfile::tempdir().unwrap();
        let clean = root.path().join("dead").join(CLEAN);
        // A note that cannot be removed, whoever tries: as on a disk that is read-only for a while.
        fs::create_dir_all(&clean).unwrap();
        let mut host = Host::new(root.path(), "own", false);
        assert!(host.take_over().unwrap().is_empty(), "the next one would find the note, too");
        fs::remove_dir(&clean).unwrap();
        fs::write(&clean, "").unwrap();
        let taken = host.take_over().unwrap();
        assert!(taken.iter().all(|taken| !taken.is_doubtful) && taken.len() == 1, "it is tried again");
        assert!(!clean.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_taken_over_stands_in_no_other_one_s_way() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("00000001.seg"), "").unwrap();
        }
        let closed = root.path().join("b");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        // Root reads everything: then nothing stands in the way to begin with.
        let is_root = fs::read_dir(&closed).is_ok();
        let mut host = Host::new(root.path(), "own", false);
        let names = |taken: &[Taken]| taken.iter().map(|taken| taken.name.clone()).collect::<Vec<_>>();
        let expected: &[&str] = if is_root { &["a", "b", "c"] } else { &["a", "c"] };
        assert_eq!(names(&host.take_over().unwrap()), expected);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
        let later: &[&str] = if is_root { &[] } else { &["b"] };
        assert_eq!(names(&host.take_over().unwrap()), later, "it is tried again");
    }
}
