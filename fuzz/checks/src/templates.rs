//! Chat templates and conversations: a template, a zero byte, and an object with `messages`, `tools`, `documents` and
//! `variables`.

use std::time::SystemTime;

use lockstep_router::chat::{
    ChatTemplate, Clock, Conversation, Ending, NamedTemplate, TemplateTokens, parse_arguments,
};
use serde_json::Value;

/// The same prompt each time, or an error that says why there is none.
pub fn check(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let source = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let conversation: Value = serde_json::from_slice(parts.next().unwrap_or_default()).unwrap_or_default();
    let conversation = conversation_of(&conversation);
    let tokens = TemplateTokens { bos: Some("<s>".to_owned()), ..TemplateTokens::default() };
    let template = NamedTemplate { name: "default".to_owned(), source };
    let compiled = ChatTemplate::of_several(&[template], tokens, Clock::Fixed(SystemTime::UNIX_EPOCH));
    let Ok(template) = compiled else { return };
    let _ = (template.reads_clock(), template.sources());
    for ending in [Ending::AssistantSpeaks, Ending::LastMessage] {
        let [first, second] = [(); 2].map(|()| template.apply(&conversation, ending));
        assert_eq!(first, second);
    }
    let [first, second] = [(); 2].map(|()| template.render(&conversation));
    assert_eq!(first.is_ok(), second.is_ok());
}

fn conversation_of(json: &Value) -> Conversation {
    let list = |name: &str| json[name].as_array().cloned().unwrap_or_default();
    let mut messages = list("messages");
    messages.iter_mut().filter_map(Value::as_object_mut).for_each(parse_arguments);
    Conversation {
        messages,
        tools: list("tools"),
        documents: list("documents"),
        variables: json["variables"].as_object().cloned().unwrap_or_default(),
    }
}
