//! What is refused, and the sentences that say so.

use super::*;

#[test]
fn all_errors_come_at_once_with_key_and_line() {
    let file = r#"
linger = "1x"
lingr = "1s"
shards = 257
memory = "64M"
on_full = "dorp"
takeover = "yes"
destination = "kinesis"
listen = ["127.0.0.1:15555", "localhost:1"]
max_streams = 1e3

[streams.clicks]
packing = "ful"
linger = "2s"
colour = "blue"
delivery_streams = ["a b"]
[streams.app.log]
[streams.".."]
"#;
    let environment = [("STANDPIPE_LINGER", "1"), ("STANDPIPE_LINGRE", "1s"), ("PATH", "/bin")];
    let lines = errors_of(file, &environment, &[("retry_max", "0s"), ("listen", ":1"), ("listen", "unix:")]);
    let expected = [
        r#"standpipe.toml:2: linger = "1x": not a duration; write a number and a unit, such as "500ms" or "1s""#,
        r#"standpipe.toml:3: lingr = "1s": no such setting; did you mean `linger`?"#,
        r#"standpipe.toml:4: shards = 257: too high; the most is 256"#,
        r#"standpipe.toml:5: memory = "64M": not a size; write bytes, or a whole number and a unit, such as "64MiB" or "500MB", or "auto""#,
        r#"standpipe.toml:6: on_full = "dorp": not one of "wait", "drop"; did you mean "drop"?"#,
        r#"standpipe.toml:7: takeover = "yes": neither true nor false; write one of them, without quotes"#,
        r#"standpipe.toml:8: destination = "kinesis": the destination "kinesis" does not exist yet; write "directory:PATH", "firehose", "relay:HOST:PORT" or "null""#,
        r#"standpipe.toml:9: listen = ["127.0.0.1:15555", "localhost:1"]: "localhost:1": not an address; write IP:PORT, such as "0.0.0.0:15555" or "[::]:15555", or "unix:PATH""#,
        r#"standpipe.toml:10: max_streams = 1e3: not a whole number; write it in digits"#,
        r#"standpipe.toml:13: [streams.clicks] packing = "ful": not one of "full", "single"; did you mean "full"?"#,
        r#"standpipe.toml:14: [streams.clicks] linger = "2s": `linger` is a setting of the whole relay; write it above the first [streams.NAME]"#,
        r#"standpipe.toml:15: [streams.clicks] colour = "blue": no such setting of a stream"#,
        r#"standpipe.toml:16: [streams.clicks] delivery_streams = ["a b"]: not a delivery stream's name; write 1 to 64 of A-Z a-z 0-9 _ . -, with {stream} where the stream's name goes"#,
        r#"standpipe.toml:17: [streams.app] log: no such setting of a stream; a name with a dot needs quotes: [streams."app.log"]"#,
        r#"standpipe.toml:18: streams."..": no stream may be called "..""#,
        r#"STANDPIPE_LINGRE=1s: no such setting; did you mean `STANDPIPE_LINGER`?"#,
        r#"STANDPIPE_LINGER=1: not a duration; write a number and a unit, such as "500ms" or "1s""#,
        r#"--retry-max 0s: too low; the least is 1ms"#,
        r#"--listen :1 --listen unix:: ":1": not an address; write IP:PORT, such as "0.0.0.0:15555" or "[::]:15555", or "unix:PATH""#,
    ];
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line, expected);
    }
    assert_eq!(lines.len(), expected.len());
}

#[test]
fn broken_toml_is_told_by_line_and_the_rest_is_still_checked() {
    let file = "linger = \nshards = 0\nmemory = \"1GiB\nmax_calls = 1 2\nio = \"epoll\"\nio = \"auto\"\n";
    let lines = errors_of(file, &[], &[]);
    for line in &lines {
        println!("{line}");
    }
    assert_eq!(lines.len(), 5);
    for (line, number) in lines.iter().zip([1, 2, 3, 4, 6]) {
        assert!(line.starts_with(&format!("standpipe.toml:{number}: ")), "{line}");
    }
    assert_eq!(lines[1], "standpipe.toml:2: shards = 0: too low; the least is 1");
}

#[test]
fn values_that_contradict_each_other_are_refused_where_the_last_was_written() {
    let wrong = [
        (
            "retry_base = \"40s\"",
            "standpipe.toml:1: retry_base = \"40s\": retry_base (40s) is above retry_max (30s)",
        ),
        (
            "listen = [\"0.0.0.0:9155\"]",
            "standpipe.toml:1: listen = [\"0.0.0.0:9155\"]: listen and admin both want port 9155; give one of them another",
        ),
        (
            "only_configured_streams = true",
            "standpipe.toml:1: only_configured_streams = true: no stream is configured, so that every event would be refused; add [streams.NAME] tables",
        ),
        (
            "max_streams = 1\n[streams.a]\n[streams.b]",
            "standpipe.toml:1: max_streams = 1: 2 streams are configured, but max_streams is 1; raise it",
        ),
        (
            "sync_at = \"stored\"",
            "standpipe.toml:1: sync_at = \"stored\": there is no spool where anything could be stored; configure one, or write \"delivered\"",
        ),
        (
            "listen = [\"unix:a\", \"unix:a\"]",
            "standpipe.toml:1: listen = [\"unix:a\", \"unix:a\"]: unix:a stands in it twice",
        ),
    ];
    for (file, message) in wrong {
        assert_eq!(errors_of(file, &[], &[]), [message]);
    }
    let echo = errors_of("retry_base = \"40s\"\nretry_max = \"1\"", &[], &[]);
    assert_eq!(echo.len(), 1, "a setting that is wrong in itself contradicts nothing: {echo:?}");
}

