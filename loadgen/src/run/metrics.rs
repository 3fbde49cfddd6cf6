//! The relay's metrics as numbers: the text format of Prometheus, read by its public description and not by
//! anything of the relay's.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;

/// One line of the exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name of the metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

/// The most bytes of metrics that are read: 10,000 streams with a dozen samples each.
const METRICS_BYTES_MAX: u64 = 64 << 20;
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

impl Metrics {
    /// Asks a relay for its metrics.
    ///
    /// # Errors
    ///
    /// A sentence if it does not answer, or not with metrics.
    pub fn scrape(admin: SocketAddr) -> anyhow::Result<Self> {
        let body =
            get(admin, "/metrics").with_context(|| format!("http://{admin}/metrics cannot be read"))?;
        Self::parse(&body)
    }

    /// Reads the text format.
    ///
    /// # Errors
    ///
    /// A sentence with the line that is not understood.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let sample = |line| sample(line).with_context(|| format!("`{line}` is no line of metrics"));
        lines.map(sample).collect::<anyhow::Result<_>>().map(Self)
    }

    /// The sum over all labels; 0 if there is no such metric.
    pub fn sum(&self, name: &str) -> u64 {
        self.of(name).map(|sample| sample.value as u64).sum()
    }

    /// The sum for each value of a label.
    pub fn sum_by(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for sample in self.of(name) {
            let value = sample.labels.get(label).cloned().unwrap_or_default();
            *sums.entry(value).or_default() += sample.value as u64;
        }
        sums
    }

    fn of(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels)?;
    }
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Reads `name="value",…}`; what follows.
fn read_labels<'a>(mut text: &'a str, labels: &mut BTreeMap<String, String>) -> Option<&'a str> {
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some(rest);
        }
        let (name, quoted) = text.split_once("=\"")?;
        let (value, rest) = unquote(quoted)?;
        labels.insert(name.trim().to_owned(), value);
        text = rest;
    }
}

/// Reads up to the closing quote, undoing `\\`, `\"` and `\n`; what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            c => value.push(c),
        }
    }
    None
}

/// Whether a relay says that it is ready.
pub fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/readyz").is_ok()
}

/// A GET of HTTP/1.0, so that the body ends where the connection does.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect_timeout(&address, SCRAPE_TIMEOUT)?;
    connection.set_read_timeout(Some(SCRAPE_TIMEOUT))?;
    connection.set_write_timeout(Some(SCRAPE_TIMEOUT))?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    connection.take(METRICS_BYTES_MAX).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no body")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "the answer is {status}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_is_understood() {
        let text = "# HELP calls_total Calls, \"all\" of them.\n# TYPE calls_total counter\n\
                    calls_total{delivery_stream=\"a\",outcome=\"ok\"} 5\n\
                    calls_total{delivery_stream=\"a\",outcome=\"x\\\"y\\\\}\"} 2 1700000000\n\
                    calls_total{delivery_stream=\"b\",} 1\nup 1e3\nempty{} NaN\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("calls_total"), 8);
        assert_eq!(metrics.sum("up"), 1_000);
        assert_eq!(metrics.sum("down"), 0);
        let by_outcome = metrics.sum_by("calls_total", "outcome");
        assert_eq!((by_outcome["ok"], by_outcome["x\"y\\}"], by_outcome[""]), (5, 2, 1));
    }

    #[test]
    fn other_text_is_refused_with_its_line() {
        for text in ["<html>", "name{a=\"b} 1", "name", "name{a=b} 1", "name x"] {
            let error = Metrics::parse(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
