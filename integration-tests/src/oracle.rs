//! What a correct stream of `/generate_stream` is.

use serde_json::Value;

/// What a whole stream said.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcript {
    /// Ids of the generated tokens.
    pub tokens: Vec<u64>,
    /// The whole text.
    pub text: String,
    /// `length`, `eos_token` or `stop_sequence`.
    pub finish_reason: String,
}

/// Reads a stream from its first event to its last.
///
/// # Panics
/// Where it breaks a rule: tokens are counted from 1 without a gap; text and details come with the last
/// event and only then; what the tokens say is what the text says.
#[track_caller]
pub fn check_stream(events: &[String]) -> Transcript {
    let events: Vec<Value> =
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
    let (last, _) = events.split_last().expect("a stream has an event");
    let mut said = String::new();
    let mut tokens = Vec::new();
    for (index, event) in events.iter().enumerate() {
        assert!(event.get("error").is_none(), "the stream failed: {event}");
        assert_eq!(event["index"], index + 1, "tokens are counted from 1 without a gap: {event}");
        let is_last = index + 1 == events.len();
        assert_eq!(event["generated_text"].is_string(), is_last, "the text comes at the end: {event}");
        assert_eq!(event["details"].is_object(), is_last, "the details come at the end: {event}");
        let token = &event["token"];
        tokens.push(token["id"].as_u64().expect("a token has an id"));
        assert!(
            token["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0),
            "a log-probability: {event}"
        );
        if token["special"] == Value::Bool(false) {
            said += token["text"].as_str().expect("a token has a text");
        }
    }
    let text = last["generated_text"].as_str().unwrap_or_default().to_owned();
    assert_eq!(said.trim_start(), text.trim_start(), "the tokens say what the text says");
    assert_eq!(last["details"]["generated_tokens"], tokens.len(), "tokens are counted right");
    let finish_reason = last["details"]["finish_reason"].as_str().unwrap_or_default().to_owned();
    assert!(
        ["length", "eos_token", "stop_sequence"].contains(&finish_reason.as_str()),
        "{finish_reason:?}"
    );
    Transcript { tokens, text, finish_reason }
}

/// The same of an answer of `/generate` that was asked for details.
///
/// # Panics
/// Where it breaks a rule.
#[track_caller]
pub fn check_answer(answer: &Value) -> Transcript {
    let details = &answer["details"];
    let tokens = details["tokens"].as_array().expect("details name the tokens");
    let tokens: Vec<u64> =
        tokens.iter().map(|token| token["id"].as_u64().expect("a token has an id")).collect();
    assert_eq!(details["generated_tokens"], tokens.len(), "tokens are counted right");
    Transcript {
        tokens,
        text: answer["generated_text"].as_str().expect("an answer has a text").to_owned(),
        finish_reason: details["finish_reason"].as_str().expect("it ended for a reason").to_owned(),
    }
}
