//! JSON the way Python's `json.dumps` writes it, and JSON as template values.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The arguments of `json.dumps` that templates use.
#[derive(Clone, Debug)]
pub(super) struct Style {
    item_separator: String,
    key_separator: String,
    indent: Option<usize>,
    sort_keys: bool,
    ascii: bool,
}

impl Style {
    pub(super) fn from_kwargs(kwargs: &Kwargs) -> Result<Self, Error> {
        let indent: Option<usize> = kwargs.get("indent")?;
        let separators: Option<(String, String)> = match kwargs.get::<Option<Value>>("separators")? {
            None => None,
            Some(pair) => {
                let text = |at: usize| {
                    pair.get_item_by_index(at).ok().and_then(|part| part.as_str().map(str::to_owned))
                };
                text(0).zip(text(1))
            }
        };
        let default_item = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) =
            separators.unwrap_or_else(|| (default_item.to_owned(), ": ".to_owned()));
        Ok(Self {
            item_separator,
            key_separator,
            indent,
            sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
            ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        })
    }
}

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
    #[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and open")]
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&value.to_string()),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), style, text),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let layout = Layout { style, depth, empty: items.is_empty() };
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                layout.before_item(at, text);
                write(item, style, depth + 1, text)?;
            }
            layout.after_items(text);
            text.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort_by_key(ToString::to_string);
            }
            let layout = Layout { style, depth, empty: keys.is_empty() };
            text.push('{');
            for (at, key) in keys.iter().enumerate() {
                layout.before_item(at, text);
                quote(&key.to_string(), style, text);
                text.push_str(&style.key_separator);
                write(&value.get_item(key)?, style, depth + 1, text)?;
            }
            layout.after_items(text);
            text.push('}');
        }
        kind => {
            let reason = format!("a value of kind {kind} has no JSON form");
            return Err(Error::new(ErrorKind::BadSerialization, reason));
        }
    }
    Ok(())
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
        if let Some(indent) = self.style.indent {
            text.push('\n');
            text.push_str(&" ".repeat(indent * depth));
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
            other if style.ascii && !other.is_ascii() => {
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

    fn style(indent: Option<usize>) -> Style {
        let item_separator = if indent.is_some() { "," } else { ", " }.to_owned();
        Style { item_separator, key_separator: ": ".to_owned(), indent, sort_keys: false, ascii: false }
    }

    /// Expected texts are what `json.dumps(value, ensure_ascii=False[, indent=2])` of Python prints.
    #[test]
    fn it_writes_what_python_writes() {
        let value = json!({"b": [1, 2.5, null, true], "a": "é\n\"<&>", "empty": {}, "none": []});
        let text = dumps(&value_of(&value), &style(None)).unwrap();
        assert_eq!(text, r#"{"b": [1, 2.5, null, true], "a": "é\n\"<&>", "empty": {}, "none": []}"#);
        let text = dumps(&value_of(&json!({"a": [1, {}]})), &style(Some(2))).unwrap();
        assert_eq!(text, "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
    }

    #[test]
    fn ascii_only_when_asked() {
        let ascii = Style { ascii: true, ..style(None) };
        assert_eq!(dumps(&Value::from("é😀"), &ascii).unwrap(), r#""\u00e9\ud83d\ude00""#);
    }
}
