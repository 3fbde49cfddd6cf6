//! The values that are one of a few: addresses, destinations, drivers, policies. Each prints as it is written
//! in the configuration.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::errors::did_you_mean;

/// The longest path of a Unix socket, in bytes: `sun_path` has 108 with its NUL (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// An address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// IPv4 or IPv6, with a port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a Unix stream socket, at most 107 bytes.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("the path of the socket is missing; write \"unix:PATH\"".into()),
            Some(path) if path.len() > UNIX_PATH_BYTES_MAX => {
                Err(format!("the path of a Unix socket has at most {UNIX_PATH_BYTES_MAX} bytes"))
            }
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "not an address; write IP:PORT, such as \"0.0.0.0:15555\" or \"[::]:15555\", or \
                 \"unix:PATH\""
                    .into()
            }),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where calls go, as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationChoice {
    /// Files below this path, laid out as Firehose lays out S3.
    Directory(PathBuf),
    /// Amazon Data Firehose.
    Firehose,
    /// Another relay, or a fleet of them, at `HOST:PORT`.
    Relay(String),
    /// Accepts and forgets, for measuring.
    Null,
}

impl FromStr for DestinationChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, argument) = match text.split_once(':') {
            Some((kind, argument)) => (kind, Some(argument)),
            None => (text, None),
        };
        match (kind, argument) {
            ("directory", Some(path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            ("directory", _) => Err("the path is missing; write \"directory:PATH\"".into()),
            ("firehose", None) => Ok(Self::Firehose),
            ("null", None) => Ok(Self::Null),
            ("relay", Some(address)) if is_host_and_port(address) => Ok(Self::Relay(address.to_owned())),
            ("relay", _) => Err("the other relay's address is missing; write \"relay:HOST:PORT\"".into()),
            ("kinesis", _) => {
                Err("the destination \"kinesis\" does not exist yet; write \"directory:PATH\", \
                                   \"firehose\", \"relay:HOST:PORT\" or \"null\""
                    .into())
            }
            ("firehose" | "null", Some(_)) => {
                Err(format!("\"{kind}\" takes nothing behind it; write \"{kind}\""))
            }
            _ => Err(format!(
                "not a destination; write \"directory:PATH\", \"firehose\", \"relay:HOST:PORT\" or \"null\"{}",
                did_you_mean(kind, ["directory", "firehose", "relay", "null"], '"')
            )),
        }
    }
}

impl fmt::Display for DestinationChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "directory:{}", Path::display(path)),
            Self::Firehose => f.write_str("firehose"),
            Self::Relay(address) => write!(f, "relay:{address}"),
            Self::Null => f.write_str("null"),
        }
    }
}

/// Whether it is a name or an address with a port; the name is resolved when it is connected to.
fn is_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Which driver reads the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where the system allows it, else epoll, with a warning that says why.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// epoll.
    Epoll,
}

impl IoChoice {
    /// All of them, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 3] = [Self::Auto, Self::Uring, Self::Epoll];
    /// What they are called in the configuration.
    pub const NAMES: [&str; 3] = ["auto", "uring", "epoll"];
}

impl fmt::Display for IoChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

/// What happens to an event whose stream holds all that it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// The connection that brought it is paused, as a whole, and no other.
    Wait,
    /// The event is dropped and counted.
    Drop,
}

impl OnFull {
    /// All of them, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 2] = [Self::Wait, Self::Drop];
    /// What they are called in the configuration.
    pub const NAMES: [&str; 2] = ["wait", "drop"];
}

impl fmt::Display for OnFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

/// When a sync is answered: what counts as safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncAt {
    /// Accepted by the destination.
    Delivered,
    /// That, or written to the spool of this host and synced.
    Stored,
}

impl SyncAt {
    /// All of them, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 2] = [Self::Delivered, Self::Stored];
    /// What they are called in the configuration.
    pub const NAMES: [&str; 2] = ["delivered", "stored"];
}

/// What goes to the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolMode {
    /// What there is no memory for: a stream near its share writes its oldest waiting batches.
    Overflow,
    /// Every batch, when it is sealed.
    Always,
}

impl SpoolMode {
    /// All of them, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 2] = [Self::Overflow, Self::Always];
    /// What they are called in the configuration.
    pub const NAMES: [&str; 2] = ["overflow", "always"];
}

impl fmt::Display for SpoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

/// Who computes the SHA-256 of a call's body, which its signature needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyHash {
    /// Large bodies that are ready together are hashed together, where the processor can.
    Grouped,
    /// The SDK, one body at a time.
    Standard,
}

impl BodyHash {
    /// All of them, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 2] = [Self::Grouped, Self::Standard];
    /// What they are called in the configuration.
    pub const NAMES: [&str; 2] = ["grouped", "standard"];
}

/// How events are packed into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Many events a record, or one.
    pub mode: PackingMode,
    /// The most events a record; `u32::MAX`: no limit.
    pub record_events_max: u32,
    /// The most bytes a record with more than one event, their LFs included; 1 to 1,024,000.
    pub record_bytes_max: u32,
}

impl Packing {
    /// The most bytes that any record may have, before base64: Firehose's own limit of 1,000 KiB.
    pub const RECORD_BYTES_LIMIT: u32 = 1_024_000;
}

/// Whether a record takes many events or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackingMode {
    /// As many as the limits allow.
    Full,
    /// One event a record.
    Single,
}

impl PackingMode {
    /// All of them, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 2] = [Self::Full, Self::Single];
    /// What they are called in the configuration.
    pub const NAMES: [&str; 2] = ["full", "single"];
}

impl fmt::Display for PackingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}
