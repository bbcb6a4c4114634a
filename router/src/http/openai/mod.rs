//! OpenAI's dialect; nothing outside `http` knows it.

mod calls;
mod completion;
mod completion_request;
mod foreign;
mod request;
mod response;
mod stream;
mod tools;

pub(super) use calls::{Listener, with_new_call_ids};
pub(super) use completion::{Completion, CompletionChoice, CompletionChunk, CompletionLogprobs};
pub(super) use completion_request::{CompletionLimits, CompletionRequest, Echo, in_completion_words};
pub(super) use request::{ChatRequest, Delivery, Usage as UsageWish, in_openai_words};
pub(super) use response::{ChatCompletion, Choice, Envelope, Usage};
pub(super) use stream::{ChatStream, Logprobs, entries};
