//! `loadgen send` as a process, to a plain listener.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn send(to: &str, flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(["send", "--json", "-", "--to", to]).args(flags.split_whitespace()).stdout(Stdio::piped());
    command
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_was_sent_is_written_as_json() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let child = send(&to, "--events 1000 --connections 2 --streams 3 --size 64").spawn().unwrap();
    let mut bytes = Vec::new();
    for _ in 0..2 {
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let sent = json(&output);
    assert_eq!((&sent["events_sent"], &sent["events_unsent"]), (&Value::from(1000), &Value::from(0)));
    assert_eq!(sent["line_bytes"], bytes.len());
    assert_eq!(sent["sent"], serde_json::json!([[167, 167, 166], [166, 167, 167]]));
    assert_eq!(sent["streams"][1]["stream"], "stream-1");
}

#[test]
fn a_peer_that_closes_gives_exit_code_1() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let child = send(&to, "--events 1M --connections 1").stderr(Stdio::piped()).spawn().unwrap();
    listener.accept().unwrap().0.read_exact(&mut [0; 10]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output)["connections_failed"], 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("connection 0 failed"));
}

#[test]
fn mistakes_are_told_and_give_exit_code_2() {
    for (flags, words) in [("--size 1", "from 57 to 1023999 bytes"), ("--size 9-8", "the smaller first")] {
        let output = send("127.0.0.1:1", flags).stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{text}");
    }
}
