//! The books as JSON: the shape of `GET /ledger`, of the file that `sink --json` writes, and of `ledger` in the
//! report of a run.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ledger::{Check, Counts, Latency};

/// The books as JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Totals {
    /// The seed of the faults.
    pub seed: u64,
    /// How closely events were looked at.
    pub check: Check,
    /// Time since the books were opened.
    pub seconds: f64,
    /// Calls by [`Outcome`](super::ledger::Outcome), and in all (`total`); those still being read are in `total` only.
    pub calls: BTreeMap<&'static str, u64>,
    /// Calls by the HTTP status of the answer; `none` had none.
    pub calls_by_status: BTreeMap<&'static str, u64>,
    /// The sum over all delivery streams.
    pub totals: Counts,
    /// By delivery stream.
    pub streams: BTreeMap<String, StreamTotals>,
    /// Rules of the API that clients broke.
    pub violations: Violations,
    /// From planned to accepted, over all streams.
    pub latency_ms: Percentiles,
    /// Events accepted in each second since the start.
    pub events_by_second: Vec<u64>,
}

/// The books of one delivery stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamTotals {
    /// What was counted.
    #[serde(flatten)]
    pub counts: Counts,
    /// Sequences of its stream not accepted below the highest accepted, over all connections (`full` only).
    pub missing_below_highest: u64,
    /// From planned to accepted; left out beyond the first 256 streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Percentiles>,
}

/// Rules broken.
#[derive(Debug, Clone, Serialize)]
pub struct Violations {
    /// How many times.
    pub total: u64,
    /// By rule.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// The first hundred, in words.
    pub samples: Vec<String>,
}

/// A distribution of latencies, in milliseconds, to three digits.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Percentiles {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Percentiles {
    pub(super) fn of(latency: &Latency) -> Self {
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: latency.len(),
            mean: latency.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: latency.max() as f64 / 1e3,
        }
    }
}
