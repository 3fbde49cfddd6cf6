//! What both drivers promise beyond moving bytes.

use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

const CLIENTS: usize = 4;
const BUFFERS_BYTES: usize = 32 * 1024;

/// Counts turns, and remembers in which one each connection was read last.
#[derive(Default)]
struct Turns {
    turn: usize,
    read_in: Vec<usize>,
    now: Option<Instant>,
    read_at: Vec<Option<Instant>>,
}

impl Handler for Turns {
    fn woke(&mut self, now: Instant) {
        self.turn += 1;
        self.now = Some(now);
    }
    fn accepted(&mut self, socket: OwnedFd, _: usize) -> Option<OwnedFd> {
        Some(socket)
    }
    fn opened(&mut self, key: Key, _: usize) {
        self.read_in.resize(self.read_in.len().max(key as usize + 1), self.turn);
        self.read_at.resize(self.read_in.len(), self.now);
    }
    fn data(&mut self, key: Key, _: &[u8]) {
        self.read_in[key as usize] = self.turn;
        self.read_at[key as usize] = self.now;
    }
    fn ended(&mut self, key: Key, _: End) {
        panic!("connection {key} ended");
    }
    fn sent(&mut self, _: Key, _: usize) {}
    fn accept_failed(&mut self, error: &io::Error) {
        panic!("{error}");
    }
}

/// Fills a connection until nothing more goes in, which is more than the buffers of the driver hold.
fn fill(mut client: &TcpStream) {
    loop {
        match client.write(&[b'x'; 64 * 1024]) {
            Ok(_) => (),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has every driver read clients that always have more than it has buffers for.
fn read_from_busy_clients(check: impl Fn(DriverKind, &Turns, Reaped)) {
    let uring = [true, false].map(|incremental| DriverKind::Uring { incremental });
    for kind in [DriverKind::Epoll].into_iter().chain(uring.into_iter().filter(|_| probe::probe().is_ok())) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("it is a socket");
        let address = listener.local_addr().expect("it is bound");
        let returns: Arc<[Returns]> = Arc::new([Returns::new().expect("an event descriptor")]);
        let listeners = vec![Listener { socket: listener.into(), address: 0 }];
        let mut driver = Driver::new(kind, listeners, returns, 0, BUFFERS_BYTES).expect("a driver");
        let clients: Vec<TcpStream> =
            (0..CLIENTS).map(|_| TcpStream::connect(address).expect("it listens")).collect();
        clients.iter().for_each(|client| client.set_nonblocking(true).expect("it is a socket"));
        let mut turns = Turns::default();
        while turns.read_in.len() < CLIENTS {
            driver.wait(None, Duration::ZERO, &mut turns).expect("it waits");
        }
        for _ in 0..50 * CLIENTS {
            clients.iter().for_each(fill);
            let reaped = driver.wait(None, Duration::ZERO, &mut turns).expect("it waits");
            check(kind, &turns, reaped);
        }
    }
}

#[test]
fn connections_that_each_could_fill_all_buffers_are_read_in_turn() {
    read_from_busy_clients(|kind, turns, _| {
        let waited = turns.read_in.iter().map(|turn| turns.turn - turn).max();
        assert!(waited <= Some(2 * CLIENTS), "{kind:?}: a connection was not read for {waited:?} turns");
    });
}

/// A drain closed connections as quiet that it had not looked at for a while, with all that they had sent unread.
#[test]
fn what_waits_to_be_read_is_never_taken_for_quiet() {
    read_from_busy_clients(|kind, turns, reaped| {
        let least = turns.read_at.iter().flatten().min().copied();
        assert!(reaped.caught_up <= least, "{kind:?}: a connection has more to read than it was said");
    });
}
