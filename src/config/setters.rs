//! The settings whose text needs more than one line to check.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use super::Config;
use super::choices::ListenAddress;
use super::errors::{did_you_mean, shown};

pub(super) fn set_listen(config: &mut Config, texts: &[&str]) -> Result<(), String> {
    let addresses = each(texts, "an address", str::parse::<ListenAddress>)?;
    let may_repeat = |address: &ListenAddress| matches!(address, ListenAddress::Tcp(tcp) if tcp.port() == 0);
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) && !may_repeat(address) {
            return Err(format!("{} stands in it twice", shown(&address.to_string())));
        }
    }
    config.listen = addresses;
    Ok(())
}

pub(super) fn read_endpoint_url(text: &str) -> Result<Option<String>, String> {
    if !text.is_empty() {
        check_url(text)?;
    }
    Ok(unless_empty(text))
}

fn check_url(text: &str) -> Result<(), String> {
    let uri: Option<axum::http::Uri> = text.parse().ok();
    let scheme = uri.as_ref().and_then(|uri| uri.scheme_str());
    match scheme {
        Some("http" | "https") => Ok(()),
        _ => Err("not an endpoint; write a URL such as \"https://firehose.eu-central-1.amazonaws.com\" \
                  or \"http://127.0.0.1:5000\""
            .into()),
    }
}

pub(super) fn read_region(text: &str) -> Result<Option<String>, String> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.len() > 64 || !text.bytes().all(legal) {
        return Err("not a region; write one such as \"eu-central-1\"".into());
    }
    Ok(unless_empty(text))
}

/// The most characters of a role with its path: 512 of the path and 64 of the name (IAM's quotas).
const ROLE_CHARACTERS_MAX: usize = 576;

pub(super) fn read_role_arn(text: &str) -> Result<Option<String>, String> {
    if !text.is_empty() && !is_role_arn(text) {
        return Err("not a role's ARN; write one such as \"arn:aws:iam::123456789012:role/standpipe\"".into());
    }
    Ok(unless_empty(text))
}

/// Whether it is `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`, with twelve digits for the account.
fn is_role_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts[..] else { return false };
    let is_partition = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    let is_of_role = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-/".contains(&byte);
    let Some(role) = resource.strip_prefix("role/") else { return false };
    partition.starts_with("aws")
        && partition.bytes().all(is_partition)
        && account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && role.len() <= ROLE_CHARACTERS_MAX
        && !role.starts_with('/')
        && !role.ends_with('/')
        && !role.is_empty()
        && role.bytes().all(is_of_role)
}

/// As STS has it for `ExternalId` (API reference of AssumeRole).
pub(super) fn read_external_id(text: &str) -> Result<Option<String>, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&byte);
    if !text.is_empty() && (!(2..=1224).contains(&text.len()) || !text.bytes().all(legal)) {
        return Err("not an external id; write 2 to 1,224 of A-Z a-z 0-9 and + = , . @ : / - _".into());
    }
    Ok(unless_empty(text))
}

fn unless_empty(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// The longest name for the hand-over: the address that it becomes has 107 octets at most (unix(7)).
const HANDOVER_NAME_MAX: usize = 64;

pub(super) fn set_handover(config: &mut Config, text: &str) -> Result<(), String> {
    if text.len() > HANDOVER_NAME_MAX || !text.bytes().all(|octet| octet.is_ascii_graphic()) {
        return Err(format!("not a name; write at most {HANDOVER_NAME_MAX} letters, digits and signs"));
    }
    config.handover = text.to_owned();
    Ok(())
}

/// A word that is no level would be taken for the name of a part, all of whose lines are wanted: a misspelt
/// level would silence everything else, so it is refused.
pub(super) fn set_log(config: &mut Config, text: &str) -> Result<(), String> {
    let bare =
        text.split(',').map(str::trim).filter(|directive| !directive.contains(['=', '[', ']', '{', '}']));
    for word in bare {
        if word.parse::<LevelFilter>().is_err() {
            let levels = ["off", "error", "warn", "info", "debug", "trace"];
            let suggestion = did_you_mean(word, levels, '"');
            return Err(format!("\"{}\" is no level; write a level or part=level{suggestion}", shown(word)));
        }
    }
    // EnvFilter cuts a trimmed directive at places of the untrimmed one, in the middle of a character where it can.
    if !text.is_ascii() {
        return Err(format!("\"{}\" is no log filter: it may have ASCII characters only", shown(text)));
    }
    EnvFilter::try_new(text).map_err(|error| format!("not a log filter: {error}"))?;
    config.log = text.to_owned();
    Ok(())
}

/// Reads each element of a list that may not be empty.
pub(super) fn each<V>(
    texts: &[&str],
    what: &str,
    read: impl Fn(&str) -> Result<V, String>,
) -> Result<Vec<V>, String> {
    if texts.is_empty() {
        return Err(format!("empty; give at least {what}"));
    }
    let read_one = |text: &&str| match texts.len() {
        1 => read(text),
        _ => read(text).map_err(|message| format!("\"{}\": {message}", shown(text))),
    };
    texts.iter().map(read_one).collect()
}
