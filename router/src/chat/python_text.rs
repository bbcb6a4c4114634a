//! Values as Python prints them: `str` and `repr`.

use minijinja::value::{Tuple, Value, ValueKind};

/// Deeper values are cut: a template can put a namespace into itself.
const DEEPEST: usize = 200;
/// Python writes floats from here on with an exponent.
const FIRST_EXPONENT: i32 = 16;
/// And those below this one.
const LAST_EXPONENT: i32 = -4;

/// `str(value)`; nothing for an undefined one.
pub(super) fn str_of(value: &Value) -> String {
    let mut text = String::new();
    write_str(value, 0, &mut text);
    text
}

/// `repr(float)`: the shortest digits that are read back as the same number.
pub(super) fn float_text(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (LAST_EXPONENT..FIRST_EXPONENT).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The value as a float, if it is one: whole numbers are not.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.is_number() && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

fn write_str(value: &Value, depth: usize, text: &mut String) {
    if depth > DEEPEST {
        text.push_str("...");
        return;
    }
    if let Some(number) = as_float(value) {
        text.push_str(&float_text(number));
        return;
    }
    #[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and open")]
    match value.kind() {
        ValueKind::Seq => write_list(value, depth, text),
        ValueKind::Map => write_map(value, depth, text),
        _ => text.push_str(&value.to_string()),
    }
}

fn write_repr(value: &Value, depth: usize, text: &mut String) {
    match value.as_str() {
        Some(content) => quote(content, text),
        None if value.is_undefined() => text.push_str("Undefined"),
        None => write_str(value, depth, text),
    }
}

fn write_list(value: &Value, depth: usize, text: &mut String) {
    let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
    let items: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
    text.push(if is_tuple { '(' } else { '[' });
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        write_repr(item, depth + 1, text);
    }
    if is_tuple && items.len() == 1 {
        text.push(',');
    }
    text.push(if is_tuple { ')' } else { ']' });
}

fn write_map(value: &Value, depth: usize, text: &mut String) {
    let keys: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
    text.push('{');
    for (at, key) in keys.iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        write_repr(key, depth + 1, text);
        text.push_str(": ");
        write_repr(&value.get_item(key).unwrap_or_default(), depth + 1, text);
    }
    text.push('}');
}

fn quote(content: &str, text: &mut String) {
    let mark = if content.contains('\'') && !content.contains('"') { '"' } else { '\'' };
    text.push(mark);
    for character in content.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            same if same == mark => text.extend(['\\', same]),
            visible if is_printable(visible) => text.push(visible),
            hidden => match u32::from(hidden) {
                code @ ..=0xFF => text.push_str(&format!("\\x{code:02x}")),
                code @ ..=0xFFFF => text.push_str(&format!("\\u{code:04x}")),
                code => text.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    text.push(mark);
}

/// Python's `str.isprintable`, but for characters that no version of Unicode has assigned.
fn is_printable(character: char) -> bool {
    if character == ' ' {
        return true;
    }
    let is_format = matches!(
        u32::from(character),
        0xAD | 0x600..=0x605
            | 0x61C
            | 0x6DD
            | 0x70F
            | 0x180E
            | 0x200B..=0x200F
            | 0x202A..=0x202E
            | 0x2060..=0x206F
            | 0xFEFF
            | 0xFFF9..=0xFFFB
            | 0xE0001..=0xE007F
    );
    let is_private = matches!(u32::from(character), 0xE000..=0xF8FF | 0xF0000..);
    !(character.is_control() || character.is_whitespace() || is_format || is_private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-0.0, "-0.0"),
            (1e300, "1e+300"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ];
        for (number, expected) in cases {
            assert_eq!(float_text(number), expected);
        }
    }
}
