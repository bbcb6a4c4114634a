//! Plain JSON, for models whose template has no syntax of its own: an answer that is nothing but
//! `{"name", "arguments"}`, or a list of such objects.

use super::mistral::object_list;
use super::object;
use super::reader::{Reader, Stop};
use super::style::{Frame, Next, Opened};

pub(super) fn open(reader: &mut Reader<'_>, names: &[String]) -> Result<Opened, Stop> {
    reader.space();
    let list = reader.option(|reader| reader.expect("["))?;
    reader.space();
    let called = object::head(reader, names)?;
    Ok(Opened { called, frame: if list.is_some() { Frame::List } else { Frame::Single } })
}

pub(super) fn close(reader: &mut Reader<'_>, names: &[String], frame: Frame) -> Result<Next, Stop> {
    match frame {
        Frame::List => object_list(reader, names),
        Frame::Single => object::tail(reader).map(|()| Next::Text),
    }
}
