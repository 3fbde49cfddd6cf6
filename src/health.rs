//! `standpipe health`: asks a relay on this host whether it lives or is ready, and says so by an exit code. It is
//! for container images and scripts that have no HTTP client; load balancers ask `/healthz` themselves.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// The longest that each step of the question may take: less than the time-outs of the usual health checks.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// What is read of an answer: more than the head and the word of any.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Asks `/healthz`, or `/readyz` with `ready`, at a relay's admin address. An unspecified address (`0.0.0.0`,
/// `::`) is asked over loopback.
///
/// # Errors
///
/// A sentence, where nobody answers within three seconds or the answer is not 200.
pub fn ask(admin: SocketAddr, ready: bool) -> Result<(), String> {
    let (address, path) = (reachable(admin), if ready { "/readyz" } else { "/healthz" });
    let answer = get(address, path).map_err(|error| {
        format!("no relay answers at http://{address}{path}: {error}; --admin says where")
    })?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    match status {
        "200" => Ok(()),
        _ => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
            Err(format!("http://{address}{path} answers {status}: {body}"))
        }
    }
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect_timeout(&address, STEP_TIMEOUT)?;
    connection.set_read_timeout(Some(STEP_TIMEOUT))?;
    connection.set_write_timeout(Some(STEP_TIMEOUT))?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    connection.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The address under which this host reaches a listener.
pub fn reachable(admin: SocketAddr) -> SocketAddr {
    let loopback: IpAddr =
        if admin.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    if admin.ip().is_unspecified() { SocketAddr::new(loopback, admin.port()) } else { admin }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_asked_over_loopback() {
        let ask = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(ask("0.0.0.0:9155"), "127.0.0.1:9155");
        assert_eq!(ask("[::]:9155"), "[::1]:9155");
        assert_eq!(ask("192.0.2.1:9155"), "192.0.2.1:9155");
    }
}
