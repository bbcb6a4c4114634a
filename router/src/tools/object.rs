//! A call as a JSON object: its name, then its arguments.

use super::reader::{Reader, Stop};

/// Names that the arguments go by.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

/// Reads up to the opening brace of the arguments; says which of `names` is called.
pub(super) fn head(reader: &mut Reader<'_>, names: &[String]) -> Result<usize, Stop> {
    reader.expect("{")?;
    reader.space();
    reader.option(|reader| reader.expect_all(&["\"type\"", ":", "\"function\"", ","]))?;
    reader.expect_all(&["\"name\"", ":", "\""])?;
    let called = reader.one_of(names.iter().map(String::as_str), "\"")?;
    reader.expect_all(&[",", "\""])?;
    reader.one_of(ARGUMENTS, "\"")?;
    reader.expect_all(&[":"])?;
    reader.space();
    reader.peek("{")?;
    Ok(called)
}

/// Reads what follows the arguments, an id of the model's own too.
pub(super) fn tail(reader: &mut Reader<'_>) -> Result<(), Stop> {
    reader.option(|reader| {
        reader.expect_all(&[",", "\"id\"", ":", "\""])?;
        reader.alphanumeric();
        reader.expect("\"")
    })?;
    reader.expect_all(&["}"])
}

/// A regular expression for what [`head`] reads, white space before it included, where the name matches `name`.
pub(super) fn head_regex(name: &str) -> String {
    const S: &str = r"[\x20\n\r\t]*";
    let kind = format!(r#"("type"{S}:{S}"function"{S},{S})?"#);
    format!(r#"{S}\{{{S}{kind}"name"{S}:{S}"({name})"{S},{S}"(arguments|parameters)"{S}:{S}"#)
}

/// What a model that is made to call begins with.
pub(super) fn canonical_head(name: &str, arguments: &str) -> String {
    format!(r#"{{"name": "{name}", "{arguments}": "#)
}

/// `text` as a regular expression between slashes.
pub(super) fn escaped(text: &str) -> String {
    let mut regex = String::with_capacity(text.len());
    for character in text.chars() {
        // A bracket with a backslash is a word's end.
        let is_plain = character.is_alphanumeric() || matches!(character, '_' | ' ' | '<' | '>' | ':');
        if !is_plain {
            regex.push('\\');
        }
        regex.push(character);
    }
    regex
}
