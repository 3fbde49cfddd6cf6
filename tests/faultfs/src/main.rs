//! `faultfs FOLDER`: mounts a disk that forgets there, says `mounted`, and does what lines on standard input say
//! (see `faultfs::command`), until their end. Exit codes: 0 unmounted, 2 could not be mounted.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use faultfs::mount::{Shared, mount};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faultfs: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).context("say where to mount: faultfs FOLDER")?;
    let disk = Shared::default();
    let session = mount(&disk, Path::new(&folder))
        .with_context(|| format!("cannot be mounted on {}: it needs root and /dev/fuse", folder.display()))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "mounted")?;
    for line in std::io::stdin().lock().lines() {
        let answer = disk.run(&line?);
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    session.umount_and_join().context("cannot be unmounted")
}
