//! The TOML file: from text to raw values with their lines. Keys that do not exist are refused here; what the
//! values mean is not known here.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::errors::{Errors, Place, did_you_mean, shown};
use super::named::Named;
use super::raw::{Given, Layer, Raw, Target};
use super::table::SETTINGS;

/// The largest file that is read: room for 20,000 streams with all their settings.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Reads the file at `path`. What is wrong goes to `errors`; what is right is returned nevertheless.
pub(super) fn read(path: &Path, errors: &mut Errors) -> Layer {
    let name: Arc<str> = path.display().to_string().into();
    match read_text(path) {
        Ok(text) => parse(name, &text, errors),
        Err(message) => {
            errors.push(Place::File(name), message);
            Layer::default()
        }
    }
}

/// The defaults of the table, read as a file would be.
pub(super) fn read_defaults() -> Layer {
    let mut errors = Errors::default();
    let text: String =
        SETTINGS.iter().map(|setting| format!("{} = {}\n", setting.key, setting.default)).collect();
    let mut layer = parse("defaults".into(), &text, &mut errors);
    debug_assert_eq!(errors, Errors::default());
    for given in &mut layer.given {
        given.place = Place::Default;
    }
    layer
}

fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("too large for a configuration, which has at most 16 MiB".into());
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        format!("not UTF-8 on line {}", 1 + before.iter().filter(|byte| **byte == b'\n').count())
    })
}

/// Reads a text, which is called `path` in what is said of it.
pub(super) fn parse(path: Arc<str>, text: &str, errors: &mut Errors) -> Layer {
    let mut reader = Reader::new(path, text, errors);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in syntax_errors {
        reader.syntax_error(&error);
    }
    reader.document(document.get_ref());
    reader.layer
}

/// A walk over one parsed file.
struct Reader<'a> {
    path: Arc<str>,
    text: &'a str,
    /// Where each line begins, in bytes.
    line_starts: Vec<usize>,
    /// The lines with a syntax error, of which nothing else is said: their values are a guess.
    broken_lines: BTreeSet<usize>,
    layer: Layer,
    errors: &'a mut Errors,
}

impl<'a> Reader<'a> {
    fn new(path: Arc<str>, text: &'a str, errors: &'a mut Errors) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { path, text, line_starts, broken_lines: BTreeSet::new(), layer: Layer::default(), errors }
    }

    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    fn place(&self, offset: usize, text: String) -> Place {
        Place::Line(self.path.clone(), self.line(offset), text)
    }

    /// One error a line: what follows the first is most often its echo.
    fn syntax_error(&mut self, error: &toml::de::Error) {
        let offset = error.span().map_or(0, |span| span.start);
        let line = self.line(offset);
        if !self.broken_lines.insert(line) {
            return;
        }
        let written = self.text[self.line_starts[line - 1]..].lines().next().unwrap_or_default();
        self.errors.push(self.place(offset, shown(written.trim())), format!("not TOML: {}", error.message()));
    }

    fn document(&mut self, document: &DeTable<'_>) {
        for (key, value) in document {
            let name: &str = key.get_ref();
            if let Some(named) = Named::ALL.into_iter().find(|named| named.key() == name) {
                self.tables(named, key, value);
            } else if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == name) {
                self.given("", key, value, Target::Relay(setting));
            } else {
                let known = SETTINGS.iter().map(|setting| setting.key).chain(Named::ALL.map(Named::key));
                self.refuse(
                    "",
                    key,
                    value.span(),
                    format!("no such setting{}", did_you_mean(name, known, '`')),
                );
            }
        }
    }

    fn tables(&mut self, named: Named, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let (all, what) = (named.key(), named.what());
        let Some(tables) = value.get_ref().as_table() else {
            let message = format!("not a table; write [{all}.NAME] for each {what}");
            return self.refuse("", key, value.span(), message);
        };
        let prefix = format!("{all}.");
        for (name, settings) in tables {
            if let Err(message) = named.check_name(name.get_ref()) {
                self.refuse(&prefix, name, settings.span(), message);
            } else if let Some(table) = settings.get_ref().as_table() {
                let place = self.assignment(&prefix, name, settings.span());
                self.layer.tables.push((named, name.get_ref().to_string(), place));
                self.table(named, name.get_ref(), table);
            } else {
                let message = format!("not a {what}'s table; write [{all}.NAME] and its settings below");
                self.refuse(&prefix, name, settings.span(), message);
            }
        }
    }

    fn table(&mut self, named: Named, name: &str, settings: &DeTable<'_>) {
        let prefix = format!("[{}.{}] ", named.key(), quoted_key(name));
        for (key, value) in settings {
            match named.target(name, key.get_ref()) {
                Some(target) => self.given(&prefix, key, value, target),
                None => {
                    let message = no_such_setting(named, name, key.get_ref(), value);
                    self.refuse(&prefix, key, value.span(), message);
                }
            }
        }
    }

    fn given(
        &mut self,
        prefix: &str,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        target: Target,
    ) {
        let place = self.assignment(prefix, key, value.span());
        if !self.is_broken(key) {
            self.layer.given.push(Given { target, raw: raw(value.get_ref()), place });
        }
    }

    fn refuse(
        &mut self,
        prefix: &str,
        key: &Spanned<DeString<'_>>,
        value: Range<usize>,
        message: impl Into<String>,
    ) {
        let place = self.assignment(prefix, key, value);
        if !self.is_broken(key) {
            self.errors.push(place, message);
        }
    }

    fn is_broken(&self, key: &Spanned<DeString<'_>>) -> bool {
        self.broken_lines.contains(&self.line(key.span().start))
    }

    /// `key = value` as it was written; a table is shown as its key alone.
    fn assignment(&self, prefix: &str, key: &Spanned<DeString<'_>>, value: Range<usize>) -> Place {
        let name = quoted_key(key.get_ref());
        let written = self.text.get(value).unwrap_or_default();
        let is_header = written.starts_with('[') && self.text[..key.span().start].ends_with(['[', '.']);
        let text = match written {
            "" => format!("{prefix}{name}"),
            _ if is_header => format!("{prefix}{name}"),
            _ => format!("{prefix}{name} = {}", shown(written)),
        };
        self.place(key.span().start, text)
    }
}

/// What to say of a key in a table that is named after something, where it is none of its settings.
fn no_such_setting(named: Named, name: &str, key: &str, value: &Spanned<DeValue<'_>>) -> String {
    let (all, what) = (named.key(), named.what());
    if value.get_ref().is_table() {
        return format!(
            "no such setting of a {what}; a name with a dot needs quotes: [{all}.\"{name}.{key}\"]"
        );
    }
    if SETTINGS.iter().any(|setting| setting.key == key) {
        return format!("`{key}` is a setting of the whole relay; write it above the first [{all}.NAME]");
    }
    format!("no such setting of a {what}{}", did_you_mean(key, named.keys(), '`'))
}

/// A key as TOML wants it written: in quotes where it is more than letters, digits, `_` and `-`.
fn quoted_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match !key.is_empty() && key.bytes().all(is_bare) {
        true => key.to_owned(),
        false => shown(&format!("\"{key}\"")),
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).map_or(Raw::Other, Raw::Integer)
        }
        DeValue::Array(values) => {
            let texts = values.iter().map(|value| value.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<_>>().map_or(Raw::Other, Raw::List)
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Raw::Other,
    }
}
