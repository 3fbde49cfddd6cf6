//! What the writer needs of the host: a handful of file operations below one root, and the wall clock. It keeps no
//! state about files. A trait because tests put a disk in its place that is full or broken on purpose.
//!
//! Invariants: every path is walked from the root's descriptor, one component at a time, and no symbolic link is
//! followed, so nothing outside the root is ever opened; a new file is new (O_EXCL).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use time::OffsetDateTime;

use super::names::with_parents;

/// What tells a file from another that has its name, and whether it is as it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// A file as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) identity: Identity,
    pub(super) length: u64,
    /// Whether a name still leads to the file.
    pub(super) linked: bool,
}

/// The file operations, each of which may fail. Folders are paths relative to the root; the root is "".
pub(super) trait Disk {
    /// An open file.
    type File;
    /// The wall clock.
    fn now(&self) -> OffsetDateTime;
    /// Makes `folder` and what it lies in as needed, and in it the file `name`, which must not exist.
    fn create(&self, folder: &str, name: &str) -> io::Result<Self::File>;
    /// Opens a file that exists, for writing.
    fn reopen(&self, folder: &str, name: &str) -> io::Result<Self::File>;
    /// How the file stands.
    fn status(&self, file: &Self::File) -> io::Result<Status>;
    /// Writes at `offset`; may write less than all.
    fn write_at(&self, file: &Self::File, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Cuts the file to `length`.
    fn truncate(&self, file: &Self::File, length: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable.
    fn sync_file(&self, file: &Self::File) -> io::Result<()>;
    /// Makes the names in `folder` durable.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
}

/// The disk of this host.
#[derive(Debug)]
pub(super) struct HostDisk {
    root: OwnedFd,
}

const FOLDER_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE_FLAGS: OFlags = OFlags::WRONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl HostDisk {
    /// Opens `root`, which is made if it does not exist, durably, and proves that files can be made in it. The
    /// path to the root may lead over links; what lies below may not.
    pub(super) fn open(root: &Path, probe: &str) -> io::Result<Self> {
        make_durably(root)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let disk = Self { root: rustix::fs::open(root, flags, Mode::empty())? };
        let flags = FILE_FLAGS | OFlags::CREATE;
        rustix::fs::openat(&disk.root, probe, flags, Mode::from_raw_mode(0o600))?;
        rustix::fs::unlinkat(&disk.root, probe, AtFlags::empty())?;
        Ok(disk)
    }

    /// Opens a folder below the root, making what is missing where `make` says so.
    fn walk(&self, folder: &str, make: bool) -> io::Result<OwnedFd> {
        let mut at = rustix::fs::openat(&self.root, ".", FOLDER_FLAGS, Mode::empty())?;
        for component in folder.split('/').filter(|component| !component.is_empty()) {
            at = match rustix::fs::openat(&at, component, FOLDER_FLAGS, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) if make => {
                    make_folder(&at, component)?;
                    open_folder(&at, component)?
                }
                Err(errno) => return Err(explain(&at, component, errno)),
                Ok(next) => next,
            };
        }
        Ok(at)
    }
}

fn make_folder(at: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_folder(at: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    rustix::fs::openat(at, name, FOLDER_FLAGS, Mode::empty()).map_err(|errno| explain(at, name, errno))
}

/// Says whether a link was in the way, which the error number alone does not.
fn explain(at: &OwnedFd, name: &str, errno: rustix::io::Errno) -> io::Error {
    if !matches!(errno, rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) {
        return errno.into();
    }
    let found = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW);
    let what = match found.map(|status| FileType::from_raw_mode(status.st_mode)) {
        Ok(FileType::Symlink) => "is a symbolic link, and links below the root are not followed",
        _ => "is not a directory",
    };
    io::Error::new(io::ErrorKind::NotADirectory, format!("{name:?} {what}"))
}

/// Makes a directory and what it lies in, each fsynced into its parent.
fn make_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_durably(parent)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

impl Disk for HostDisk {
    type File = OwnedFd;

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn create(&self, folder: &str, name: &str) -> io::Result<OwnedFd> {
        let flags = FILE_FLAGS | OFlags::CREATE | OFlags::EXCL;
        Ok(rustix::fs::openat(self.walk(folder, true)?, name, flags, Mode::from_raw_mode(0o666))?)
    }

    fn reopen(&self, folder: &str, name: &str) -> io::Result<OwnedFd> {
        // Non-blocking, or a FIFO put in the file's place would hold the thread.
        let flags = FILE_FLAGS | OFlags::NONBLOCK;
        Ok(rustix::fs::openat(self.walk(folder, false)?, name, flags, Mode::empty())?)
    }

    fn status(&self, file: &OwnedFd) -> io::Result<Status> {
        let status = rustix::fs::fstat(file)?;
        Ok(Status {
            identity: Identity { device: status.st_dev, inode: status.st_ino },
            length: u64::try_from(status.st_size).unwrap_or(0),
            linked: status.st_nlink > 0,
        })
    }

    fn write_at(&self, file: &OwnedFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, offset))?)
    }

    fn truncate(&self, file: &OwnedFd, length: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::ftruncate(file, length))?)
    }

    fn sync_file(&self, file: &OwnedFd) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(file)?)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        debug_assert!(with_parents(folder).last() == Some(""), "a folder is relative to the root");
        Ok(rustix::fs::fsync(self.walk(folder, false)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_below_the_root_are_not_followed() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let disk = HostDisk::open(root.path(), "probe").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("clicks")).unwrap();
        for result in [disk.create("clicks/2026", "f"), disk.reopen("clicks", "f")] {
            let error = result.expect_err("a link is in the way");
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
            assert!(error.to_string().contains("\"clicks\" is a symbolic link"), "{error}");
        }
        std::fs::write(outside.path().join("target"), "").unwrap();
        std::fs::create_dir(root.path().join("views")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("target"), root.path().join("views/f")).unwrap();
        assert!(disk.create("views", "f").is_err() && disk.reopen("views", "f").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(outside.path().join("target")).unwrap().len(), 0);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let disk = HostDisk::open(root.path(), "probe").unwrap();
        std::fs::write(root.path().join("clicks"), "").unwrap();
        let error = disk.create("clicks/2026", "f").expect_err("a file is in the way");
        assert!(error.to_string().contains("\"clicks\" is not a directory"), "{error}");
    }

    #[test]
    fn the_root_is_made_and_left_clean() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("a/b");
        let disk = HostDisk::open(&root, "probe").unwrap();
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        disk.create("s/2026/01/02/03", "f").unwrap();
        for folder in with_parents("s/2026/01/02/03") {
            disk.sync_folder(folder).unwrap();
        }
        assert_eq!(disk.create("s/2026/01/02/03", "f").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
