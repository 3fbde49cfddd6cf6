//! `!sync` where it means stored: answered once an fsync covers what came before it and no sooner, on a disk that
//! forgets the rest when the relay is killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use rustix::process::Signal;

use super::harness::{Disk, Files, Io, Relay, under_both_drivers, wait_for};

under_both_drivers!(
    stored_is_answered_after_the_fsync_and_not_before,
    what_was_stored_outlives_a_kill_and_a_disk_that_forgets,
    a_sync_that_fails_is_answered_once_another_file_holds_it,
);

/// A connection that said hello.
struct Client {
    writer: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Client {
    fn connect(relay: &Relay) -> Self {
        let writer = relay.connect();
        let answers = BufReader::new(writer.try_clone().unwrap());
        let mut client = Self { writer, answers };
        assert_eq!(client.ask("!hello"), "!hello sync_at=stored");
        client
    }

    fn write(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.write(&format!("{line}\n"));
        self.answer()
    }
}

/// A relay whose endpoint refuses connections, and whose spool takes everything.
fn relay_on(io: Io, disk: &Disk) -> Relay {
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let destination = format!("--destination firehose --endpoint-url http://{endpoint}");
    Relay::start(io, &format!("{destination} {} --linger 50ms --drain-deadline 1s", spool(disk)))
}

fn spool(disk: &Disk) -> String {
    let spool = format!("--spool {} --spool-mode always --spool-free-floor 0", disk.path().display());
    format!("{spool} --sync-at stored")
}

fn stored_is_answered_after_the_fsync_and_not_before(io: Io) {
    let Some(mut disk) = Disk::mount() else { return };
    let relay = relay_on(io, &disk);
    let mut client = Client::connect(&relay);
    client.write("clicks first\n");
    assert_eq!(client.ask("!sync first"), "!synced first");
    assert_eq!(disk.stat("unsynced"), 0);
    disk.tell("delay fsync 3600s");
    client.write("clicks second\n!sync second\n");
    wait_for("it is written, and not synced", || (disk.stat("unsynced") > 0).then_some(()));
    // A ping overtakes syncs that wait: by then an answer would be here.
    assert_eq!(client.ask("!ping"), "!pong");
    disk.tell("clear");
    assert_eq!(client.answer(), "!synced second");
    assert_eq!(disk.stat("unsynced"), 0);
    relay.terminate().assert_code(0);
}

fn what_was_stored_outlives_a_kill_and_a_disk_that_forgets(io: Io) {
    let Some(mut disk) = Disk::mount() else { return };
    let relay = relay_on(io, &disk);
    let mut client = Client::connect(&relay);
    for round in 0..20 {
        for event in 0..100 {
            client.write(&format!("stream-{} {round} {event}\n", event % 3));
        }
        assert_eq!(client.ask(&format!("!sync {round}")), format!("!synced {round}"));
    }
    disk.tell("delay fsync 3600s");
    client.write("stream-0 never synced\n");
    wait_for("it is written, and not synced", || (disk.stat("unsynced") > 0).then_some(()));
    relay.signal(Signal::KILL);
    disk.tell("cut");
    disk.tell("clear");
    relay.wait();
    let target = tempfile::tempdir().unwrap();
    let destination = format!("--destination directory:{}", target.path().display());
    let heir = Relay::start(io, &format!("{destination} {}", spool(&disk)));
    let is_delivered = |metrics: &super::harness::Metrics| {
        metrics.total("standpipe_events_recovered_total") == 2_000
            && metrics.total("standpipe_events_delivered_total") == 2_000
    };
    heir.until("all that was stored is delivered", is_delivered);
    heir.terminate().assert_code(0);
    let files = Files::below(target.path());
    let lines: BTreeSet<Vec<u8>> =
        (0..3).flat_map(|stream| files.lines_of(&format!("stream-{stream}"))).collect();
    let expected =
        (0..20).flat_map(|round| (0..100).map(move |event| format!("{round} {event}\n").into_bytes()));
    assert_eq!(lines, expected.collect());
}

fn a_sync_that_fails_is_answered_once_another_file_holds_it(io: Io) {
    let Some(mut disk) = Disk::mount() else { return };
    let relay = relay_on(io, &disk);
    let mut client = Client::connect(&relay);
    client.write("clicks first\n");
    assert_eq!(client.ask("!sync first"), "!synced first");
    disk.tell("fail fsync EIO 1");
    client.write("clicks second\n");
    assert_eq!(client.ask("!sync second"), "!synced second");
    assert_eq!(disk.stat("failures"), 1);
    relay.signal(Signal::KILL);
    disk.tell("cut");
    relay.wait();
    let heir = Relay::start(io, &format!("--destination null {}", spool(&disk)));
    // What the failed sync covered is on the disk no more; what stands in the file behind it is.
    heir.until("both are there", |metrics| metrics.total("standpipe_events_recovered_total") == 2);
    heir.terminate().assert_code(0);
}
