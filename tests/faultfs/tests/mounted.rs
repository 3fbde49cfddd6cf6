//! The mounted file system as processes see it. Skipped, and said so, where nothing can be mounted.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use faultfs::mount::{Shared, mount};

/// A mounted disk; dropping it unmounts.
struct Mount {
    disk: Shared,
    folder: PathBuf,
    // In this order: first unmounted, then removed.
    _session: Box<dyn std::any::Any>,
    _temporary: tempfile::TempDir,
}

impl Mount {
    fn new() -> Option<Self> {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Shared::default();
        match mount(&disk, temporary.path()) {
            Ok(session) => Some(Self {
                disk,
                folder: temporary.path().to_owned(),
                _session: Box::new(session),
                _temporary: temporary,
            }),
            Err(error) => {
                eprintln!("*** NOT TESTED: nothing can be mounted here ({error}) ***");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn run(&self, line: &str) -> String {
        self.disk.run(line)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn sync_folder(folder: &Path) {
    File::open(folder).unwrap().sync_all().unwrap();
}

#[test]
fn unsynced_bytes_and_names_go_and_synced_ones_stay() {
    let Some(mount) = Mount::new() else { return };
    let mut kept = File::create(mount.path("kept")).unwrap();
    kept.write_all(b"synced").unwrap();
    kept.sync_data().unwrap();
    sync_folder(&mount.folder);
    kept.write_all(b" and not").unwrap();
    let lost = File::create(mount.path("lost")).unwrap();
    lost.write_all_at(&[7; 100_000], 5).unwrap();
    lost.sync_all().unwrap();
    assert_eq!(fs::read(mount.path("kept")).unwrap(), b"synced and not");
    assert_eq!(mount.names(), ["kept", "lost"]);
    drop((kept, lost));
    assert_eq!(mount.run("cut"), "ok bytes=8 names=1");
    assert_eq!(mount.names(), ["kept"]);
    assert_eq!(fs::read(mount.path("kept")).unwrap(), b"synced");
}

#[test]
fn a_reader_sees_the_cut_through_an_open_file() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path("a");
    let mut file = OpenOptions::new().create_new(true).read(true).append(true).open(&path).unwrap();
    file.write_all(b"12345").unwrap();
    sync_folder(&mount.folder);
    mount.run("cut");
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
fn folders_are_made_listed_renamed_and_removed() {
    let Some(mount) = Mount::new() else { return };
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    fs::write(mount.path("a/b/c/d"), b"1").unwrap();
    fs::rename(mount.path("a/b/c/d"), mount.path("a/e")).unwrap();
    assert_eq!(fs::read(mount.path("a/e")).unwrap(), b"1");
    assert!(fs::remove_dir(mount.path("a")).is_err());
    fs::remove_dir_all(mount.path("a")).unwrap();
    assert!(mount.names().is_empty());
    for number in 0..2_000 {
        fs::write(mount.path(&number.to_string()), b"").unwrap();
    }
    assert_eq!(mount.names().len(), 2_000);
}

#[test]
fn faults_reach_the_caller_and_a_failed_fsync_is_not_made_good() {
    let Some(mount) = Mount::new() else { return };
    let file = File::create(mount.path("a")).unwrap();
    sync_folder(&mount.folder);
    file.write_all_at(b"12", 0).unwrap();
    mount.run("fail fsync EIO 1");
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5), "EIO");
    file.sync_data().unwrap();
    drop(file);
    mount.run("cut");
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"\0\0", "the second fsync kept the length alone");
    mount.run("limit 10");
    let full = fs::write(mount.path("a"), [0; 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    mount.run("clear");
    mount.run("read-only");
    assert_eq!(fs::write(mount.path("b"), b"").unwrap_err().raw_os_error(), Some(30), "EROFS");
}

#[test]
fn a_slow_fsync_holds_up_nobody_else() {
    let Some(mount) = Mount::new() else { return };
    let slow = File::create(mount.path("slow")).unwrap();
    mount.run("delay fsync 3600s");
    let slow = std::thread::spawn(move || slow.sync_data());
    fs::write(mount.path("quick"), b"1").unwrap();
    assert_eq!(fs::read(mount.path("quick")).unwrap(), b"1");
    assert!(!slow.is_finished());
    mount.run("clear");
    slow.join().unwrap().unwrap();
}
