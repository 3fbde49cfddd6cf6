//! The tables of delivery streams: what they set, for which of them, and which are refused.

use super::*;

const ROLE: &str = "arn:aws:iam::123456789012:role/standpipe";

fn regions<const N: usize>(config: &Config, names: [&str; N]) -> [Option<String>; N] {
    names.map(|name| config.delivery_stream_settings(name).region)
}

#[test]
fn a_name_has_precedence_over_a_template_and_the_more_exact_template_over_the_other() {
    let file = r#"
        region = "relay"
        [delivery_streams."{stream}"]
        region = "any"
        [delivery_streams."eu-{stream}"]
        region = "eu"
        [delivery_streams."{stream}-eu"]
        region = "eu-behind"
        [delivery_streams."eu-app-{stream}"]
        region = "eu-app"
        [delivery_streams.eu-clicks]
        region = "name"
    "#;
    let config = load(file, &[], &[]).expect("a good file");
    let names = ["x", "eu-x", "x-eu", "eu-x-eu", "eu-app-x", "eu-clicks", "eu-"];
    let expected = ["any", "eu", "eu-behind", "eu", "eu-app", "name", "any"];
    assert_eq!(regions(&config, names), expected.map(|region| Some(region.to_owned())));
    let none = load("[delivery_streams.a]\nregion = \"a\"", &[], &[]).expect("a good file");
    assert_eq!(regions(&none, ["a", "b"]), [Some("a".to_owned()), None]);
}

#[test]
fn a_delivery_stream_takes_the_relays_values_where_its_table_has_none() {
    let file = format!(
        r#"
        role_arn = "{ROLE}"
        external_id = "us"
        max_calls_per_second = 7
        [delivery_streams.plain]
        [delivery_streams.own]
        role_arn = "arn:aws-us-gov:iam::000000000001:role/path/to/x"
        endpoint_url = "http://127.0.0.1:5000"
        max_bytes_per_second = "5MiB"
        max_records_per_second = 1000
        max_calls_per_second = "auto"
        [delivery_streams.none]
        role_arn = ""
    "#
    );
    let config = load(&file, &[("STANDPIPE_REGION", "eu-west-1")], &[]).expect("a good file");
    let relay = DeliveryStreamSettings {
        region: Some("eu-west-1".into()),
        role_arn: Some(ROLE.into()),
        external_id: Some("us".into()),
        max_calls_per_second: Some(7),
        ..DeliveryStreamSettings::default()
    };
    assert_eq!(config.delivery_stream_settings("another"), relay);
    assert_eq!(config.delivery_stream_settings("plain"), relay);
    let own = DeliveryStreamSettings {
        role_arn: Some("arn:aws-us-gov:iam::000000000001:role/path/to/x".into()),
        endpoint_url: Some("http://127.0.0.1:5000".into()),
        max_bytes_per_second: Some(5 << 20),
        max_records_per_second: Some(1000),
        max_calls_per_second: None,
        ..relay.clone()
    };
    assert_eq!(config.delivery_stream_settings("own"), own);
    let none = DeliveryStreamSettings { role_arn: None, external_id: None, ..relay };
    assert_eq!(
        config.delivery_stream_settings("none"),
        none,
        "without a role there is no external id either"
    );
}

#[test]
fn the_delivery_streams_of_a_stream_may_be_templates() {
    let file = "[streams.clicks]\ndelivery_streams = [\"eu-{stream}\", \"{stream}-2\", \"all\"]";
    let config = load(file, &[], &[]).expect("a good file");
    assert_eq!(config.streams["clicks"].delivery_streams, ["eu-clicks", "clicks-2", "all"]);
    let long = format!("[streams.{}]\ndelivery_streams = [\"eu-{{stream}}\"]", "x".repeat(64));
    assert!(errors_of(&long, &[], &[])[0].contains("is no delivery stream's name"));
}

#[test]
fn a_table_that_no_stream_can_be_mapped_to_is_refused() {
    let wrong = [
        ("delivery_stream = \"prod-{stream}\"\n[delivery_streams.clicks]", "clicks"),
        ("delivery_stream = \"prod-{stream}\"\n[delivery_streams.\"eu-{stream}\"]", "\"eu-{stream}\""),
        ("delivery_stream = \"all\"\n[delivery_streams.al]", "al"),
        // No frame can name the stream `..`.
        ("[delivery_streams.\"..\"]", "\"..\""),
        ("only_configured_streams = true\n[streams.a]\n[delivery_streams.b]", "b"),
        // The only stream that could be mapped to it is mapped elsewhere.
        ("[streams.a]\ndelivery_streams = [\"b\"]\n[delivery_streams.a]", "a"),
        // All that it matches have tables of their own.
        (
            "only_configured_streams = true\n[streams.a]\n[delivery_streams.\"{stream}\"]\n[delivery_streams.a]",
            "\"{stream}\"",
        ),
    ];
    for (file, name) in wrong {
        let lines = errors_of(file, &[], &[("destination", "firehose")]);
        assert_eq!(lines.len(), 1, "{file}: {lines:?}");
        let said = format!(
            ": delivery_streams.{name}: no stream can be mapped to it; see the spelling, delivery_stream and the \
             streams' delivery_streams"
        );
        assert!(lines[0].ends_with(&said), "{file}: {lines:?}");
    }
    let right = [
        "[delivery_streams.a]",
        "delivery_stream = \"all\"\n[delivery_streams.all]",
        "delivery_stream = \"prod-{stream}\"\n[delivery_streams.prod-a]\n[delivery_streams.\"{stream}-eu\"]",
        "[streams.a]\ndelivery_streams = [\"x-{stream}\"]\n[delivery_streams.x-a]\n[delivery_streams.\"x{stream}\"]",
        "only_configured_streams = true\n[streams.a]\n[delivery_streams.a]",
    ];
    for file in right {
        assert!(load(file, &[], &[("destination", "firehose")]).is_ok(), "{file}");
    }
    let elsewhere = load("delivery_stream = \"all\"\n[delivery_streams.a]", &[], &[("destination", "null")]);
    assert!(elsewhere.is_ok(), "other destinations take no notice");
}

#[test]
fn a_role_is_an_arn_of_iam_with_an_account() {
    let load = |role: &str| load(&format!("role_arn = \"{role}\""), &[], &[]);
    for role in [ROLE, "arn:aws-cn:iam::123456789012:role/a/b/C+=,.@-_9", ""] {
        assert!(load(role).is_ok(), "{role}");
    }
    for role in [
        "standpipe",
        "arn:aws:iam::123456789012:user/x",
        "arn:aws:iam::12345678901:role/x",
        "arn:aws:iam::12345678901x:role/x",
        "arn:aws:iam:eu-west-1:123456789012:role/x",
        "arn:aws:sts::123456789012:assumed-role/x/y",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:iam::123456789012:role//x",
        "arn:aws:iam::123456789012:role/x/",
        "arn:aws:iam::123456789012:role/x y",
        "arn:other:iam::123456789012:role/x",
    ] {
        assert!(load(role).is_err(), "{role}");
    }
}
