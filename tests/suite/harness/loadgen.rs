//! The other commands of `loadgen`: `run`, which verifies every event by itself, and `send`.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Io, Process, beside_relay};

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    pub report: Value,
    pub text: String,
    pub code: Option<i32>,
}

impl Run {
    /// Asserts that every check of the run held.
    pub fn assert_good(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{}", self.text);
        self
    }

    /// A number in the report, by its path.
    pub fn number(&self, path: &str) -> u64 {
        let value = self.report.pointer(path).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {path} in {}", self.report))
    }
}

/// `loadgen run` with these arguments, and these of the relay.
pub fn run(io: Io, arguments: &str, relay: &str) -> Run {
    let mut command = Command::new(beside_relay("loadgen"));
    command.env_clear().env("RUST_BACKTRACE", "1").args(["run", "--json", "-"]);
    command.args(arguments.split_whitespace()).arg("--");
    command.args(io.flag().split_whitespace()).args(relay.split_whitespace());
    let mut process = Process::start(command.stdout(Stdio::piped()));
    let json = std::io::read_to_string(process.stdout()).unwrap();
    let ended = process.wait();
    let report = serde_json::from_str(&json).unwrap_or(Value::Null);
    Run { report, text: ended.log.join("\n"), code: ended.code }
}

/// `loadgen send` to this address, running.
pub fn send(to: SocketAddr, arguments: &str) -> Process {
    let mut command = Command::new(beside_relay("loadgen"));
    Process::start(command.arg("send").arg("--to").arg(to.to_string()).args(arguments.split_whitespace()))
}
