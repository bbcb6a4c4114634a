//! Mistral: `[TOOL_CALLS]` and a list of calls; later models name the function before `[ARGS]`.

use super::object;
use super::reader::{Reader, Stop};
use super::style::{Frame, Next, Opened};

pub(super) const OPEN: &str = "[TOOL_CALLS]";
pub(super) const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

pub(super) fn open(reader: &mut Reader<'_>, names: &[String]) -> Result<Opened, Stop> {
    reader.space();
    let list = reader.option(|reader| {
        reader.expect("[")?;
        reader.space();
        object::head(reader, names)
    })?;
    match list {
        Some(called) => Ok(Opened { called, frame: Frame::List }),
        None => Ok(Opened { called: named(reader, names)?, frame: Frame::Single }),
    }
}

pub(super) fn close(reader: &mut Reader<'_>, names: &[String], frame: Frame) -> Result<Next, Stop> {
    match frame {
        Frame::List => object_list(reader, names),
        Frame::Single => {
            let another = reader.option(|reader| {
                reader.space();
                named(reader, names)
            })?;
            Ok(another.map_or(Next::Text, Next::Call))
        }
    }
}

/// Reads what follows the arguments of a call in a list.
pub(super) fn object_list(reader: &mut Reader<'_>, names: &[String]) -> Result<Next, Stop> {
    object::tail(reader)?;
    let another = reader.option(|reader| reader.expect_all(&[","]))?;
    if another.is_some() {
        reader.space();
        return Ok(Next::Call(object::head(reader, names)?));
    }
    reader.expect_all(&["]"])?;
    Ok(Next::Text)
}

fn named(reader: &mut Reader<'_>, names: &[String]) -> Result<usize, Stop> {
    let called = reader.one_of(names.iter().map(String::as_str), "[")?;
    // The bracket is read: the two marks that may follow share it.
    reader.option(|reader| {
        reader.expect(&CALL_ID[1..])?;
        reader.alphanumeric();
        reader.expect("[")
    })?;
    reader.expect(&ARGS[1..])?;
    reader.space();
    reader.peek("{")?;
    Ok(called)
}
