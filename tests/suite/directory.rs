//! The first minute: lines in, files out.

use std::path::Path;

use super::harness::{Files, Io, Process, Relay, under_both_drivers, wait_for};

under_both_drivers!(two_lines_appear_in_a_file, a_relay_without_a_destination_writes_below_standpipe_data);

const LINES: &[u8] = b"{\"a\":1}\n{\"a\":2}\n";

fn two_lines_appear_in_a_file(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("--destination directory:{}", root.path().display()));
    relay.send(b"clicks {\"a\":1}\nclicks {\"a\":2}\n");
    let files = wait_for("both lines are in files", || {
        let files = Files::below(root.path());
        (files.of_stream("clicks") == LINES).then_some(files)
    });
    files.paths().into_iter().for_each(assert_layout);
    let metrics = relay.until_settled(2);
    assert_eq!(metrics.delivered("clicks"), 2);
    assert_eq!(metrics.sum("standpipe_payload_bytes_delivered_total", &[]), LINES.len() as u64);
    relay.terminate().assert_code(0);
    assert_eq!(Files::below(root.path()).of_stream("clicks"), LINES);
}

/// `clicks/YYYY/MM/DD/HH/clicks-1-YYYY-MM-DD-HH-MM-SS-INSTANCE-SEQ`
fn assert_layout(path: &Path) {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
    let [stream, year, month, day, hour, file] = parts[..] else { panic!("{path:?}") };
    let is_number =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    assert_eq!(stream, "clicks");
    assert!(is_number(year, 4) && [month, day, hour].iter().all(|part| is_number(part, 2)), "{path:?}");
    let rest = file.strip_prefix(&format!("clicks-1-{year}-{month}-{day}-{hour}-")).unwrap();
    let [minute, second, instance, sequence] = rest.split('-').collect::<Vec<_>>()[..] else {
        panic!("{path:?}")
    };
    assert!(is_number(minute, 2) && is_number(second, 2) && is_number(sequence, 6), "{path:?}");
    assert!(!instance.is_empty(), "{path:?}");
}

fn a_relay_without_a_destination_writes_below_standpipe_data(io: Io) {
    let home = tempfile::tempdir().unwrap();
    let mut command = Relay::command(io.flag());
    let relay = Relay::ready(Process::start(command.current_dir(home.path())));
    relay.send(b"clicks {\"a\":1}\nclicks {\"a\":2}\n");
    relay.until_settled(2);
    assert_eq!(Files::below(&home.path().join("standpipe-data")).of_stream("clicks"), LINES);
}
