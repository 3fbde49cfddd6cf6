//! The configuration as an operator meets it: files, variables and flags in, a configuration or sentences
//! out.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::delivery_stream::DELIVERY_STREAM_SETTINGS;
use super::setting::Setting;
use super::stream::STREAM_SETTINGS;
use super::*;

mod delivery_streams;
mod refusals;

/// A file in a directory of its own, which goes when this does.
struct TestFile {
    directory: TempDir,
}

impl TestFile {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let file = Self { directory: TempDir::new().expect("a temporary directory") };
        fs::write(file.path(), text).expect("a file in it");
        file
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("standpipe.toml")
    }
}

fn load(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, Errors> {
    let file = TestFile::new(file);
    Config::load(Sources {
        file: Some(file.path()),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags.iter().map(|(key, value)| ((*key).to_owned(), value.into())).collect(),
    })
}

/// The errors' lines, with the file's directory taken off.
fn errors_of(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
    let errors = load(file, environment, flags).expect_err("the configuration is wrong");
    let lines: Vec<_> = errors.iter().map(|error| without_directory(&error.to_string())).collect();
    assert_eq!(
        without_directory(&errors.to_string().replace('\n', "\0")).matches('\0').count() + 1,
        lines.len()
    );
    lines
}

fn without_directory(line: &str) -> String {
    line.find("standpipe.toml").map_or(line, |at| &line[at..]).to_owned()
}

/// A value other than the default for each setting of the relay, as TOML.
const OTHER_VALUES: [(&str, &str); 51] = [
    ("listen", r#"["[::1]:7000", "unix:/run/standpipe.sock"]"#),
    ("admin", r#""[::1]:7001""#),
    ("max_connections", "7"),
    ("sync_at", r#""stored""#),
    ("tcp_keepalive", r#""90s""#),
    ("max_connection_age", r#""1h""#),
    ("rejected_samples", "0"),
    ("takeover", "true"),
    ("handover", r#""blue""#),
    ("destination", r#""firehose""#),
    ("endpoint_url", r#""http://127.0.0.1:5000""#),
    ("region", r#""eu-central-1""#),
    ("role_arn", r#""arn:aws:iam::123456789012:role/relays/standpipe""#),
    ("external_id", r#""standpipe@example""#),
    ("delivery_stream", r#""prod-{stream}""#),
    ("linger", r#""250ms""#),
    ("max_frame_bytes", "1000"),
    ("only_configured_streams", "true"),
    ("max_age", r#""1h""#),
    ("max_streams", "8"),
    ("max_stream_labels", "9"),
    ("packing", r#""single""#),
    ("max_record_events", "500"),
    ("max_record_bytes", "2000"),
    ("memory", r#""64MiB""#),
    ("on_full", r#""drop""#),
    ("shards", "3"),
    ("io", r#""epoll""#),
    ("spool", r#""/var/spool/standpipe""#),
    ("spool_mode", r#""always""#),
    ("spool_limit", r#""2GiB""#),
    ("spool_free_floor", r#""2GiB""#),
    ("spool_keep_sent", r#""1h""#),
    ("dead_letter", r#""/var/lib/dead""#),
    ("dead_letter_limit", r#""2MiB""#),
    ("max_calls", "10"),
    ("body_hash", r#""standard""#),
    ("max_lane_calls", "4"),
    ("max_bytes_per_second", r#""5MiB""#),
    ("max_records_per_second", "1000"),
    ("max_calls_per_second", "100"),
    ("call_timeout", r#""20s""#),
    ("connect_timeout", r#""2s""#),
    ("retry_base", r#""200ms""#),
    ("retry_max", r#""10s""#),
    ("park_probe", r#""5s""#),
    ("maintenance_file", r#""/etc/down-for-maintenance""#),
    ("pre_drain_delay", r#""1s""#),
    ("drain_deadline", r#""9s""#),
    ("drain_close_rate", "10"),
    ("log", r#""warn,standpipe::shard=debug""#),
];

/// `only_configured_streams` wants a stream and `external_id` a role, so that all tests of single settings have them.
const TABLES: &str = "
[streams.clicks]
[delivery_streams.clicks]
role_arn = \"arn:aws:iam::123456789012:role/standpipe\"
";

/// The words of a TOML value, as the environment and the flags have them.
fn words(value: &str) -> Vec<&str> {
    value.trim_matches(['[', ']']).split(", ").map(|word| word.trim_matches('"')).collect()
}

#[test]
fn the_defaults_are_those_of_the_design() {
    let config = Config::default();
    let expected = Config {
        listen: vec![ListenAddress::Tcp(([127, 0, 0, 1], 15555).into())],
        sync_at: SyncAt::Delivered,
        admin: ([127, 0, 0, 1], 9155).into(),
        destination: DestinationChoice::Directory("./standpipe-data".into()),
        delivery_stream_defaults: DeliveryStreamSettings {
            region: None,
            role_arn: None,
            external_id: None,
            endpoint_url: None,
            max_bytes_per_second: None,
            max_records_per_second: None,
            max_calls_per_second: None,
        },
        delivery_stream: "{stream}".into(),
        shards: None,
        io: IoChoice::Auto,
        linger: Duration::from_secs(1),
        memory: None,
        on_full: OnFull::Wait,
        spool: None,
        spool_mode: SpoolMode::Overflow,
        spool_limit: 10 << 30,
        spool_free_floor: 1 << 30,
        spool_keep_sent: Duration::ZERO,
        dead_letter: None,
        dead_letter_limit: 1 << 30,
        max_age: None,
        packing: Packing {
            mode: PackingMode::Full,
            record_events_max: u32::MAX,
            record_bytes_max: 1_024_000,
        },
        frame_bytes_max: 1_023_999,
        max_connections: 20_000,
        max_streams: 20_000,
        max_stream_labels: 1_000,
        only_configured_streams: false,
        max_calls: 64,
        body_hash: BodyHash::Grouped,
        max_lane_calls: 8,
        call_timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(3),
        retry_base: Duration::from_millis(100),
        retry_max: Duration::from_secs(30),
        park_probe: Duration::from_secs(30),
        tcp_keepalive: Duration::from_secs(60),
        max_connection_age: None,
        maintenance_file: None,
        pre_drain_delay: Duration::ZERO,
        drain_deadline: Duration::from_secs(25),
        drain_close_rate: 1_000,
        rejected_samples: 16,
        takeover: false,
        handover: "auto".into(),
        log: "info".into(),
        streams: BTreeMap::new(),
        delivery_streams: DeliveryStreams::default(),
    };
    assert_eq!(config, expected);
}

#[test]
fn every_setting_can_be_set_from_every_source() {
    let base = load(TABLES, &[], &[]).expect("a good file");
    let keys: Vec<_> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys, OTHER_VALUES.map(|(key, _)| key), "a value for each setting, in the table's order");
    // The other value of `sync_at` wants a spool: see the refusals.
    let alone = |(setting, _): &(&Setting<Config>, _)| setting.key != "sync_at";
    for (setting, (key, value)) in SETTINGS.iter().zip(OTHER_VALUES).filter(alone) {
        let from_file = load(&format!("{key} = {value}{TABLES}"), &[], &[]).expect(key);
        let word = words(value).join(",");
        let from_environment = load(TABLES, &[(&setting.variable(), &word)], &[]).expect(key);
        let flags: Vec<_> = words(value).into_iter().map(|word| (key, word)).collect();
        let from_flags = load(TABLES, &[], &flags).expect(key);
        assert_ne!(from_file, base, "{key}");
        assert_eq!(from_file, from_environment, "{key}");
        assert_eq!(from_file, from_flags, "{key}");
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let linger = |config: Result<Config, Errors>| config.expect("good sources").linger.as_secs();
    let (file, environment, flags) = ("linger = \"2s\"", [("STANDPIPE_LINGER", "3s")], [("linger", "4s")]);
    assert_eq!(linger(load("", &[], &[])), 1);
    assert_eq!(linger(load(file, &[], &[])), 2);
    assert_eq!(linger(load(file, &environment, &[])), 3);
    assert_eq!(linger(load(file, &environment, &flags)), 4);
    assert_eq!(linger(load(file, &[], &flags)), 4);
}

#[test]
fn a_later_list_replaces_an_earlier_one() {
    let file = r#"listen = ["127.0.0.1:1", "127.0.0.1:2"]"#;
    let config = load(file, &[("STANDPIPE_LISTEN", "127.0.0.1:3, 127.0.0.1:4")], &[]).expect("good sources");
    assert_eq!(
        config.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["127.0.0.1:3", "127.0.0.1:4"]
    );
}

#[test]
fn the_default_configuration_reads_back_as_the_defaults() {
    let text = Config::default_toml();
    let is_setting =
        |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
    let bare: Vec<_> = text.lines().map(|line| if is_setting(line) { &line[1..] } else { line }).collect();
    assert_eq!(text.lines().filter(|line| is_setting(line)).count(), SETTINGS.len());
    assert_eq!(load(&bare.join("\n"), &[], &[]), Ok(Config::default()));
    assert_eq!(load(&text, &[], &[]), Ok(Config::default()), "with all of it commented out");
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
}

#[test]
fn the_examples_of_tables_in_the_default_configuration_are_good() {
    let text = Config::default_toml();
    let examples: Vec<_> = text
        .split("For example:")
        .skip(1)
        .map(|example| {
            let lines = example.lines().take_while(|line| line.starts_with('#') || line.is_empty());
            lines.map(|line| line.trim_start_matches(['#', ' ']).to_owned() + "\n").collect::<String>()
        })
        .collect();
    let examples = examples.iter().map(|example| example.split("----").next().unwrap_or_default());
    let config = load(&examples.collect::<String>(), &[], &[]).expect("good examples");
    assert_eq!(config.streams.keys().collect::<Vec<_>>(), ["app.log", "clicks"]);
    let names: Vec<_> = config.delivery_streams.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["eu-clicks", "eu-{stream}"]);
}

#[test]
fn a_stream_takes_the_relays_values_where_it_has_none() {
    let file = r#"
        max_record_events = 500
        [streams.clicks]
        delivery_streams = ["clicks-1", "clicks-2"]
        packing = "single"
        max_record_bytes = "10kB"
        [streams."app.log"]
        max_record_events = "unlimited"
        on_full = "wait"
        [streams.plain]
    "#;
    let config = load(file, &[("STANDPIPE_ON_FULL", "drop")], &[]).expect("a good file");
    let packing =
        |mode, record_events_max, record_bytes_max| Packing { mode, record_events_max, record_bytes_max };
    let clicks = &config.streams["clicks"];
    assert_eq!(clicks.delivery_streams, ["clicks-1", "clicks-2"]);
    assert_eq!(clicks.packing, packing(PackingMode::Single, 500, 10_000));
    assert_eq!(clicks.on_full, OnFull::Drop);
    assert_eq!(config.streams["app.log"].packing, packing(PackingMode::Full, u32::MAX, 1_024_000));
    assert_eq!(config.streams["app.log"].on_full, OnFull::Wait);
    assert_eq!(config.streams["plain"].packing, config.packing);
    assert_eq!(config.streams["plain"].delivery_streams, Vec::<String>::new());
}

#[test]
fn a_reload_changes_what_its_row_says_and_names_the_rest() {
    let old = load(TABLES, &[], &[]).expect("a good file");
    for (setting, (key, value)) in SETTINGS.iter().zip(OTHER_VALUES) {
        // `sync_at` wants a spool, which is then named as well, and tables of delivery streams take the relay's values.
        let tables = "delivery_streams";
        let spool = if key == "sync_at" { "spool = \"x\"\n" } else { "" };
        let new = load(&format!("{spool}{key} = {value}{TABLES}"), &[], &[]).expect(key);
        let (merged, changes) = old.reloaded(new.clone());
        if setting.is_reloadable() {
            assert_eq!((&merged, changes.made[0], &changes.kept[..]), (&new, key, &[][..]));
            assert!(changes.made[1..].iter().all(|other| *other == tables), "{key}: {changes}");
        } else {
            assert_eq!((&merged, &changes.made[..]), (&old, &[][..]), "{key}");
            assert!(changes.kept.contains(&key) && changes.kept.len() <= 2, "{key}: {changes}");
            assert!(changes.to_string().contains(&format!("\n{key}: takes effect after a restart")));
        }
    }
    assert_eq!(old.reloaded(old.clone()), (old, Changes::default()));
}

#[test]
fn a_reload_says_which_streams_came_went_and_changed() {
    let stream = |name: &str, settings: &str| format!("[streams.{name}]\n{settings}\n");
    let old = [stream("same", ""), stream("other", ""), stream("gone", "")].concat();
    let new = [stream("same", ""), stream("other", "on_full = \"drop\""), stream("new", "")].concat();
    let (old, new) = (load(&old, &[], &[]).expect("good"), load(&new, &[], &[]).expect("good"));
    let (merged, changes) = old.reloaded(new.clone());
    assert_eq!(merged, new);
    assert_eq!(changes.to_string(), "changed: [streams.gone], [streams.new], [streams.other]");
    let many: String = (0..9).map(|number| stream(&number.to_string(), "")).collect();
    let (_, changes) = Config::default().reloaded(load(&many, &[], &[]).expect("good"));
    assert_eq!(changes.to_string(), "changed: 9 streams");
    assert_eq!(Changes::default().to_string(), "nothing is different");
}

#[test]
fn a_value_can_be_taken_back_to_what_the_machine_says() {
    let file = "shards = 3\nmemory = 67108864\nregion = \"eu-west-1\"\nendpoint_url = \"https://x\"";
    let config = load(file, &[], &[]).expect("a good file");
    assert_eq!((config.shards, config.memory), (Some(3), Some(64 << 20)));
    assert_eq!(
        (
            config.delivery_stream_defaults.region.as_deref(),
            config.delivery_stream_defaults.endpoint_url.as_deref()
        ),
        (Some("eu-west-1"), Some("https://x"))
    );
    let environment =
        [("STANDPIPE_SHARDS", "auto"), ("STANDPIPE_REGION", ""), ("STANDPIPE_ENDPOINT_URL", "")];
    let config = load(file, &environment, &[("memory", "auto")]).expect("good sources");
    assert_eq!(config, Config::default());
}

#[test]
fn what_may_be_too_large_for_its_neighbour_is_lowered() {
    let config = load("max_calls = 2\ncall_timeout = \"1s\"", &[], &[]).expect("a good file");
    assert_eq!((config.max_lane_calls, config.connect_timeout), (2, Duration::from_secs(1)));
}

#[test]
fn the_environment_may_name_the_file_and_a_flag_has_precedence() {
    let (one, two) = (TestFile::new("shards = 1"), TestFile::new("shards = 2"));
    let environment = vec![("STANDPIPE_CONFIG".into(), one.path().into_os_string())];
    let with = |file| Config::load(Sources { file, environment: environment.clone(), flags: Vec::new() });
    assert_eq!(with(None).expect("a good file").shards, Some(1));
    assert_eq!(with(Some(two.path())).expect("a good file").shards, Some(2));
}

#[test]
fn what_kubernetes_sets_for_a_service_called_standpipe_is_no_setting() {
    let environment = [
        ("STANDPIPE_SERVICE_HOST", "10.0.0.1"),
        ("STANDPIPE_SERVICE_PORT_EVENTS", "15555"),
        ("STANDPIPE_PORT", "tcp://10.0.0.1:15555"),
        ("STANDPIPE_PORT_15555_TCP_ADDR", "10.0.0.1"),
        ("STANDPIPE_ADMIN_PORT_9155_TCP", "tcp://10.0.0.1:9155"),
    ];
    assert_eq!(load("", &environment, &[]), Ok(Config::default()));
    let is_no_link = |setting: &Setting<Config>| {
        !setting.variable().contains("_PORT") && !setting.variable().contains("_SERVICE")
    };
    assert!(SETTINGS.iter().all(is_no_link));
    for (variable, what) in
        [("STANDPIPE_STREAMS_CLICKS", "streams"), ("STANDPIPE_DELIVERY_STREAMS_CLICKS", "delivery streams")]
    {
        assert_eq!(
            errors_of("", &[(variable, "x")], &[]),
            [format!("{variable}=x: {what} can be configured only in the file")]
        );
    }
}

#[test]
fn every_row_of_the_table_is_fit_to_print() {
    fn check<T>(settings: &[Setting<T>]) {
        for setting in settings {
            let key = setting.key;
            assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{key}");
            assert!(!setting.help.is_empty() && !setting.help.ends_with('.'), "{key}: {}", setting.help);
            assert!(setting.doc.is_empty() || setting.doc.ends_with(['.', ')']), "{key}: {}", setting.doc);
            assert!(!setting.doc.contains("  "), "{key}: {}", setting.doc);
            assert!(setting.kind.limits().ends_with('.'), "{key}");
        }
    }
    check(SETTINGS);
    check(STREAM_SETTINGS);
    check(DELIVERY_STREAM_SETTINGS);
}

#[test]
fn addresses_and_destinations_print_as_they_are_written() {
    for text in ["127.0.0.1:15555", "[::1]:15555", "unix:/run/standpipe.sock"] {
        assert_eq!(text.parse::<ListenAddress>().expect(text).to_string(), text);
    }
    for text in ["directory:./a b", "firehose", "null"] {
        assert_eq!(text.parse::<DestinationChoice>().expect(text).to_string(), text);
    }
    assert!(format!("unix:{}", "x".repeat(107)).parse::<ListenAddress>().is_ok());
    assert!(format!("unix:{}", "x".repeat(108)).parse::<ListenAddress>().is_err());
}

proptest::proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(
        text in "([a-z_.]{0,9}|linger|streams|=|\\[|\\]|\"|\n| |[0-9]|#|\\{|\\}|,|'|\\PC){0,40}"
    ) {
        let _ = load(&text, &[], &[]);
    }

    #[test]
    fn no_word_makes_a_setting_panic(word in "\\PC*") {
        for setting in SETTINGS {
            let _ = load("", &[(&setting.variable(), &word)], &[(setting.key, &word)]);
        }
    }
}
