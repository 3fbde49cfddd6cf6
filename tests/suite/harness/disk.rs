//! A disk that fails when it is told to: the test file system (tests/faultfs), mounted by a process beside.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::beside_relay;

/// A mounted disk; dropping it unmounts it.
#[derive(Debug)]
pub struct Disk {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl Disk {
    /// Mounts a disk, unless nothing can be mounted here, which is said loudly.
    pub fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(beside_relay("faultfs"));
        command.arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut disk = Self { child, input, output, folder };
        if disk.line() == "mounted" {
            return Some(disk);
        }
        // Written past the test runner, which would show it only where a test fails.
        let text = b"\n*** FULL AND FAILING DISKS ARE NOT TESTED: nothing can be mounted here ***\n\n";
        let _ = std::io::stderr().write_all(text);
        None
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Has it fail, or work again: see `faultfs::command`. Gives its answer.
    pub fn tell(&mut self, line: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
        let answer = self.line();
        assert!(answer.starts_with("ok"), "{line}: {answer}");
        answer
    }

    /// One of the numbers that `stats` tells.
    pub fn stat(&mut self, name: &str) -> u64 {
        let answer = self.tell("stats");
        let mut pairs = answer.split_whitespace().filter_map(|word| word.split_once('='));
        pairs.find(|(key, _)| *key == name).unwrap().1.parse().unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.input.take();
        let _ = self.child.wait();
    }
}
