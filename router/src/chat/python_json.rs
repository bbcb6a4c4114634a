//! JSON the way Python's `json.dumps` writes it, and JSON as template values.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::python_text::{as_float, float_text};

/// Deeper values are refused: a template can put a namespace into itself.
const DEEPEST: usize = 200;

/// The arguments of `json.dumps` that templates use.
#[derive(Clone, Debug)]
pub(super) struct Style {
    item_separator: String,
    key_separator: String,
    /// One step of indentation; absent means all in one line.
    indent: Option<String>,
    keys: Keys,
    characters: Characters,
}

/// The order of an object's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    AsGiven,
    Sorted,
}

/// Which characters stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Characters {
    All,
    AsciiOnly,
}

impl Style {
    /// `indent` is a number of spaces, a text or none; `separators` a pair of texts or none.
    ///
    /// # Errors
    /// When one of them is of another kind.
    pub(super) fn new(
        indent: &Value,
        separators: &Value,
        keys: Keys,
        characters: Characters,
    ) -> Result<Self, Error> {
        let indent = match indent.as_str() {
            Some(step) => Some(step.to_owned()),
            None if indent.is_none() || indent.is_undefined() => None,
            None => {
                let width = i64::try_from(indent.clone())?.clamp(0, WIDEST_INDENT);
                Some(" ".repeat(usize::try_from(width).unwrap_or(0)))
            }
        };
        let default_item = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) = if separators.is_none() || separators.is_undefined() {
            (default_item.to_owned(), ": ".to_owned())
        } else {
            let text = |at: usize| Some(separators.get_item_by_index(at).ok()?.as_str()?.to_owned());
            text(0).zip(text(1)).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "separators is not a pair of texts")
            })?
        };
        Ok(Self { item_separator, key_separator, indent, keys, characters })
    }
}

/// Wider steps are a mistake, or an attack on memory.
const WIDEST_INDENT: i64 = 100;

/// A JSON value as templates see it; the order of keys is kept.
pub(super) fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => {
            let whole = number.as_i64().map(Value::from).or_else(|| number.as_u64().map(Value::from));
            whole.unwrap_or_else(|| Value::from(number.as_f64().unwrap_or(f64::NAN)))
        }
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(value_of).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.clone(), value_of(value))))
        }
    }
}

/// The value as text.
///
/// # Errors
/// When it holds something JSON has no word for.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut text = String::new();
    write(value, style, 0, &mut text)?;
    Ok(text)
}

fn write(value: &Value, style: &Style, depth: usize, text: &mut String) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply for JSON"));
    }
    #[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and open")]
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), style, text),
        ValueKind::Seq | ValueKind::Iterable => write_list(value, style, depth, text)?,
        ValueKind::Map => write_object(value, style, depth, text)?,
        kind => {
            let reason = format!("a value of kind {kind} has no JSON form");
            return Err(Error::new(ErrorKind::BadSerialization, reason));
        }
    }
    Ok(())
}

fn write_list(value: &Value, style: &Style, depth: usize, text: &mut String) -> Result<(), Error> {
    let items: Vec<Value> = value.try_iter()?.collect();
    let layout = Layout { style, depth, empty: items.is_empty() };
    text.push('[');
    for (at, item) in items.iter().enumerate() {
        layout.before_item(at, text);
        write(item, style, depth + 1, text)?;
    }
    layout.after_items(text);
    text.push(']');
    Ok(())
}

fn write_object(value: &Value, style: &Style, depth: usize, text: &mut String) -> Result<(), Error> {
    let mut keys: Vec<Value> = value.try_iter()?.collect();
    if style.keys == Keys::Sorted {
        keys.sort_by_key(ToString::to_string);
    }
    let layout = Layout { style, depth, empty: keys.is_empty() };
    text.push('{');
    for (at, key) in keys.iter().enumerate() {
        layout.before_item(at, text);
        quote(&key_text(key), style, text);
        text.push_str(&style.key_separator);
        write(&value.get_item(key)?, style, depth + 1, text)?;
    }
    layout.after_items(text);
    text.push('}');
    Ok(())
}

fn number(value: &Value) -> String {
    match as_float(value) {
        None => value.to_string(),
        Some(number) if number.is_nan() => "NaN".to_owned(),
        Some(f64::INFINITY) => "Infinity".to_owned(),
        Some(f64::NEG_INFINITY) => "-Infinity".to_owned(),
        Some(number) => float_text(number),
    }
}

/// Keys that are not texts are written as the values they are.
fn key_text(key: &Value) -> String {
    #[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and open")]
    match key.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number => number(key),
        _ => key.to_string(),
    }
}

/// Separators and line breaks of one list or object.
struct Layout<'a> {
    style: &'a Style,
    depth: usize,
    empty: bool,
}

impl Layout<'_> {
    fn before_item(&self, at: usize, text: &mut String) {
        if at > 0 {
            text.push_str(&self.style.item_separator);
        }
        self.line_break(self.depth + 1, text);
    }

    fn after_items(&self, text: &mut String) {
        if !self.empty {
            self.line_break(self.depth, text);
        }
    }

    fn line_break(&self, depth: usize, text: &mut String) {
        if let Some(step) = &self.style.indent {
            text.push('\n');
            text.push_str(&step.repeat(depth));
        }
    }
}

fn quote(content: &str, style: &Style, text: &mut String) {
    text.push('"');
    for character in content.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            control if control < ' ' => text.push_str(&format!("\\u{:04x}", u32::from(control))),
            other if style.characters == Characters::AsciiOnly && !matches!(other, ' '..='~') => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            plain => text.push(plain),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn style(indent: Value, characters: Characters) -> Style {
        Style::new(&indent, &Value::from(()), Keys::AsGiven, characters).unwrap()
    }

    /// Expected texts are what `json.dumps(value, ensure_ascii=False[, indent=2])` of Python prints.
    #[test]
    fn it_writes_what_python_writes() {
        let value = json!({"b": [1, 2.5, null, true], "a": "é\n\"<&>", "empty": {}, "none": []});
        let text = dumps(&value_of(&value), &style(Value::from(()), Characters::All)).unwrap();
        assert_eq!(text, r#"{"b": [1, 2.5, null, true], "a": "é\n\"<&>", "empty": {}, "none": []}"#);
        let text =
            dumps(&value_of(&json!({"a": [1, {}]})), &style(Value::from(2), Characters::All)).unwrap();
        assert_eq!(text, "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
    }

    #[test]
    fn ascii_only_when_asked() {
        let ascii = style(Value::from(()), Characters::AsciiOnly);
        assert_eq!(dumps(&Value::from("é😀"), &ascii).unwrap(), r#""\u00e9\ud83d\ude00""#);
    }
}
