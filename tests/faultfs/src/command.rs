//! What can be asked of a mounted disk: one line of text, answered by one that begins with `ok` or `error`.
//!
//! | line | does |
//! |---|---|
//! | `cut` | takes back whatever was not synced |
//! | `cut SEED` | the same, but some pages and names survive |
//! | `fail OPERATION ERROR [TIMES]` | lets it fail: `create` `open` `read` `write` `resize` `rename` `fsync`, with `EIO` `ENOSPC` `EROFS` `EDQUOT` |
//! | `delay OPERATION DURATION` | makes it slow, as in `delay fsync 200ms` |
//! | `limit BYTES` | the room for all files; beyond it is ENOSPC |
//! | `read-only` | nothing can be changed any more |
//! | `lie` | a sync says that it is done, and keeps nothing |
//! | `clear` | ends all of these |
//! | `stats` | what was done so far |

use anyhow::{Context, bail};
use fuser::Errno;

use crate::disk::Disk;
use crate::faults::{Faults, Operation};

/// Does what a line says, and gives the answer without its LF.
pub fn run(disk: &mut Disk, line: &str) -> String {
    match execute(disk, line) {
        Ok(answer) if answer.is_empty() => "ok".to_owned(),
        Ok(answer) => format!("ok {answer}"),
        Err(error) => format!("error {error:#}"),
    }
}

fn execute(disk: &mut Disk, line: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["cut"] => Ok(cut(disk, None)),
        ["cut", seed] => Ok(cut(disk, Some(number(seed)?))),
        ["fail", operation, error] => fail(disk, operation, error, None),
        ["fail", operation, error, times] => fail(disk, operation, error, Some(number(times)?)),
        ["delay", operation, duration] => {
            let duration = humantime::parse_duration(duration)
                .with_context(|| format!("`{duration}` is no duration such as 200ms"))?;
            disk.faults.delay(parse_operation(operation)?, duration);
            Ok(String::new())
        }
        ["limit", bytes] => {
            disk.set_limit(Some(number(bytes)?));
            Ok(String::new())
        }
        ["read-only"] => {
            disk.faults.set_read_only();
            Ok(String::new())
        }
        ["lie"] => {
            disk.faults.set_lying();
            Ok(String::new())
        }
        ["clear"] => {
            disk.faults = Faults::default();
            disk.set_limit(None);
            Ok(String::new())
        }
        ["stats"] => Ok(stats(disk)),
        _ => bail!("`{line}` is no command"),
    }
}

fn cut(disk: &mut Disk, tear: Option<u64>) -> String {
    let taken = disk.cut(tear);
    format!("bytes={} names={}", taken.bytes, taken.names)
}

fn stats(disk: &Disk) -> String {
    let stats = disk.stats();
    let (used, room) = disk.space();
    format!(
        "writes={} syncs={} failures={} cuts={} unsynced={} used={used} room={room}",
        stats.writes,
        stats.syncs,
        stats.failures,
        stats.cuts,
        disk.unsynced(),
    )
}

fn fail(disk: &mut Disk, operation: &str, error: &str, times: Option<u64>) -> anyhow::Result<String> {
    let error = match error {
        "EIO" => Errno::EIO,
        "ENOSPC" => Errno::ENOSPC,
        "EROFS" => Errno::EROFS,
        "EDQUOT" => Errno::EDQUOT,
        _ => bail!("`{error}` is none of EIO, ENOSPC, EROFS and EDQUOT"),
    };
    disk.faults.fail(parse_operation(operation)?, error, times);
    Ok(String::new())
}

fn parse_operation(name: &str) -> anyhow::Result<Operation> {
    Operation::parse(name).with_context(|| format!("`{name}` is no operation"))
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("`{text}` is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_answered() {
        let mut disk = Disk::default();
        for (line, answer) in [
            ("cut", "ok bytes=0 names=0"),
            ("cut 7", "ok bytes=0 names=0"),
            ("fail fsync EIO 1", "ok"),
            ("fail write ENOSPC", "ok"),
            ("delay fsync 20ms", "ok"),
            ("limit 1000", "ok"),
            ("read-only", "ok"),
            ("lie", "ok"),
            ("stats", "ok writes=0 syncs=0 failures=0 cuts=2 unsynced=0 used=0 room=1000"),
            ("clear", "ok"),
            ("cut x", "error `x` is no number: invalid digit found in string"),
            ("fail fly EIO", "error `fly` is no operation"),
            ("", "error `` is no command"),
        ] {
            assert_eq!(run(&mut disk, line), answer, "{line}");
        }
    }
}
