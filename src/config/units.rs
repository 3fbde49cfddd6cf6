//! Durations and sizes as people write them.

use std::time::Duration;

/// The units of a size and their bytes, the largest first.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a duration such as `500ms`, `1s`, `2m` or `1m 30s`. A number alone is none.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    humantime::parse_duration(text).ok()
}

/// Writes a duration so that [`parse_duration`] reads the same again.
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Reads a size in bytes: whole bytes, or a whole number with a unit such as `64MiB`, `2GiB` or `500MB`, in
/// any case, with or without a space.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let factor = match unit {
        "" => 1,
        _ => SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Writes a size in the largest unit that holds it exactly, so that [`parse_size`] reads the same again.
pub fn format_size(bytes: u64) -> String {
    let exact = SIZE_UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    match exact {
        Some((name, factor)) if *factor > 1 => format!("{}{name}", bytes / factor),
        _ => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_in_all_units() {
        let good = [
            ("0", 0),
            ("17", 17),
            ("64MiB", 64 << 20),
            ("2GiB", 2 << 30),
            ("500MB", 500_000_000),
            ("1 kib", 1024),
            ("3KB", 3000),
            ("1TiB", 1 << 40),
            ("9B", 9),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "1.5GiB", "-1", "1XB", "64M", "18446744073709551616", "99999999TiB", "1MiB1"]
        {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1m 30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        for text in ["", "1", "0", "1x", "s", "-1s", "99999999999999999999s", "1s,"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_reads_back_as_it_was_written(bytes: u64, factor in prop::sample::select(&SIZE_UNITS[..])) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
            let round = (bytes % 1000) * factor.1;
            prop_assert_eq!(parse_size(&format_size(round)), Some(round));
        }

        #[test]
        fn a_duration_reads_back_as_it_was_written(seconds in 0..10_000_000_u64, nanos in 0..1_000_000_000_u32) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC*") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }
    }
}
