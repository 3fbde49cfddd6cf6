//! One scrape as a value, and the identity that must hold in it.

use std::collections::BTreeSet;

/// The samples of one scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Reads Prometheus' text format, as far as the relay uses it.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { samples: lines.map(Sample::parse).collect() }
    }

    /// The sum of the samples of a name that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let has = |sample: &Sample, (key, value): &(&str, &str)| {
            sample.labels.iter().any(|label| label.0 == *key && label.1 == *value)
        };
        let chosen = self.samples.iter().filter(|sample| sample.name == name);
        chosen
            .filter(|sample| labels.iter().all(|label| has(sample, label)))
            .map(|sample| sample.value as u64)
            .sum()
    }

    /// The sum of all samples of a name.
    pub fn total(&self, name: &str) -> u64 {
        self.sum(name, &[])
    }

    /// Frames rejected for this reason.
    pub fn rejected(&self, reason: &str) -> u64 {
        self.sum("standpipe_frames_rejected_total", &[("reason", reason)])
    }

    /// Events received for this stream.
    pub fn received(&self, stream: &str) -> u64 {
        self.sum("standpipe_events_received_total", &[("stream", stream)])
    }

    /// Events of this stream that were delivered.
    pub fn delivered(&self, stream: &str) -> u64 {
        self.sum("standpipe_events_delivered_total", &[("stream", stream)])
    }

    /// Events of this stream that were dropped for this reason.
    pub fn dropped(&self, stream: &str, reason: &str) -> u64 {
        self.sum("standpipe_events_dropped_total", &[("stream", stream), ("reason", reason)])
    }

    /// Events of this stream that are still here.
    pub fn held(&self, stream: &str) -> u64 {
        self.sum("standpipe_events_held", &[("stream", stream)])
    }

    /// Bytes of memory in this state: `events`, `partial` or `resident`.
    pub fn memory(&self, state: &str) -> u64 {
        self.sum("standpipe_memory_bytes", &[("state", state)])
    }

    /// The stream labels there are.
    pub fn streams(&self) -> BTreeSet<&str> {
        let labels = self.samples.iter().flat_map(|sample| &sample.labels);
        labels.filter(|(key, _)| key == "stream").map(|(_, value)| value.as_str()).collect()
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let pairs = labels.trim_end_matches('}').split_terminator("\",");
        let pair = |pair: &str| {
            let (key, value) = pair.split_once("=\"").unwrap();
            (key.to_owned(), value.trim_end_matches('"').to_owned())
        };
        Self { name: name.to_owned(), labels: pairs.map(pair).collect(), value: value.parse().unwrap() }
    }
}

/// Asserts `received + recovered = delivered + dropped + held` for every stream label, from the metrics alone. It
/// holds at any moment at which nothing moves.
pub fn assert_identity(metrics: &Metrics) {
    for stream in metrics.streams() {
        let of = |what: &str| metrics.sum(&format!("standpipe_events_{what}"), &[("stream", stream)]);
        let came = of("received_total") + of("recovered_total");
        let (delivered, dropped, held) = (of("delivered_total"), of("dropped_total"), of("held"));
        assert_eq!(
            came,
            delivered + dropped + held,
            "stream {stream}: delivered {delivered}, dropped {dropped}, held {held}"
        );
    }
}

#[test]
fn samples_are_summed_by_their_labels() {
    let metrics = Metrics::parse(
        "# HELP a b\na{stream=\"x\",reason=\"y\"} 3\na{stream=\"z\",reason=\"y\"} 4\nb 5\nc{le=\"+Inf\"} 1e3\n",
    );
    assert_eq!((metrics.total("a"), metrics.total("b"), metrics.total("c")), (7, 5, 1000));
    assert_eq!(metrics.sum("a", &[("reason", "y"), ("stream", "z")]), 4);
    assert_eq!(metrics.streams().into_iter().collect::<Vec<_>>(), ["x", "z"]);
}
