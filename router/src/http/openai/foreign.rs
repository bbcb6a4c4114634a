//! Fields of vLLM's routes that change answers and are not served: refused, unless they change nothing here.

use serde_json::Value;

use crate::chat::Conversation;
use crate::error::ApiError;
use crate::http::fields::Fields;
use crate::validation::{EndOfSequence, StoppingRequest};

/// Those of both routes.
pub(super) fn refuse_foreign(body: &mut Fields, stopping: &StoppingRequest) -> Result<(), ApiError> {
    fn is_empty(value: &Value) -> bool {
        value.as_array().is_some_and(Vec::is_empty)
    }
    let least = |value: &Value| value.as_u64().is_some_and(|least| least <= least_tokens(stopping));
    body.refuse_unless("min_tokens", least)?;
    body.refuse_unless("stop_token_ids", is_empty)?;
    body.refuse_unless("bad_words", is_empty)?;
    for name in ["allowed_token_ids", "prompt_logprobs", "truncate_prompt_tokens"] {
        body.refuse_unless(name, Value::is_null)?;
    }
    body.refuse_unless("use_beam_search", |value| value == false)?;
    body.refuse_unless("include_stop_str_in_output", |value| value == false)?;
    body.refuse_unless("skip_special_tokens", |value| value == true)
}

/// Tokens that an answer has in any case.
fn least_tokens(stopping: &StoppingRequest) -> u64 {
    let length_alone_ends = stopping.end_tokens == EndOfSequence::Ignore && stopping.stop.is_empty();
    stopping.max_new_tokens.filter(|_| length_alone_ends).map_or(0, u64::from)
}

/// What a prompt ends with is told by its last message: an answer that is begun is gone on with, and nothing else is. The
/// words for it are taken where they say the same.
pub(super) fn refuse_other_endings(body: &mut Fields, conversation: &Conversation) -> Result<(), ApiError> {
    let continues = body.flag("continue_final_message")?;
    if continues && !conversation.is_begun() {
        let message = "`continue_final_message` needs a text of the assistant as the last of `messages`";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    body.refuse_unless("add_generation_prompt", |value| value == true || (continues && value == false))
}
