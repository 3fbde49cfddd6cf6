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

/// Whether it has a `{stream}`.
pub(super) fn is_template(name: &str) -> bool {
    name.contains(PLACEHOLDER)
}

/// Whether a name is one that `template` can name, where `{stream}` is any run of a name's characters.
pub(super) fn matches(template: &str, name: &str) -> bool {
    let Some((before, after)) = template.split_once(PLACEHOLDER) else { return template == name };
    name.len() > before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
}

/// The stream for which `template` names `name`, if there is one.
pub(super) fn stream_of<'a>(template: &str, name: &'a str) -> Option<&'a str> {
    let (before, after) = template.split_once(PLACEHOLDER)?;
    name.strip_prefix(before)?.strip_suffix(after).filter(|stream| check_stream(stream).is_ok())
}

/// Which of two templates is meant where both match: the greater one. No two that match the same name are equal.
pub(super) fn precedence(template: &str) -> (usize, usize) {
    (template.len(), template.find(PLACEHOLDER).unwrap_or(template.len()))
}

/// Whether some name is one that both templates can name.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let (Some((before, after)), Some((other_before, other_after))) =
        (one.split_once(PLACEHOLDER), other.split_once(PLACEHOLDER))
    else {
        return matches(one, other) || matches(other, one);
    };
    let longer = |a: &str, b: &str| a.len().max(b.len());
    (before.starts_with(other_before) || other_before.starts_with(before))
        && (after.ends_with(other_after) || other_after.ends_with(after))
        && longer(before, other_before) + longer(after, other_after) < NAME_BYTES_MAX
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
    fn a_template_matches_what_it_can_be_filled_to() {
        for (template, name) in
            [("eu-{stream}", "eu-a"), ("{stream}", "a"), ("{stream}.v1", "a.v1"), ("a", "a")]
        {
            assert!(matches(template, name), "{template} {name}");
        }
        for (template, name) in
            [("eu-{stream}", "eu-"), ("eu-{stream}", "us-a"), ("aa{stream}aa", "aaa"), ("a", "b")]
        {
            assert!(!matches(template, name), "{template} {name}");
        }
        assert_eq!(stream_of("eu-{stream}", "eu-a"), Some("a"));
        assert_eq!(stream_of("{stream}.", "..."), None, "no stream may be called \"..\"");
        assert_eq!(stream_of("a", "a"), None);
    }

    #[test]
    fn templates_overlap_where_a_name_fits_both() {
        let long = format!("{}{{stream}}", "x".repeat(60));
        for (one, other) in [
            ("{stream}", "eu-{stream}"),
            ("a{stream}", "{stream}b"),
            ("ab{stream}", "a{stream}c"),
            ("a", "{stream}"),
            ("a", "a"),
        ] {
            assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
        }
        for (one, other) in
            [("eu-{stream}", "us-{stream}"), ("{stream}a", "{stream}b"), (&long, "{stream}yyyy")]
        {
            assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
        }
    }

    #[test]
    fn a_filled_template_is_a_name_or_an_error() {
        assert_eq!(fill_template("prod-{stream}", "clicks").as_deref(), Ok("prod-clicks"));
        assert_eq!(fill_template("all", "clicks").as_deref(), Ok("all"));
        assert!(fill_template("prod-{stream}", &"x".repeat(64)).is_err());
    }
}
