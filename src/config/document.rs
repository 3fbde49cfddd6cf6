//! The default configuration as a file: prose and settings from the table, every setting commented out.

use std::fmt::Write as _;

use super::delivery_stream::DELIVERY_STREAM_SETTINGS;
use super::setting::Setting;
use super::stream::STREAM_SETTINGS;
use super::table::SETTINGS;

/// The longest line of prose, in characters.
const LINE_CHARACTERS: usize = 100;

const PREAMBLE: &str = "\
    Standpipe's configuration: every setting, with its default. To change one, take the # away from its \
    line. An environment variable has precedence over the file, a flag over both; a list has commas in a \
    variable, and its flag is repeated. What is reloadable takes effect when the relay gets a SIGHUP or a POST \
    /reload, everything else when it is started again.";

const STREAMS_PROSE: &str = "\
    A table for each stream that differs from the rest. The part behind the dot is the stream's name, in \
    quotes where the name itself has a dot. Tables come last in the file, and can be written only here: \
    they have no flags and no variables. All of this is reloadable, tables that come and go as well.";

const DELIVERY_STREAMS_PROSE: &str = "\
    A table for each delivery stream that differs from the rest; only for the destination \"firehose\". The part \
    behind the dot is the delivery stream's name, or a template in quotes: {stream} stands for any run of a name's \
    characters, so that the delivery streams that come from a template can be given settings. A name has precedence \
    over a template, and among templates the one with more characters of its own, or else with more of them in \
    front of {stream}. One table alone applies; what it does not have is as for the whole relay. A table that no \
    stream can be mapped to is refused.";

const DELIVERY_STREAMS_EXAMPLE: &str = r#"[delivery_streams."eu-{stream}"]
region = "eu-central-1"
role_arn = "arn:aws:iam::123456789012:role/standpipe"
external_id = "standpipe-of-example"

[delivery_streams.eu-clicks]
region = "eu-central-1"
max_bytes_per_second = "5MiB""#;

const STREAMS_EXAMPLE: &str = r#"[streams.clicks]
delivery_streams = ["clicks-prod-1", "clicks-prod-2"]
on_full = "drop"

[streams."app.log"]
packing = "single""#;

/// The whole file.
pub(super) fn default_toml() -> String {
    let mut text = String::new();
    prose(&mut text, PREAMBLE);
    let mut group = None;
    for setting in SETTINGS {
        if group != Some(setting.group) {
            heading(&mut text, setting.group.heading());
            group = Some(setting.group);
        }
        one(&mut text, setting);
    }
    let [of_stream, of_delivery_stream] =
        [tables_settings(STREAM_SETTINGS), tables_settings(DELIVERY_STREAM_SETTINGS)];
    tables(&mut text, "One stream", STREAMS_PROSE, &of_stream, STREAMS_EXAMPLE);
    tables(
        &mut text,
        "One delivery stream",
        DELIVERY_STREAMS_PROSE,
        &of_delivery_stream,
        DELIVERY_STREAMS_EXAMPLE,
    );
    text
}

fn one<T>(text: &mut String, setting: &Setting<T>) {
    text.push('\n');
    prose(text, &sentences(setting));
    let reloadable = if setting.is_reloadable() { ", reloadable" } else { "" };
    prose(text, &format!("Flag --{}, variable {}{reloadable}.", setting.flag(), setting.variable()));
    line(text, &format!("#{} = {}", setting.key, setting.default));
}

/// Tables that are named after something: what they are for, their settings, an example.
fn tables(text: &mut String, title: &str, words: &str, settings: &[String], example: &str) {
    heading(text, title);
    prose(text, words);
    for setting in settings {
        line(text, "#");
        prose(text, setting);
    }
    line(text, "#");
    line(text, "# For example:");
    line(text, "#");
    for example in example.lines() {
        line(text, format!("#   {example}").trim_end());
    }
}

fn tables_settings<T>(settings: &[Setting<T>]) -> Vec<String> {
    settings.iter().map(|setting| format!("{}: {}", setting.key, sentences(setting))).collect()
}

/// All that is to be said of a setting, in sentences.
fn sentences<T>(setting: &Setting<T>) -> String {
    let parts = [format!("{}.", setting.help), setting.doc.to_owned(), setting.kind.limits()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn heading(text: &mut String, heading: &str) {
    line(text, &format!("\n# ---- {heading} ----"));
}

/// Comment lines of `words`, broken between words.
fn prose(text: &mut String, words: &str) {
    let mut current = String::from("#");
    for word in words.split_whitespace() {
        if current.len() + 1 + word.len() > LINE_CHARACTERS {
            line(text, &current);
            current.truncate(1);
        }
        current.push(' ');
        current.push_str(word);
    }
    line(text, &current);
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String does not fail");
}
