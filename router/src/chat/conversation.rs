//! What a template is given: messages, tools, documents, special tokens.

use std::collections::BTreeMap;

use minijinja::value::Value;
use serde_json::{Map, Value as Json};

use super::python_json::value_of;
use super::special_tokens::TemplateTokens;
use super::template::assistant_text;

/// Names a message's reasoning is sent under; templates read the first, a few the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Messages as a client sent them, and what else the template may write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Oldest first; each an object with a `role`.
    pub messages: Vec<Json>,
    /// Functions the model may call, as JSON schemas in OpenAI's form.
    pub tools: Vec<Json>,
    /// Texts to answer from, each an object, most with `title` and `text`.
    pub documents: Vec<Json>,
    /// Switches of this template, such as `enable_thinking`. None of them replaces what is above.
    pub variables: Map<String, Json>,
}

/// What a prompt ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The opening of the assistant's next message.
    AssistantSpeaks,
    /// The last message.
    LastMessage,
}

/// What else a template is given: no switch of a request replaces these.
pub const RESERVED_VARIABLES: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

impl Conversation {
    /// Whether its last message is an answer that is begun.
    pub fn is_begun(&self) -> bool {
        self.messages.last().and_then(assistant_text).is_some()
    }

    /// The variables of a template. A special token the model lacks is undefined, a missing list is none.
    pub(super) fn context(&self, tokens: &TemplateTokens, ending: Ending) -> Value {
        let mut context: BTreeMap<String, Value> =
            tokens.others.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
        let named = [("bos_token", &tokens.bos), ("eos_token", &tokens.eos)];
        for (name, text) in named {
            if let Some(text) = text {
                context.insert(name.to_owned(), Value::from(text.as_str()));
            }
        }
        context.extend(self.variables.iter().map(|(name, value)| (name.clone(), value_of(value))));
        let list = |items: &[Json]| match items {
            [] => Value::from(()),
            items => items.iter().map(value_of).collect(),
        };
        context.insert("messages".to_owned(), self.messages.iter().map(message).collect());
        context.insert("tools".to_owned(), list(&self.tools));
        context.insert("documents".to_owned(), list(&self.documents));
        let opens = ending == Ending::AssistantSpeaks;
        context.insert("add_generation_prompt".to_owned(), Value::from(opens));
        Value::from_pairs(context)
    }
}

/// A message as transformers shows it to templates: null fields are absent, and reasoning is there under the
/// names that templates know.
fn message(message: &Json) -> Value {
    let Some(fields) = message.as_object() else { return value_of(message) };
    let present = fields.iter().filter(|(_, value)| !value.is_null());
    let reasoning = REASONING.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
    let mut shown = Map::new();
    if let Some(reasoning) = reasoning {
        shown.insert("thinking".to_owned(), reasoning.clone());
    }
    shown.extend(present.map(|(name, value)| (name.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        shown.insert("reasoning_content".to_owned(), reasoning.clone());
    }
    value_of(&Json::Object(shown))
}

/// Makes an object of each tool call's arguments: clients of OpenAI's API send them as JSON in a text, templates
/// write them as objects. What is no such JSON stays as it is.
pub fn parse_arguments(message: &mut Map<String, Json>) {
    // Templates take a message with an empty list for one with calls.
    if message.get("tool_calls").and_then(Json::as_array).is_some_and(Vec::is_empty) {
        message.shift_remove("tool_calls");
    }
    let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut);
    for call in calls.into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let text = arguments.as_str().map(|text| if text.trim().is_empty() { "{}" } else { text });
        let parsed = text.and_then(|text| serde_json::from_str::<Map<String, Json>>(text).ok());
        if let Some(parsed) = parsed {
            *arguments = Json::Object(parsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_in_a_text_become_an_object() {
        let call = |arguments: Json| json!({"function": {"name": "f", "arguments": arguments}});
        let calls =
            [call(json!("{\"b\": 1, \"a\": []}")), call(json!("no JSON")), call(json!({"a": 1})), json!(5)];
        let mut message = Map::from_iter([("tool_calls".to_owned(), json!(calls))]);
        parse_arguments(&mut message);
        let expected =
            [call(json!({"b": 1, "a": []})), call(json!("no JSON")), call(json!({"a": 1})), json!(5)];
        assert_eq!(message.get("tool_calls"), Some(&json!(expected)));
    }
}
