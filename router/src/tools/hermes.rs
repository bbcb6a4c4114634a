//! Hermes and Qwen: each call between `<tool_call>` and `</tool_call>`.

use super::object;
use super::reader::{Reader, Stop};
use super::style::{Frame, Next, Opened};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

pub(super) fn open(reader: &mut Reader<'_>, names: &[String]) -> Result<Opened, Stop> {
    reader.space();
    Ok(Opened { called: object::head(reader, names)?, frame: Frame::Single })
}

pub(super) fn close(reader: &mut Reader<'_>) -> Result<Next, Stop> {
    object::tail(reader)?;
    reader.expect_all(&[CLOSE])?;
    Ok(Next::Text)
}