#[test]
fn each_kind_of_value_is_refused_with_its_own_sentence() {
    let wrong = [
        ("linger = 5", "not a duration"),
        ("linger = \"5ms\"", "too low; the least is 10ms"),
        ("linger = \"16m\"", "too high; the most is 15m"),
        ("shards = \"three\"", "not a whole number; write it in digits, without quotes, or \"auto\""),
        ("max_calls = 99999999999999999999", "too high; the most is 10,000"),
        ("memory = -1", "too low; the least is 8MiB"),
        ("max_frame_bytes = 1_024_000", "too high; the most is 1,023,999 B"),
        ("max_record_bytes = \"1MiB\"", "too high; the most is 1,024,000 B"),
        ("max_record_events = 0", "too low; the least is 1"),
        ("listen = []", "empty; give at least an address"),
        ("listen = [1]", "not a list of strings"),
        ("listen = \"unix:\"", "the path of the socket is missing"),
        ("admin = \"localhost\"", "not an address"),
        ("admin = 9155", "not a string"),
        ("destination = \"directory:\"", "the path is missing"),
        ("destination = \"kinesis\"", "does not exist yet"),
        ("destination = \"relay:10.0.0.1\"", "write \"relay:HOST:PORT\""),
        ("destination = \"null:x\"", "takes nothing behind it"),
        ("destination = \"firhose\"", "did you mean \"firehose\"?"),
        ("endpoint_url = \"127.0.0.1:5000\"", "not an endpoint"),
        ("endpoint_url = \"ftp://x\"", "not an endpoint"),
        ("region = \"EU\"", "not a region"),
        ("delivery_stream = \"{strem}\"", "not a delivery stream's name"),
        ("log = \"inof\"", "did you mean \"info\"?"),
        ("log = \"a=b=c\"", "not a log filter"),
        ("streams = 1", "not a table"),
        ("streams.clicks = 1", "not a stream's table"),
        ("[streams._other]", "no stream may be called"),
        ("[streams.a]\ndelivery_streams = [\"x\", \"x\"]", "\"x\" stands in it twice"),
        ("[streams.a]\ndelivery_streams = []", "empty; give at least a delivery stream"),
        ("role_arn = \"standpipe\"", "not a role's ARN"),
        ("external_id = \"a b\"", "not an external id"),
        ("external_id = \"ab\"", "external_id is for a role that is assumed; give a role_arn too"),
        ("max_bytes_per_second = \"1B\"", "too low; the least is 1kB"),
        (
            "max_calls_per_second = \"x\"",
            "not a whole number; write it in digits, without quotes, or \"auto\"",
        ),
        ("delivery_streams = []", "not a table; write [delivery_streams.NAME] for each delivery stream"),
        ("delivery_streams.a = 1", "not a delivery stream's table; write [delivery_streams.NAME]"),
        ("[delivery_streams.a.b]", "a name with a dot needs quotes: [delivery_streams.\"a.b\"]"),
        ("[delivery_streams.\"{stream}{stream}\"]", "{stream} may stand in it only once"),
        ("[delivery_streams.a]\nlinger = 1", "`linger` is a setting of the whole relay"),
        ("[delivery_streams.a]\nregoin = \"x\"", "did you mean `region`?"),
        ("[delivery_streams.a]\nexternal_id = \"ab\"", "give a role_arn too"),
        ("[streams.a]\ndelivery_streams = [\"a\", \"{stream}\"]", "\"a\" stands in it twice"),
        ("[linger]\nx = 1", "not a duration"),
    ];
    for (file, message) in wrong {
        let lines = errors_of(file, &[], &[]);
        assert_eq!(lines.len(), 1, "{file}: {lines:?}");
        assert!(lines[0].starts_with("standpipe.toml:") && lines[0].contains(message), "{file}: {lines:?}");
    }
}

#[test]
fn a_file_that_can_not_be_read_is_an_error() {
    let missing = Config::load(Sources { file: Some("no/such/file.toml".into()), ..Sources::default() });
    let message = missing.expect_err("there is no such file").to_string();
    assert!(message.starts_with("no/such/file.toml: cannot be read: No such file"), "{message}");

    let binary = TestFile::new(b"# one\n# \xff\n");
    let message = Config::load(Sources { file: Some(binary.path()), ..Sources::default() });
    let message = message.expect_err("it is not UTF-8").to_string();
    assert!(message.ends_with("standpipe.toml: not UTF-8 on line 2"), "{message}");
}

#[test]
fn a_log_filter_beyond_ascii_is_refused_and_does_not_panic() {
    let lines = errors_of("log = \" A\u{bd0}=\"\n", &[], &[]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].ends_with("it may have ASCII characters only"), "{lines:?}");
}
