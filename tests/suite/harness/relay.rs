//! The relay as a process: found by its start line, watched by its metrics, stopped by a signal.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use rustix::process::Signal;

use super::http::{Answer, request, request_with};
use super::{Ended, Io, Metrics, PATIENCE, Process, assert_identity, wait_for};

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    process: Process,
    listen: String,
    admin: SocketAddr,
}

impl Relay {
    /// Starts a relay with these arguments (separated by blanks) and waits until it is ready.
    pub fn start(io: Io, arguments: &str) -> Self {
        Self::ready(Process::start(&mut Self::command(&format!("{} {arguments}", io.flag()))))
    }

    /// The command line of a relay on free ports, with nothing of this environment but credentials that mean nothing.
    pub fn command(arguments: &str) -> Command {
        let mut command = Self::bare_command();
        if !arguments.contains("--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(["--admin", "127.0.0.1:0"]).args(arguments.split_whitespace());
        command
    }

    /// The program with an environment of its own and no arguments.
    pub fn bare_command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
        command.env_clear().env("RUST_BACKTRACE", "1").env("HOME", "/nonexistent").envs([
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        command
    }

    /// Waits for a relay that was started to be ready.
    pub fn ready(process: Process) -> Self {
        let Some((listen, admin)) = process.wait_for_line(addresses) else {
            panic!("the relay did not start:\n{}", process.log().join("\n"));
        };
        Self { process, listen, admin }
    }

    /// Its first TCP address.
    pub fn address(&self) -> SocketAddr {
        let mut addresses = self.listen.split(',');
        addresses.find_map(|address| address.parse().ok()).unwrap()
    }

    /// Everything that it listens on, as its start line has it.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A new connection, which gives up where the relay takes or gives nothing for long.
    pub fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(self.address()).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.set_write_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    /// Sends bytes over a connection of their own, to their end.
    pub fn send(&self, bytes: &[u8]) {
        let mut connection = self.connect();
        connection.write_all(bytes).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
    }

    pub fn get(&self, path: &str) -> Answer {
        request(self.admin, "GET", path, "").unwrap()
    }

    /// A get with a header of its own.
    pub fn get_with(&self, path: &str, header: &str) -> Answer {
        request_with(self.admin, "GET", path, header, "").unwrap()
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        request(self.admin, "POST", path, body).unwrap()
    }

    /// A post with a header of its own.
    pub fn post_with(&self, path: &str, header: &str, body: &str) -> Answer {
        request_with(self.admin, "POST", path, header, body).unwrap()
    }

    pub fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics::parse(&answer.body)
    }

    /// Scrapes until `condition` holds.
    pub fn until(&self, what: &str, condition: impl Fn(&Metrics) -> bool) -> Metrics {
        let deadline = std::time::Instant::now() + PATIENCE;
        wait_for(what, || {
            let metrics = self.metrics();
            let holds = condition(&metrics);
            if !holds && std::time::Instant::now() > deadline - PATIENCE / 20 {
                let log = self.process.log().join("\n");
                panic!("waited in vain until {what}:\n{}\n{log}", self.get("/metrics").body);
            }
            holds.then_some(metrics)
        })
    }

    /// Waits until so many events were received and none is held, and asserts the identity.
    pub fn until_settled(&self, received: u64) -> Metrics {
        let what = format!("{received} events came and went");
        let metrics = self.until(&what, |metrics| {
            metrics.total("standpipe_events_received_total") >= received
                && metrics.total("standpipe_events_held") == 0
        });
        assert_identity(&metrics);
        assert_eq!(metrics.total("standpipe_events_received_total"), received);
        metrics
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the end. Whatever that was, the last lines of log must show that every event is accounted for.
    pub fn wait(self) -> Ended {
        let ended = self.process.wait();
        assert_eq!(ended.lines_with("THE SUM DOES NOT HOLD"), 0, "{}", ended.log.join("\n"));
        assert_eq!(ended.lines_with("panicked"), 0, "{}", ended.log.join("\n"));
        ended
    }
}

/// `listen=` and `admin=` of the start line, which is JSON.
fn addresses(line: &str) -> Option<(String, SocketAddr)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let message = line["fields"]["message"].as_str()?.strip_prefix("ready ")?;
    let value = |key: &str| message.split(' ').find_map(|word| word.strip_prefix(key));
    Some((value("listen=")?.to_owned(), value("admin=")?.parse().ok()?))
}
