//! The commands beside the relay itself: `check`, `config`, and command lines that are wrong.

use std::path::Path;
use std::process::Output;

use super::harness::Relay;

fn standpipe(arguments: &[&str]) -> Output {
    Relay::bare_command().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn written(directory: &Path, config: &str) -> String {
    let path = directory.join("standpipe.toml");
    std::fs::write(&path, config).unwrap();
    path.display().to_string()
}

#[test]
fn a_broken_file_is_told_with_all_its_errors_by_key_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = "lingr = \"1s\"\nmemory = \"64M\"\n\non_full = \"dorp\"\n[streams.clicks]\npacking = 7\n[streams.\"..\"]\n";
    let path = written(directory.path(), config);
    for arguments in [&["check", &path][..], &["--config", &path], &["relay", "--config", &path]] {
        let output = standpipe(arguments);
        assert_eq!(output.status.code(), Some(2));
        let errors = text(&output.stderr);
        let lines: Vec<&str> = errors.lines().collect();
        let expected = [(1, "lingr"), (2, "memory"), (4, "on_full"), (6, "packing"), (7, "..")];
        assert_eq!(lines.len(), expected.len(), "{errors}");
        for (line, (number, key)) in lines.iter().zip(expected) {
            assert!(line.starts_with(&format!("{path}:{number}: ")) && line.contains(key), "{line}");
        }
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_good_file_is_answered_with_the_plan() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(directory.path(), "memory = \"256MiB\"\nshards = 2\n[streams.clicks]\n");
    let output = standpipe(&["check", &path]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let plan = text(&output.stdout);
    let mib = |name: &str| {
        let line = plan.lines().find(|line| line.trim_start().starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{plan}"));
        let mut words = line.split_whitespace().skip(1);
        let number: f64 = words.next().unwrap().parse().unwrap();
        if words.next() == Some("KiB") { number / 1024.0 } else { number }
    };
    let parts = ["base", "rings", "stacks", "  connections", "labels", "slack", "partial", "events "];
    let sum: f64 = parts.iter().map(|part| mib(part.trim_start_matches("  "))).sum();
    assert!((sum - mib("memory")).abs() < 0.5, "{sum}\n{plan}");
    assert_eq!(mib("memory"), 256.0);
    assert!(plan.contains("1 configured") && plan.contains("127.0.0.1:15555"), "{plan}");
}

#[test]
fn a_limit_that_is_too_small_is_refused_with_one_that_is_enough() {
    let output = standpipe(&["check", "--memory", "9MiB"]);
    assert_eq!(output.status.code(), Some(2));
    let sentence = text(&output.stderr);
    let (_, enough) = sentence.trim_end().split_once("set memory to ").unwrap();
    let enough = enough.strip_suffix(" or more").unwrap().replace(".0 ", "");
    assert_eq!(standpipe(&["check", "--memory", &enough]).status.code(), Some(0), "{sentence}");
    let ended =
        super::harness::Process::start(&mut Relay::command("--memory 9MiB --destination null")).wait();
    ended.assert_code(2);
    assert_eq!(ended.lines_with("is too small"), 1, "{}", ended.log.join("\n"));
}

#[test]
fn the_default_configuration_reads_back_commented_and_not() {
    let directory = tempfile::tempdir().unwrap();
    let output = standpipe(&["config"]);
    assert_eq!(output.status.code(), Some(0));
    let commented = text(&output.stdout);
    let is_setting = |line: &str| line.as_bytes().get(1).is_some_and(u8::is_ascii_lowercase);
    let lines = commented.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if is_setting(line) => setting,
        _ => line,
    });
    let uncommented: String = lines.flat_map(|line| [line, "\n"]).collect();
    assert!(uncommented.contains("\nlinger = \"1s\"\n"), "{uncommented}");
    let plan_of = |config: &str| {
        let output = standpipe(&["check", &written(directory.path(), config)]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(plan_of(&commented), plan_of(""));
    assert_eq!(plan_of(&uncommented), plan_of(""));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(directory.path(), "linger = \"3s\"\nmemory = \"100MiB\"\nlisten = \"127.0.0.1:3\"\n");
    let mut command = Relay::bare_command();
    command.env("STANDPIPE_LINGER", "2s").env("STANDPIPE_MEMORY", "200MiB");
    let output = command.args(["check", &path, "--linger", "1500ms"]).output().unwrap();
    let plan = text(&output.stdout);
    assert!(plan.contains("1.5s") && plan.contains("200.0 MiB") && plan.contains("127.0.0.1:3"), "{plan}");
}

#[test]
fn settings_of_firehose_without_it_are_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(directory.path(), "[delivery_streams.clicks]\nregion = \"eu-central-1\"\n");
    let output = standpipe(&["check", &path]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("set destination = \"firehose\""), "{}", text(&output.stderr));
    let output = standpipe(&["check", &path, "--destination", "firehose", "--region", "eu-west-1"]);
    assert!(text(&output.stdout).contains("firehose, region eu-west-1"), "{}", text(&output.stdout));
    assert_eq!(text(&output.stderr), "");
}

/// It was started with, and what went to disk was dropped at the end. A user who may not write is played by a file, since
/// tests may run as root.
#[test]
fn a_place_that_cannot_be_written_to_is_refused_at_start_and_named_once() {
    let directory = tempfile::tempdir().unwrap();
    let below = format!("{}/below", written(directory.path(), ""));
    let spooled = ["--destination", "null", "--spool", &below];
    for arguments in [&spooled[..], &["--destination", &format!("directory:{below}")]] {
        let output = standpipe(&[&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], arguments].concat());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let is_named = errors.contains(&format!("{below}: ")) && errors.contains("let this user write there");
        assert!(is_named && errors.matches("(os error").count() == 1, "{errors}");
    }
}

#[test]
fn a_wrong_command_line_is_refused_with_2() {
    for arguments in [&["--lingr", "1s"][..], &["relya"], &["--shards", "0"], &["check", "/nonexistent.toml"]]
    {
        let output = standpipe(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
    let output = standpipe(&["--destination", "kinesis"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("does not exist yet"), "{}", text(&output.stderr));
}

#[test]
fn help_and_version_are_printed_to_standard_output() {
    for (flag, word) in
        [("--help", "--linger"), ("-h", "--destination"), ("--version", env!("CARGO_PKG_VERSION"))]
    {
        let output = standpipe(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(word), "{flag}");
    }
}
