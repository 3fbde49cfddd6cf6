//! The names in a configuration: streams (the protocol's rule) and delivery streams (AWS's rule).

use crate::frame;

/// The most bytes of a stream's name and of a delivery stream's.
const NAME_BYTES_MAX: usize = 64;

/// What stands for the stream's name in a template.
const PLACEHOLDER: &str = "{stream}";

/// Checks a stream's name by the protocol's rule.
///
/// # Errors
///
/// A sentence that says what a name may be.
pub fn check_stream(name: &str) -> Result<(), String> {
    match (frame::is_stream_name(name.as_bytes()), is_name(name)) {
        (true, _) => Ok(()),
        (false, true) => Err(format!("no stream may be called \"{name}\"")),
        (false, false) => Err("a stream's name has 1 to 64 of A-Z a-z 0-9 _ . -".into()),
    }
}

/// Checks a delivery stream's name by Firehose's rule (`[a-zA-Z0-9_.-]{1,64}`, API reference of
/// CreateDeliveryStream).
///
/// # Errors
///
/// A sentence that says what a name may be.
pub fn check_delivery_stream(name: &str) -> Result<(), String> {
    match is_name(name) {
        true => Ok(()),
        false => {
            Err(format!("{name:?} is no delivery stream's name, which has 1 to 64 of A-Z a-z 0-9 _ . -"))
        }
    }
}

/// Checks a template for delivery streams' names: a name with `{stream}` in it at most once.
///
/// # Errors
///
/// A sentence that says what is wrong with it.
pub fn check_template(template: &str) -> Result<(), String> {
    if template.matches(PLACEHOLDER).count() > 1 {
        return Err(format!("{PLACEHOLDER} may stand in it only once"));
    }
    match is_name(&template.replace(PLACEHOLDER, "s")) {
        true => Ok(()),
        false => Err(format!(
            "not a delivery stream's name; write 1 to 64 of A-Z a-z 0-9 _ . -, with {PLACEHOLDER} \
             where the stream's name goes"
        )),
    }
}

/// The delivery stream that `template` names for `stream`.
///
/// # Errors
///
/// A sentence, where the result is too long for a delivery stream's name.
pub fn fill_template(template: &str, stream: &str) -> Result<String, String> {
    let name = template.replace(PLACEHOLDER, stream);
    check_delivery_stream(&name).map(|()| name)
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_follow_the_protocol() {
        for name in ["a", "clicks", "A-z_0.9", "...", "-", "_others", &"x".repeat(64)] {
            assert_eq!(check_stream(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "_other", "a/b", "a b", "ä", "!x", &"x".repeat(65)] {
            assert!(check_stream(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_template_takes_the_stream_once_or_not_at_all() {
        for template in ["{stream}", "prod-{stream}", "{stream}.v1", "all"] {
            assert_eq!(check_template(template), Ok(()), "{template}");
        }
        let long = "x".repeat(64) + "{stream}";
        for template in ["", "{stream}{stream}", "{strem}", "a b", "{", &long] {
            assert!(check_template(template).is_err(), "{template}");
        }
    }

    #[test]
    fn a_filled_template_is_a_name_or_an_error() {
        assert_eq!(fill_template("prod-{stream}", "clicks").as_deref(), Ok("prod-clicks"));
        assert_eq!(fill_template("all", "clicks").as_deref(), Ok("all"));
        assert!(fill_template("prod-{stream}", &"x".repeat(64)).is_err());
    }
}
