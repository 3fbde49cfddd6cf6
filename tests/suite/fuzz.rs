//! Random bytes over sockets, in random pieces over several connections, against a model of the protocol that is
//! written here anew.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;

use super::harness::{Files, Io, Relay, seed, under_both_drivers};

under_both_drivers!(random_bytes_are_counted_as_the_model_counts_them);

const CONNECTIONS: usize = 8;
const BYTES_EACH: usize = 400_000;
const PAYLOAD_BYTES_MAX: usize = 300;
/// A line with the longest name and the longest payload, its LF included.
const LINE_BYTES_MAX: usize = 64 + 1 + PAYLOAD_BYTES_MAX + 1;

/// What the relay has to count.
#[derive(Debug, Default)]
struct Model {
    rejected: BTreeMap<&'static str, u64>,
    /// The payloads of each stream, each with its LF.
    streams: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Model {
    fn reject(&mut self, reason: &'static str) {
        *self.rejected.entry(reason).or_default() += 1;
    }

    fn connection(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|octet| *octet == b'\n') {
            match line {
                // Half a frame is too long once not even an LF could save it.
                [.., b'\n'] if line.len() > LINE_BYTES_MAX => self.reject("too_long"),
                [head @ .., b'\n'] => self.line(head),
                half if half.len() >= LINE_BYTES_MAX => self.reject("too_long"),
                _ => self.reject("truncated"),
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        if let [b'!', control @ ..] = line {
            return self.control(control);
        }
        let Some(space) = line.iter().position(|octet| *octet == b' ') else {
            return self.reject("no_space");
        };
        let (name, payload) = (&line[..space], &line[space + 1..]);
        if name.is_empty() || name.len() > 64 {
            return self.reject("bad_name");
        }
        match payload.len() {
            0 => return self.reject("empty_payload"),
            length if length > PAYLOAD_BYTES_MAX => return self.reject("too_long"),
            _ => {}
        }
        let is_legal = |octet: &u8| octet.is_ascii_alphanumeric() || b"_.-".contains(octet);
        if !name.iter().all(is_legal) || [&b"."[..], b"..", b"_other"].contains(&name) {
            return self.reject("bad_name");
        }
        let name = String::from_utf8(name.to_vec()).unwrap();
        self.streams.entry(name).or_default().push([payload, b"\n"].concat());
    }

    fn control(&mut self, control: &[u8]) {
        match control {
            b"ping" | b"hello" => {}
            _ => self.reject("bad_control"),
        }
    }
}

/// Lines that are nearly right, and bytes that are nothing.
fn garbage(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BYTES_EACH + 1000);
    while bytes.len() < BYTES_EACH {
        let payload = random.usize(0..PAYLOAD_BYTES_MAX + 20);
        match random.u8(..100) {
            0..60 => {
                let name =
                    random.choice(["a", "b.c", "-", "_", "..", "_other", "x y", "", "/", "\u{e9}"]).unwrap();
                bytes.extend(name.as_bytes());
                bytes.push(b' ');
                bytes.extend(
                    (0..payload).map(|_| random.u8(..)).map(|octet| if octet == b'\n' { 0 } else { octet }),
                );
                bytes.push(b'\n');
            }
            60..65 => bytes.extend(b"!ping\n"),
            65..70 => bytes.extend(b"!bad\n"),
            70..75 => bytes.extend([&[b'n'; 64][..], b" x\n"].concat()),
            75..80 => bytes.extend([&[b'n'; 65][..], b" x\n"].concat()),
            80..85 => bytes.extend(vec![b'w'; LINE_BYTES_MAX - 3 + random.usize(0..6)]),
            _ => bytes.extend((0..payload).map(|_| random.u8(..))),
        }
    }
    bytes
}

fn random_bytes_are_counted_as_the_model_counts_them(io: Io) {
    let mut random = fastrand::Rng::with_seed(seed());
    let root = tempfile::tempdir().unwrap();
    let arguments =
        format!("--destination directory:{} --max-frame-bytes {PAYLOAD_BYTES_MAX}", root.path().display());
    let relay = Relay::start(io, &arguments);
    let mut model = Model::default();
    let inputs: Vec<(Vec<u8>, fastrand::Rng)> =
        (0..CONNECTIONS).map(|_| (garbage(&mut random), random.fork())).collect();
    inputs.iter().for_each(|(bytes, _)| model.connection(bytes));
    std::thread::scope(|scope| {
        for (bytes, random) in &inputs {
            let relay = &relay;
            scope.spawn(move || feed(relay, bytes, random.clone()));
        }
    });
    let events: usize = model.streams.values().map(Vec::len).sum();
    let rejected: u64 = model.rejected.values().sum();
    let metrics = relay.until("every line is counted", |metrics| {
        let received = metrics.total("standpipe_events_received_total");
        received + metrics.total("standpipe_frames_rejected_total") >= events as u64 + rejected
            && metrics.total("standpipe_connections") == 0
            && metrics.total("standpipe_events_held") == 0
    });
    for (reason, count) in &model.rejected {
        assert_eq!(metrics.rejected(reason), *count, "{reason}");
    }
    assert_eq!(metrics.total("standpipe_frames_rejected_total"), rejected);
    relay.until_settled(events as u64);
    assert_files(&Files::below(root.path()), model);
    relay.terminate().assert_code(0);
}

/// Connections may deliver in any order, so the lines are compared sorted.
fn assert_files(files: &Files, model: Model) {
    let sorted = |mut lines: Vec<Vec<u8>>| {
        lines.sort_unstable();
        lines
    };
    assert_eq!(files.streams(), model.streams.keys().cloned().collect());
    for (stream, expected) in model.streams {
        assert!(sorted(files.lines_of(&stream)) == sorted(expected), "the lines of {stream} differ");
    }
}

/// Writes in pieces of random length while the answers are read.
fn feed(relay: &Relay, mut bytes: &[u8], mut random: fastrand::Rng) {
    let mut connection = relay.connect();
    connection.set_nodelay(true).unwrap();
    let mut reader = connection.try_clone().unwrap();
    let answers = std::thread::spawn(move || {
        let mut answers = Vec::new();
        reader.read_to_end(&mut answers).unwrap();
        answers
    });
    while !bytes.is_empty() {
        let most = if random.u8(..4) == 0 { 10 } else { 20_000 };
        let (piece, rest) = bytes.split_at(random.usize(1..=most).min(bytes.len()));
        connection.write_all(piece).unwrap();
        bytes = rest;
    }
    connection.shutdown(Shutdown::Write).unwrap();
    let answers = answers.join().unwrap();
    let is_answer =
        |line: &[u8]| line == b"!pong\n" || (line.starts_with(b"!error ") && line.ends_with(b"\n"));
    assert!(answers.split_inclusive(|octet| *octet == b'\n').all(is_answer), "every answer is one");
}
