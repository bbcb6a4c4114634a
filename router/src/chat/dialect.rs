//! Jinja as transformers sets it up: Python's methods, its JSON, its dates, a refusal, a tag of its own.

use std::error::Error as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use thiserror::Error as ThisError;

use super::clock::{Clock, strftime_utc};
use super::python_text::str_of;
use super::{filters, methods};

/// The function that tells templates the date and the time.
pub(super) const NOW: &str = "strftime_now";

/// Renders end after this many of the engine's own steps: a template is data and must not run for ever.
/// A long conversation of 1,000 messages takes about 100,000.
const FUEL: u64 = 50_000_000;

/// Marks an error as a template's own word.
#[derive(Debug, ThisError)]
#[error("the template refuses")]
struct Refusal;

/// A template's refusal in its own words.
pub(super) fn refusal(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message).with_source(Refusal)
}

/// Whether a render failed over something that is not there.
pub(super) fn is_about_missing(error: &Error) -> bool {
    if error.source().is_some_and(|source| source.is::<Refusal>()) {
        return false;
    }
    let names_undefined = error.detail().is_some_and(|detail| detail.contains("` is undefined"));
    let missing = [ErrorKind::UndefinedError, ErrorKind::UnknownMethod, ErrorKind::UnknownFunction];
    names_undefined || missing.contains(&error.kind())
}

/// An environment without templates.
pub(super) fn environment(clock: Clock) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|output, _state, value| {
        let written = match value.as_str() {
            Some(text) => output.write_str(text),
            None if value.is_undefined() => Ok(()),
            None => output.write_str(&str_of(value)),
        };
        written.map_err(Error::from)
    });
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(refusal(str_of(message)))
    });
    environment.add_function(NOW, move |format: String| strftime_utc(&format, clock.now()));
    filters::add(&mut environment);
    Ok(environment)
}

/// A template's text as the engine takes it: line ends as Python's jinja2 sees them, and without the tag that
/// only transformers has.
pub(super) fn prepared(source: &str) -> String {
    without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"))
}

/// `{% generation %}` marks the assistant's text for training and prints nothing. As a `with` without variables
/// it keeps its scope and its control of white space.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, opened) = rest.split_at(start);
        text.push_str(before);
        let length = match opened.as_bytes().get(1) {
            Some(b'#') => opened.find("#}").map(|at| at + 2),
            Some(b'{') => end_of_code(opened, "}}"),
            Some(b'%') => end_of_code(opened, "%}"),
            _ => Some(1),
        };
        // What does not end is the engine's to complain about.
        let Some(length) = length else {
            rest = opened;
            break;
        };
        let (part, after) = opened.split_at(length);
        rest = after;
        match tag_word(part) {
            Some("generation") => text.push_str(&part.replace("generation", "with")),
            Some("endgeneration") => text.push_str(&part.replace("endgeneration", "endwith")),
            Some("raw") => {
                text.push_str(part);
                let (raw, after) = rest.split_at(end_of_raw(rest));
                text.push_str(raw);
                rest = after;
            }
            _ => text.push_str(part),
        }
    }
    text.push_str(rest);
    text
}

/// The only word of a tag, such as `raw` of `{%- raw %}`.
fn tag_word(part: &str) -> Option<&str> {
    let inner = part.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

/// Where the tag that ends a raw block begins; the end of the text where there is none.
fn end_of_raw(text: &str) -> usize {
    let tags = text.match_indices("{%").filter(|(at, _)| {
        let tag = text.get(*at..).unwrap_or_default();
        let end = tag.find("%}").map(|end| end + 2);
        end.and_then(|end| tag_word(tag.get(..end)?)) == Some("endraw")
    });
    tags.map(|(at, _)| at).next().unwrap_or(text.len())
}

/// Length of the code at the start of `text` with its `close`, which does not count within quotes.
fn end_of_code(text: &str, close: &str) -> Option<usize> {
    let mut quoted = None;
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(2) {
        match quoted {
            Some(_) if escaped => escaped = false,
            Some(_) if character == '\\' => escaped = true,
            Some(mark) if character == mark => quoted = None,
            Some(_) => {}
            None if character == '"' || character == '\'' => quoted = Some(character),
            None if text.get(at..)?.starts_with(close) => return Some(at + close.len()),
            None => {}
        }
    }
    None
}
