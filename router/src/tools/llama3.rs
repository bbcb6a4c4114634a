//! Llama 3.1 and later: an answer that is nothing but `{"name", "parameters"}`, or such a call after
//! `<|python_tag|>`; several with `;` between them.

use super::object;
use super::reader::{Reader, Stop};
use super::style::{Frame, Next, Opened};

pub(super) const TAG: &str = "<|python_tag|>";

pub(super) fn open(reader: &mut Reader<'_>, names: &[String]) -> Result<Opened, Stop> {
    reader.space();
    Ok(Opened { called: object::head(reader, names)?, frame: Frame::Single })
}

pub(super) fn close(reader: &mut Reader<'_>, names: &[String]) -> Result<Next, Stop> {
    object::tail(reader)?;
    let another = reader.option(|reader| {
        reader.expect_all(&[";"])?;
        reader.space();
        object::head(reader, names)
    })?;
    Ok(another.map_or(Next::Text, Next::Call))
}
