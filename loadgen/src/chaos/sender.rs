//! `standpipe send` as a client: a process that is fed lines and ends once all of them are synced. It holds what is
//! not, whatever becomes of the relay and of the relay's disk.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::client::Told;
use super::world::World;
use crate::event::{Builder, Event, StreamSeed};

/// Lines at a time, and the pause behind them.
const LINES: u64 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks whether it has ended.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub struct Sender<'a> {
    world: &'a World,
    number: u32,
    builder: &'a Builder,
    child: Child,
    input: ChildStdin,
}

impl<'a> Sender<'a> {
    /// Starts the process; `number` stands in its events.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be started.
    pub fn start(
        program: &Path,
        world: &'a World,
        number: u32,
        builder: &'a Builder,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .args(["send", &world.streams[0], "--to", &world.address().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("`standpipe send` could not be started")?;
        let input = child.stdin.take().expect("it was asked for");
        Ok(Self { world, number, builder, child, input })
    }

    /// Feeds it until the world says that it is enough, and waits for its end.
    pub fn run(mut self) -> Told {
        let mut told = Told { sent: vec![0; self.world.streams.len()], ..Told::default() };
        while !self.world.is_enough() && !self.world.is_over() {
            let lines = self.lines(told.sent[0]);
            if self.input.write_all(&lines).is_err() {
                told.wrong.push("`standpipe send` ended before its input did".to_owned());
                break;
            }
            told.sent[0] += LINES;
            std::thread::sleep(PAUSE);
        }
        drop(self.input);
        while !self.world.is_over() {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => {
                    told.synced = told.sent[0];
                    // How often it sent something again it keeps to itself: all of it, once for each life, at most.
                    told.resent = told.sent[0] * RESENT_MAX;
                    return told;
                }
                Ok(Some(status)) => {
                    told.wrong.push(format!("`standpipe send` ended with {status}"));
                    return told;
                }
                _ => std::thread::sleep(LOOK_PAUSE),
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        told.wrong.push("`standpipe send` did not end in time".to_owned());
        told
    }

    fn lines(&self, first: u64) -> Vec<u8> {
        let name = &self.world.streams[0];
        let mut lines = Vec::new();
        for sequence in first..first + LINES {
            let event = Event { connection: self.number, sequence, planned_ns: 0, check: 0 };
            self.builder.append(&mut lines, StreamSeed::new(name), sequence, &event);
            lines.push(b'\n');
        }
        lines
    }
}

/// How many times everything may be sent again: the bound on duplicates is loose where this client takes part.
const RESENT_MAX: u64 = 1_000;
