//! The environment and the flags: sources in which every value is a word.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::Config;
use super::errors::{Errors, Place, did_you_mean, shown};
use super::named::Named;
use super::raw::{Given, Layer, Raw, Target};
use super::setting::{Kind, Setting};
use super::table::SETTINGS;

/// What the names of all variables begin with.
const PREFIX: &str = "STANDPIPE_";

/// The variable that names the file where no flag does.
const FILE_VARIABLE: &str = "STANDPIPE_CONFIG";

/// Reads the variables that begin with `STANDPIPE_`, and the file's path where one of them gives it.
pub(super) fn read_environment(
    environment: &[(OsString, OsString)],
    errors: &mut Errors,
) -> (Layer, Option<PathBuf>) {
    let mut layer = Layer::default();
    let mut file = None;
    for (name, value) in environment {
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        if name == FILE_VARIABLE {
            file = Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty());
        } else if !is_service_link(&name) {
            read_variable(&name, value, &mut layer, errors);
        }
    }
    (layer, file)
}

fn read_variable(name: &str, value: &OsStr, layer: &mut Layer, errors: &mut Errors) {
    let place = Place::Environment(format!("{}={}", shown(name), shown(&value.to_string_lossy())));
    let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) else {
        return errors.push(place, no_such_variable(name));
    };
    match value.to_str() {
        Some(word) => layer.given.push(given(setting, Raw::Word(word.to_owned()), place)),
        None => errors.push(place, "not UTF-8"),
    }
}

fn no_such_variable(name: &str) -> String {
    for named in Named::ALL {
        if name[PREFIX.len()..].starts_with(&named.key().to_ascii_uppercase()) {
            return format!("{}s can be configured only in the file", named.what());
        }
    }
    let variables: Vec<_> = SETTINGS.iter().map(Setting::variable).chain([FILE_VARIABLE.into()]).collect();
    let known = variables.iter().map(|variable| &variable[PREFIX.len()..]);
    let suggestion = did_you_mean(&name[PREFIX.len()..], known, '`').replacen('`', &format!("`{PREFIX}"), 1);
    format!("no such setting{suggestion}")
}

/// Whether Kubernetes may have set this variable, as it does in every container for a service called
/// `standpipe` or `standpipe-…` (`STANDPIPE_SERVICE_HOST`, `STANDPIPE_PORT_15555_TCP_ADDR`). No setting's
/// name looks so.
fn is_service_link(name: &str) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || name.ends_with("_PORT")
}

/// Reads the flags as the command line gave them: (key, value), a list's key once an element.
pub(super) fn read_flags(flags: &[(String, OsString)], errors: &mut Errors) -> Layer {
    let mut layer = Layer::default();
    for (key, value) in flags {
        let place = Place::Flag(format!("--{} {}", key.replace('_', "-"), shown(&value.to_string_lossy())));
        let setting = SETTINGS.iter().find(|setting| setting.key == key);
        match (setting, value.to_str()) {
            (Some(setting), Some(word)) => add_flag(&mut layer, setting, word, place),
            (Some(_), None) => errors.push(place, "not UTF-8"),
            (None, _) => errors.push(place, "no such flag"),
        }
    }
    layer
}

fn add_flag(layer: &mut Layer, setting: &'static Setting<Config>, word: &str, place: Place) {
    let same = |target: &Target| matches!(target, Target::Relay(other) if other.key == setting.key);
    let earlier = layer.given.iter_mut().find(|given| same(&given.target));
    match (earlier, &setting.kind) {
        (Some(Given { raw: Raw::List(list), place: Place::Flag(text), .. }), _) => {
            list.push(word.to_owned());
            *text = shown(&format!("{text} {place}"));
        }
        (_, Kind::List { .. }) => layer.given.push(given(setting, Raw::List(vec![word.to_owned()]), place)),
        _ => layer.given.push(given(setting, Raw::Word(word.to_owned()), place)),
    }
}

fn given(setting: &'static Setting<Config>, raw: Raw, place: Place) -> Given {
    Given { target: Target::Relay(setting), raw, place }
}
