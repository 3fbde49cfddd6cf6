//! File systems to go wrong on, mounted where the relay writes: the one that forgets, as a process beside
//! (tests/faultfs) that is told by lines what to do, and one that is small.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context;

/// A mounted file system. Dropping it unmounts it, once nobody has a file of it open.
#[derive(Debug)]
pub struct FaultFs {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl FaultFs {
    /// Mounts it on an empty folder.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be started or mounted.
    pub fn mount(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("the file system `{}` could not be started", program.display()))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        let mut mounted = Self { child, input, output };
        let line = mounted.line()?;
        anyhow::ensure!(line == "mounted", "the file system could not be mounted on {}", folder.display());
        Ok(mounted)
    }

    /// Sends a line, such as `cut`, and returns what it is answered with behind `ok`.
    ///
    /// # Errors
    ///
    /// A sentence if it is not understood, or the file system is gone.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<String> {
        let input = self.input.as_mut().expect("it is there until this is dropped");
        writeln!(input, "{line}").context("the file system is gone")?;
        let answer = self.line()?;
        let said = answer.strip_prefix("ok").with_context(|| format!("`{line}` was answered `{answer}`"))?;
        Ok(said.trim_start().to_owned())
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("the file system does not answer")?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        self.input.take();
        // What it had to say of a failed unmount is on standard error.
        let _ = self.child.wait();
    }
}

/// A file system in memory that is soon full. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes on an empty folder.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be mounted: it needs root.
    pub fn mount(bytes: u64, folder: &Path) -> anyhow::Result<Self> {
        let options = format!("size={bytes}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(folder).status();
        let is_mounted = mounted.context("there is no `mount`")?.success();
        anyhow::ensure!(
            is_mounted,
            "a small disk could not be mounted on {}: that needs root",
            folder.display()
        );
        Ok(Self { folder: folder.to_owned() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What it had to say is on standard error.
        let _ = Command::new("umount").arg(&self.folder).status();
    }
}
