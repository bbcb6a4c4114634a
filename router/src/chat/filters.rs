//! Filters, tests and functions whose Python forms differ from the engine's.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, State};

use super::dialect::refusal;
use super::python_json::{self, Characters, Keys};
use super::python_text::str_of;

/// Adds them all.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| match value.as_str() {
        Some(_) => value.clone(),
        None => Value::from(str_of(value)),
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::Undefined, ValueKind::Seq, ValueKind::String, ValueKind::Map];
        kinds.contains(&value.kind())
    });
    // The engine loops over none as over nothing, so it counts as iterable there.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// `json.dumps` as Hugging Face sets it up: no escape of HTML, non-ASCII as it is.
fn to_json(
    value: &Value,
    ascii: Option<Value>,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let named = |name: &str| kwargs.get::<Option<Value>>(name).map(Option::unwrap_or_default);
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = or_named(indent, "indent", &kwargs)?.unwrap_or_default();
    let characters = match is_true(or_named(ascii, "ensure_ascii", &kwargs)?) {
        true => Characters::AsciiOnly,
        false => Characters::All,
    };
    let keys = if named("sort_keys")?.is_true() { Keys::Sorted } else { Keys::AsGiven };
    let style = python_json::Style::new(&indent, &named("separators")?, keys, characters)?;
    kwargs.assert_all_used()?;
    python_json::dumps(value, &style)
}

fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => kwargs.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let replaces_false = match boolean {
        Some(boolean) => boolean,
        None => kwargs.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let is_missing = value.is_undefined() || (replaces_false && !value.is_true());
    Ok(if is_missing { other } else { value.clone() })
}

/// The whole number a value begins with in Python's eyes, or `default`.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = or_named(default, "default", &kwargs)?.unwrap_or_else(|| Value::from(0));
    let base = match base {
        Some(base) => base,
        None => kwargs.get::<Option<u32>>("base")?.unwrap_or(10),
    };
    kwargs.assert_all_used()?;
    if value.is_integer() {
        return Ok(value.clone());
    }
    let Some(text) = value.as_str() else {
        return Ok(f64::try_from(value.clone()).map_or(default, |number| Value::from(number as i64)));
    };
    let text = text.trim().replace('_', "");
    let lower = text.to_lowercase();
    let digits = match base {
        16 => lower.trim_start_matches("0x"),
        8 => lower.trim_start_matches("0o"),
        2 => lower.trim_start_matches("0b"),
        _ => &lower,
    };
    if !(2..=36).contains(&base) {
        return Ok(default);
    }
    let whole = i64::from_str_radix(digits, base).ok().map(Value::from);
    let cut = || text.parse::<f64>().ok().map(|number| Value::from(number as i64));
    Ok(whole.or_else(cut).unwrap_or(default))
}

fn float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = or_named(default, "default", &kwargs)?.unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or(default, Value::from))
}

fn or_named(given: Option<Value>, name: &str, kwargs: &Kwargs) -> Result<Option<Value>, Error> {
    match given {
        Some(value) => Ok(Some(value)),
        None => kwargs.get::<Option<Value>>(name),
    }
}

/// Unlike the engine's own it keeps a line feed at the end.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = or_named(width, "width", &kwargs)?.unwrap_or_else(|| Value::from(4));
    let flag = |given: Option<bool>, name: &str| match given {
        Some(flag) => Ok(flag),
        None => kwargs.get::<Option<bool>>(name).map(Option::unwrap_or_default),
    };
    let (first, blank) = (flag(first, "first")?, flag(blank, "blank")?);
    kwargs.assert_all_used()?;
    let margin = match width.as_str() {
        Some(margin) => margin.to_owned(),
        None => " ".repeat(usize::try_from(width)?.min(MOST_INDENT)),
    };
    let mut indented = String::new();
    for (at, line) in (str_of(value) + "\n").lines().enumerate() {
        if at > 0 {
            indented.push('\n');
        }
        let is_moved = if at == 0 { first } else { blank || !line.is_empty() };
        if is_moved {
            indented.push_str(&margin);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// Wider margins are a mistake, or an attack on memory.
const MOST_INDENT: usize = 1000;

fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut escaped = String::new();
    for character in str_of(value).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            plain => escaped.push(plain),
        }
    }
    Value::from_safe_string(escaped)
}

/// `dict(mapping or pairs, **more)`.
fn dict(value: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(value) = value {
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            pairs.push(if is_map {
                (item.clone(), value.get_item(&item)?)
            } else {
                (item.get_item_by_index(0)?, item.get_item_by_index(1)?)
            });
        }
    }
    for name in kwargs.args() {
        pairs.push((Value::from(name), kwargs.peek(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// `namespace(mapping or pairs, **more)`; names cannot begin with an underscore.
fn namespace(state: &mut State, value: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let fields = dict(value, kwargs)?;
    for name in fields.try_iter()? {
        if name.as_str().is_some_and(|name| name.starts_with('_')) {
            return Err(refusal(format!(
                "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'. \
                 Please rename the attribute."
            )));
        }
    }
    Value::from_function(minijinja::functions::namespace).call(state, &[fields])
}
