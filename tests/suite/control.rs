//! Control frames: answered where a client sends one, never seen where it sends none.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::harness::{Io, Relay, under_both_drivers};

under_both_drivers!(
    a_ping_is_answered_and_so_is_a_hello,
    an_unknown_verb_is_answered_counted_and_survived,
    a_client_that_sends_no_control_frame_is_never_written_to,
    answers_that_nobody_reads_stop_the_reading_and_no_other_connection,
    a_half_closed_connection_still_gets_its_answers,
);

fn read_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

fn a_ping_is_answered_and_so_is_a_hello(io: Io) {
    let relay = Relay::start(io, "--destination null");
    let mut connection = relay.connect();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    connection.write_all(b"!ping\n").unwrap();
    assert_eq!(read_line(&mut answers), "!pong\n");
    connection.write_all(b"!hello\nclicks 1\n!pi").unwrap();
    assert!(read_line(&mut answers).starts_with("!hello sync_at="));
    connection.write_all(b"ng\n!ping\n").unwrap();
    assert_eq!(read_line(&mut answers) + &read_line(&mut answers), "!pong\n!pong\n");
    let metrics = relay.until_settled(1);
    assert_eq!(metrics.total("standpipe_frames_rejected_total"), 0);
}

fn an_unknown_verb_is_answered_counted_and_survived(io: Io) {
    let relay = Relay::start(io, "--destination null");
    let mut connection = relay.connect();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    for (number, control) in
        [&b"!frobnicate now\n"[..], b"!\n", b"!\xff\0\n", b"!PING\n", b"! ping\n"].iter().enumerate()
    {
        connection.write_all(control).unwrap();
        let answer = read_line(&mut answers);
        assert!(answer.starts_with("!error ") && answer.is_ascii(), "{answer:?}");
        connection.write_all(b"clicks 1\n!ping\n").unwrap();
        assert_eq!(read_line(&mut answers), "!pong\n");
        let metrics = relay.until_settled(number as u64 + 1);
        assert_eq!(metrics.rejected("bad_control"), number as u64 + 1);
    }
}

fn a_client_that_sends_no_control_frame_is_never_written_to(io: Io) {
    let relay = Relay::start(io, "--destination null --max-frame-bytes 10");
    let mut connection = relay.connect();
    connection.write_all(b"clicks 1\n\nword\n.. x\nclicks \nclicks 01234567890\n x\nclicks half").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut answers = Vec::new();
    connection.read_to_end(&mut answers).unwrap();
    assert_eq!(answers, b"");
    let metrics = relay.until_settled(1);
    assert_eq!(metrics.total("standpipe_frames_rejected_total"), 7);
}

fn answers_that_nobody_reads_stop_the_reading_and_no_other_connection(io: Io) {
    let relay = Relay::start(io, "--destination null");
    let mut deaf = relay.connect();
    deaf.set_nonblocking(true).unwrap();
    let pings = b"!ping\n".repeat(10_000);
    let mut sent = 0;
    // Written until the relay takes no more, which it says by counting the connection as paused.
    super::harness::wait_for("the deaf connection is paused", || {
        while let Ok(length) = deaf.write(&pings[sent % 6..]) {
            sent += length;
        }
        (relay.metrics().total("standpipe_paused_connections") == 1).then_some(())
    });
    relay.send(b"clicks 1\n");
    relay.until_settled(1);
    assert_eq!(relay.metrics().memory("events"), 0);
    deaf.set_nonblocking(false).unwrap();
    let mut reader = BufReader::new(deaf.try_clone().unwrap());
    for _ in 0..sent / 6 {
        assert_eq!(read_line(&mut reader), "!pong\n");
    }
    relay.until("it is read again", |metrics| metrics.total("standpipe_paused_connections") == 0);
}

fn a_half_closed_connection_still_gets_its_answers(io: Io) {
    let relay = Relay::start(io, "--destination null");
    for _ in 0..20 {
        let mut connection = relay.connect();
        connection.write_all(b"clicks 1\n!ping\n").unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let mut answers = String::new();
        connection.read_to_string(&mut answers).unwrap();
        assert_eq!(answers, "!pong\n");
    }
}
