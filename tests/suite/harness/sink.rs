//! `loadgen sink` as a process: a Firehose-compatible endpoint that keeps a ledger and fails on purpose.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::http::request;
use super::{Process, beside_relay};

/// A running sink.
#[derive(Debug)]
pub struct Sink {
    _process: Process,
    address: SocketAddr,
}

impl Sink {
    /// Starts a sink with these arguments, separated by blanks.
    pub fn start(arguments: &str) -> Self {
        let mut command = Command::new(beside_relay("loadgen"));
        command.arg("sink").args(arguments.split_whitespace()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let mut line = String::new();
        BufReader::new(process.stdout()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("the sink did not start: {:?}", process.log()));
        Self { _process: process, address }
    }

    /// The relay's arguments that lead here.
    pub fn destination(&self) -> String {
        format!("--destination firehose --endpoint-url http://{}", self.address)
    }

    /// Its books.
    pub fn ledger(&self) -> Value {
        request(self.address, "GET", "/ledger", "").unwrap().json()
    }

    /// Changes what it does wrong; `{}` is nothing.
    pub fn set_faults(&self, json: &str) {
        let answer = request(self.address, "POST", "/faults", json).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}
