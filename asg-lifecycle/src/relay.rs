//! The relay on this instance, by its admin port: told to drain, and watched until it is gone.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// How often the relay is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// As much of an answer as is read: its first line.
const ANSWER_BYTES_MAX: u64 = 512;

/// Tells the relay to drain and waits until it is gone, however long that takes: nobody has its admin port any more, or
/// a supervisor has started another one, which is ready. A relay that does not answer is asked again.
pub async fn drain(admin: SocketAddr) {
    let mut is_told = false;
    loop {
        let (method, path) = if is_told { ("GET", "/readyz") } else { ("POST", "/drain") };
        match timeout(ANSWER_MAX, ask(admin, method, path)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                info!("no relay serves {admin} {}", if is_told { "any more" } else { "at all" });
                return;
            }
            Ok(Ok(answer)) if answer.contains(" 2") && is_told => {
                info!("the relay at {admin} is another one by now: the one that was told is gone");
                return;
            }
            Ok(Ok(answer)) if answer.contains(" 2") => {
                info!("the relay was told to drain");
                is_told = true;
            }
            // While it drains it is not ready.
            Ok(Ok(answer)) if answer.contains(" 503") && is_told => (),
            // Between a drain's end and the end of the process connections may break.
            Ok(Ok(answer)) => {
                warn!("the relay at {admin} answers {method} {path} with {:?}", answer.trim_end());
            }
            Ok(Err(error)) => warn!("the relay at {admin} cannot be asked: {error}"),
            Err(_) => warn!("the relay at {admin} has not answered for {ANSWER_MAX:?}"),
        }
        sleep(ASK_INTERVAL).await;
    }
}

/// The status line of the answer.
async fn ask(admin: SocketAddr, method: &str, path: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect(admin).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    connection.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}
