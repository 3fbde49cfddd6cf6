//! Where the bytes of a stream go: names of folders and files, laid out as Firehose lays out S3. Pure; it opens
//! nothing. Invariant: no name made here has a component that leads out of its folder.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

const FOLDER: &[BorrowedFormatItem<'_>] = format_description!("[year]/[month]/[day]/[hour]");
const STAMP: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]-[hour]-[minute]-[second]");

/// Longer names than this have no place in a file name, which holds the stream's name and the instance's.
pub(super) const NAME_MAX: usize = 64;

/// An hour of UTC, counted from 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hour(i64);

impl Hour {
    pub(super) fn of(at: OffsetDateTime) -> Self {
        Self(at.unix_timestamp().div_euclid(3600))
    }
}

/// Whether `name` may be the name of a stream's folder, as the wire protocol has it.
pub(super) fn is_stream_name(name: &str) -> bool {
    is_plain(name) && !matches!(name, "." | ".." | "_other")
}

/// Whether `name` may stand inside a file name.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

/// `STREAM/YYYY/MM/DD/HH`, relative to the root.
pub(super) fn folder(stream: &str, at: OffsetDateTime) -> String {
    format!("{stream}/{}", formatted(at, FOLDER))
}

/// `STREAM-1-YYYY-MM-DD-HH-MM-SS-INSTANCE-SEQ`.
pub(super) fn file(stream: &str, at: OffsetDateTime, instance: &str, sequence: u64) -> String {
    format!("{stream}-1-{}-{instance}-{sequence:06}", formatted(at, STAMP))
}

fn formatted(at: OffsetDateTime, format: &[BorrowedFormatItem<'_>]) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(format)
        .expect("a date and a time are all that the format needs")
}

/// `folder` and every folder above it, down to the root, which is the empty path.
pub(super) fn with_parents(folder: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(folder), |path| match path.rsplit_once('/') {
        Some((parent, _)) => Some(parent),
        None => (!path.is_empty()).then_some(""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn files_are_laid_out_as_firehose_lays_out_s3() {
        let at = datetime!(2026-03-04 23:06:07 -2);
        assert_eq!(folder("clicks", at), "clicks/2026/03/05/01");
        assert_eq!(file("clicks", at, "host.1", 12), "clicks-1-2026-03-05-01-06-07-host.1-000012");
        assert_eq!(Hour::of(at), Hour::of(datetime!(2026-03-05 01:59:59 UTC)));
        assert_ne!(Hour::of(at), Hour::of(datetime!(2026-03-05 02:00:00 UTC)));
    }

    #[test]
    fn parents_go_down_to_the_root() {
        let parents: Vec<_> = with_parents("a/2026/01").collect();
        assert_eq!(parents, ["a/2026/01", "a/2026", "a", ""]);
        assert_eq!(with_parents("").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["a", "clicks", "A-b_c.9", "...", &"x".repeat(64)] {
            assert!(is_stream_name(name), "{name:?}");
        }
        for name in ["", ".", "..", "_other", "a/b", "/", "a\0", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(!is_stream_name(name), "{name:?}");
        }
    }
}
