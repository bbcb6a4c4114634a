//! OpenAI's dialect; nothing outside `http` knows it.

mod request;
mod response;
mod stream;

pub(super) use request::{ChatRequest, Delivery, in_openai_words};
pub(super) use response::{ChatCompletion, Choice, Envelope, Usage};
pub(super) use stream::{ChatStream, Logprobs, entries};
