//! Methods of Python's strings, lists and dicts that templates call and the engine does not have.

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::dialect::refusal;

/// What changes a list is refused, as transformers' sandbox refuses it.
const CHANGES_LIST: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
/// And what changes a dict.
const CHANGES_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Calls `method` of `value`.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let called = match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(state, text, method, args),
        (None, ValueKind::Seq) => of_list(value, method, args),
        (None, ValueKind::Map) => of_dict(value, method),
        (None, _) => Ok(None),
    };
    match called? {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if CHANGES_LIST.contains(&method) {
        return Err(unsafe_attribute(method, "list"));
    }
    match method {
        "copy" => Ok(Some(value.clone())),
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == *wanted);
            place.map(|at| Some(Value::from(at))).ok_or_else(|| not_found("value is not in list"))
        }
        _ => Ok(None),
    }
}

fn of_dict(value: &Value, method: &str) -> Result<Option<Value>, Error> {
    if CHANGES_DICT.contains(&method) {
        return Err(unsafe_attribute(method, "dict"));
    }
    Ok((method == "copy").then(|| value.clone()))
}

fn of_string(state: &mut State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let cut =
                if method == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Value::from(cut.unwrap_or(text))
        }
        "rsplit" => rsplit(text, args)?,
        "partition" | "rpartition" => partition(text, method, args)?,
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            let before =
                at.and_then(|at| text.get(..at)).ok_or_else(|| not_found("substring not found"))?;
            Value::from(before.chars().count())
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let (affix, start, stop): (Value, i64, Option<i64>) = from_args(args)?;
            let part = Value::from(slice(text, start, stop));
            return pycompat::unknown_method_callback(state, &part, method, &[affix]).map(Some);
        }
        "swapcase" => Value::from(text.chars().map(swapped).collect::<String>()),
        "title" => Value::from(titled(text)),
        "casefold" => Value::from(text.to_lowercase().replace('ß', "ss")),
        "isdecimal" => Value::from(!text.is_empty() && text.chars().all(char::is_numeric)),
        "ljust" | "rjust" | "center" => justify(text, method, args)?,
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let zeros = "0".repeat(width.saturating_sub(text.chars().count()));
            Value::from(format!("{sign}{zeros}{digits}"))
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest = text;
    if separator.is_none() {
        rest = rest.trim_end();
    }
    while parts.len() < most {
        let found = match separator {
            Some(separator) => rest.rsplit_once(separator),
            None => rest.rsplit_once(char::is_whitespace),
        };
        let Some((before, after)) = found else { break };
        parts.push(after);
        rest = if separator.is_none() { before.trim_end() } else { before };
    }
    if separator.is_some() || !rest.trim_start().is_empty() {
        parts.push(rest);
    }
    Ok(parts.into_iter().rev().filter(|part| separator.is_some() || !part.is_empty()).collect())
}

fn partition(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    let from_left = method == "partition";
    let found = if from_left { text.split_once(separator) } else { text.rsplit_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_left => [text, "", ""],
        None => ["", "", text],
    };
    Ok(Value::from(Tuple::new(parts.map(Value::from).to_vec())))
}

fn justify(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<char>) = from_args(args)?;
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one to the left only where the width is odd too.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = |count: usize| String::from_iter(std::iter::repeat_n(fill.unwrap_or(' '), count));
    Ok(Value::from(format!("{}{text}{}", fill(left), fill(missing - left))))
}

/// `text[start:stop]`.
fn slice(text: &str, start: i64, stop: Option<i64>) -> String {
    let count = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let place = |at: i64| usize::try_from(if at < 0 { (count + at).max(0) } else { at }).unwrap_or(0);
    let (start, stop) = (place(start), stop.map_or(usize::MAX, place));
    text.chars().skip(start).take(stop.saturating_sub(start)).collect()
}

/// Each run of letters with its first one in upper case.
fn titled(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut within_word = false;
    for character in text.chars() {
        if within_word {
            titled.extend(character.to_lowercase());
        } else {
            titled.extend(character.to_uppercase());
        }
        within_word = character.is_alphabetic();
    }
    titled
}

fn swapped(character: char) -> String {
    if character.is_uppercase() {
        character.to_lowercase().collect()
    } else {
        character.to_uppercase().collect()
    }
}

fn unsafe_attribute(method: &str, kind: &str) -> Error {
    refusal(format!("access to attribute '{method}' of '{kind}' object is unsafe."))
}

fn not_found(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
