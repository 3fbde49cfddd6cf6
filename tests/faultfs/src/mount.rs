//! The disk as a mounted file system. Nothing of it is cached by the kernel, so that a cut is seen at once. It
//! decides nothing: every request is one operation of [`Disk`].
//!
//! Not there: links, devices, extended attributes, shared mappings. Locks are the kernel's own.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, SessionACL, TimeOrNow, WriteFlags,
};

use crate::command;
use crate::contents::Contents;
use crate::disk::{Body, Disk, Folder, Node, Number};
use crate::faults::Operation;

/// Nothing may be cached.
const TTL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
const BLOCK_BYTES: u32 = 4096;
/// Requests that are served at a time: slow ones must not hold up the rest.
const THREADS: usize = 8;
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// O_DSYNC, which O_SYNC contains (open(2)).
const O_DSYNC: i32 = 0o10000;

/// A disk that is looked at and changed while it is mounted.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<(Mutex<Disk>, Condvar)>);

impl Shared {
    /// Does what a line says; see [`command`].
    pub fn run(&self, line: &str) -> String {
        let answer = command::run(&mut self.lock(), line);
        self.0.1.notify_all();
        answer
    }

    /// A poisoned lock only says that another thread panicked.
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk, once an operation that is slow has waited: for its time, or until it is slow no more. A process
    /// cannot end while a request of its own is not answered.
    fn slow(&self, operation: Operation) -> MutexGuard<'_, Disk> {
        let began = Instant::now();
        let mut disk = self.lock();
        loop {
            let left = disk.faults.delay_of(operation).saturating_sub(began.elapsed());
            if left.is_zero() {
                return disk;
            }
            let waited = self.0.1.wait_timeout(disk, left);
            disk = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Mounts a disk on an empty folder; it stays so until the session is dropped.
///
/// # Errors
///
/// Those of mount(2): there is no `/dev/fuse`, or no right to mount.
pub fn mount(disk: &Shared, folder: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("faultfs".to_owned()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    fuser::spawn_mount(Mounted(disk.clone()), folder, &config)
}

struct Mounted(Shared);

impl Mounted {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock()
    }

    fn slow(&self, operation: Operation) -> MutexGuard<'_, Disk> {
        self.0.slow(operation)
    }

    fn make(&self, req: &Request, at: (INodeNo, &OsStr), body: Body, mode: u32) -> Result<FileAttr, Errno> {
        let mut disk = self.slow(Operation::Create);
        let number = disk.create(at.0.0, at.1, body, mode & 0o7777, (req.uid(), req.gid()))?;
        attributes(&disk, number)
    }

    fn change(&self, number: Number, change: Change) -> Result<FileAttr, Errno> {
        let mut disk = self.slow(Operation::Resize);
        if let Some(size) = change.size {
            disk.resize(number, size)?;
        }
        let node = disk.node_mut(number)?;
        node.mode = change.mode.map_or(node.mode, |mode| mode & 0o7777);
        node.owner = (change.uid.unwrap_or(node.owner.0), change.gid.unwrap_or(node.owner.1));
        attributes(&disk, number)
    }
}

struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
}

fn attributes(disk: &Disk, number: Number) -> Result<FileAttr, Errno> {
    let node = disk.node(number)?;
    Ok(FileAttr {
        ino: INodeNo(number),
        size: node.size(),
        blocks: node.size().div_ceil(512),
        atime: node.modified,
        mtime: node.modified,
        ctime: node.modified,
        crtime: node.modified,
        kind: kind(node),
        perm: node.mode as u16,
        nlink: 1,
        uid: node.owner.0,
        gid: node.owner.1,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    })
}

fn kind(node: &Node) -> FileType {
    match node.body {
        Body::File(_) => FileType::RegularFile,
        Body::Folder(_) => FileType::Directory,
    }
}

fn entry(reply: ReplyEntry, made: Result<FileAttr, Errno>) {
    match made {
        Ok(attributes) => reply.entry(&TTL, &attributes, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn attr(reply: ReplyAttr, found: Result<FileAttr, Errno>) {
    match found {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The kernel's own bound is as good.
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        entry(reply, disk.lookup(parent.0, name).and_then(|number| attributes(&disk, number)));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        attr(reply, attributes(&self.disk(), ino.0));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        attr(reply, self.change(ino.0, Change { mode, uid, gid, size }));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        entry(reply, self.make(req, (parent, name), Body::Folder(Folder::default()), mode));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(req, (parent, name), Body::File(Contents::default()), mode);
        let opened = made.and_then(|made| self.disk().open(made.ino.0).map(|()| made));
        match opened {
            Ok(made) => {
                reply.created(&TTL, &made, GENERATION, FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.slow(Operation::Rename).remove(parent.0, name, false));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.slow(Operation::Rename).remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let may_replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        let mut disk = self.slow(Operation::Rename);
        empty(reply, disk.rename((parent.0, name), (newparent.0, newname), may_replace));
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.slow(Operation::Open).open(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.disk().close(ino.0);
        reply.ok();
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.slow(Operation::Read).read(ino.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.slow(Operation::Write).write(ino.0, offset, data, flags.0 & O_DSYNC != 0) {
            Ok(taken) => reply.written(taken as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut disk = self.slow(Operation::Resize);
        let size = disk.node(ino.0).map(Node::size);
        empty(reply, size.and_then(|size| disk.resize(ino.0, size.max(offset + length))));
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.slow(Operation::Sync).sync(ino.0));
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.slow(Operation::Sync).sync(ino.0));
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.disk();
        let folder = match disk.folder(ino.0) {
            Ok(folder) => folder,
            Err(error) => return reply.error(error),
        };
        let dots = [".", ".."].map(|name| (OsStr::new(name), ino.0));
        let names = folder.now().iter().map(|(name, number)| (name.as_os_str(), *number));
        for (at, (name, number)) in dots.into_iter().chain(names).enumerate().skip(offset as usize) {
            let kind = disk.node(number).map_or(FileType::RegularFile, kind);
            if reply.add(INodeNo(number), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let (used, room) = self.disk().space();
        let (blocks, free) =
            (room / u64::from(BLOCK_BYTES), room.saturating_sub(used) / u64::from(BLOCK_BYTES));
        reply.statfs(blocks, free, free, 1 << 20, 1 << 20, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}
