//! Results for people: tables of a few rows. The same figures, and more, are in the JSON.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::send::Sent;
use crate::sink::totals::{Percentiles, Totals};

/// Two columns, the figures to the right.
pub fn table(rows: &[(&str, String)]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    for (name, value) in rows {
        table.add_row([*name, value.as_str()]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A whole number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What was sent.
pub fn sent(sent: &Sent) -> Table {
    let gigabytes = sent.line_bytes as f64 / 1e9;
    let rate = if sent.seconds > 0.0 { gigabytes / sent.seconds } else { 0.0 };
    table(&[
        ("events sent", grouped(sent.events_sent)),
        ("events planned and not sent", grouped(sent.events_unsent)),
        ("seconds", format!("{:.3}", sent.seconds)),
        ("events/s", grouped(sent.events_per_second as u64)),
        ("GB (frames and all)", format!("{gigabytes:.3}")),
        ("GB/s", format!("{rate:.3}")),
        ("writes", grouped(sent.writes)),
        ("behind schedule, max ms", format!("{:.3}", sent.behind_schedule_ms_max)),
        ("connections failed", grouped(sent.connections_failed)),
        ("connections the peer left open", grouped(sent.connections_not_closed)),
    ])
}

/// What was accepted.
pub fn totals(totals: &Totals) -> Table {
    let counts = &totals.totals;
    table(&[
        ("calls", grouped(totals.calls["total"])),
        ("records accepted", grouped(counts.records_accepted)),
        ("events accepted", grouped(counts.events_accepted)),
        ("duplicate events", grouped(counts.duplicate_events)),
        ("corrupted events", grouped(counts.corrupted_events)),
        ("foreign lines", grouped(counts.foreign_events)),
        ("reordered inside a record", grouped(counts.reordered_events)),
        ("raw bytes", grouped(counts.raw_bytes)),
        ("billed / raw", ratio(counts.billed_bytes, counts.raw_bytes)),
        ("rules of the API broken", grouped(totals.violations.total)),
        ("latency ms p50 p90 p99 p99.9 max", latency(&totals.latency_ms)),
    ])
}

/// One figure over another, to three digits; `-` over nothing.
pub fn ratio(over: u64, under: u64) -> String {
    match under {
        0 => "-".to_owned(),
        under => format!("{:.3}", over as f64 / under as f64),
    }
}

/// The usual percentiles, in milliseconds.
pub fn latency(latency: &Percentiles) -> String {
    format!(
        "{:.1}  {:.1}  {:.1}  {:.1}  {:.1}",
        latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let texts = [0, 999, 1_000, 12_345, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "12,345", "1,234,567"]);
    }
}
