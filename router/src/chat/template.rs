//! The model's own chat template, rendered as Python's jinja2 renders it for Hugging Face models.

use std::sync::Arc;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use thiserror::Error as ThisError;

use super::clock::strftime_utc;
use super::python_json;

/// Renders end after this many of the engine's own steps: a template is data and must not run for ever.
/// A long conversation of 1,000 messages takes about 100,000.
const FUEL: u64 = 50_000_000;

const NAME: &str = "chat_template";

/// Why a conversation has no prompt.
#[derive(Debug, ThisError, PartialEq, Eq)]
pub enum TemplateError {
    /// The model has none.
    #[error("the model has no chat template")]
    Missing,
    /// It uses something that is not there.
    #[error("{0}")]
    MissingVariable(String),
    /// It does not parse, refuses the messages, or fails.
    #[error("{0}")]
    Failed(String),
}

/// Special tokens a template may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// The beginning of a sequence.
    pub bos: Option<String>,
    /// The end of a sequence.
    pub eos: Option<String>,
}

/// Messages as a client sent them, each content a plain text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Oldest first.
    pub messages: Vec<serde_json::Value>,
}

/// What a prompt ends with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The opening of the assistant's next message.
    AssistantSpeaks,
    /// The last message.
    LastMessage,
}

/// A model's template, compiled.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    tokens: TemplateTokens,
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn compile(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| strftime_utc(&format, SystemTime::now()));
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(failed)?;
        Ok(Self { environment: Arc::new(environment), tokens })
    }

    /// The prompt of a conversation. Where the last message is the assistant's, the prompt ends with its
    /// text, to be continued.
    ///
    /// # Errors
    /// When the template refuses the messages or fails.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let begun = conversation.messages.last().and_then(assistant_text);
        let Some(begun) = begun else {
            return self.render_messages(&conversation.messages, Ending::AssistantSpeaks);
        };
        if begun.trim().is_empty() {
            let before = conversation.messages.split_last().map_or(&[][..], |(_, before)| before);
            return self.render_messages(before, Ending::AssistantSpeaks);
        }
        self.render_begun(&conversation.messages, begun)
    }

    /// The prompt up to the end of its last message, whose text is `begun`.
    ///
    /// A mark after that text shows where it ends: the text itself may also be in what templates write after
    /// messages.
    fn render_begun(&self, messages: &[serde_json::Value], begun: &str) -> Result<String, TemplateError> {
        // No client can guess it, so no message holds it.
        let mark = uuid::Uuid::new_v4().to_string();
        let mut messages = messages.to_vec();
        if let Some(content) = messages.last_mut().and_then(|message| message.get_mut("content")) {
            *content = format!("{begun}{mark} ").into();
        }
        let mut prompt = self.render_messages(&messages, Ending::LastMessage)?;
        let Some(end) = prompt.rfind(&mark) else {
            let reason = "the chat template does not write the last message, so it cannot be continued";
            return Err(TemplateError::Failed(reason.to_owned()));
        };
        // A template that takes the mark's space away would take those before it away too.
        let trims = !prompt[end + mark.len()..].starts_with(' ');
        prompt.truncate(end);
        if trims {
            prompt.truncate(prompt.trim_end().len());
        }
        Ok(prompt)
    }

    fn render_messages(
        &self,
        messages: &[serde_json::Value],
        ending: Ending,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let token = |token: &Option<String>| token.as_deref().map_or(Value::from(()), Value::from);
        let context = Value::from_pairs([
            ("messages", messages.iter().map(python_json::value_of).collect::<Value>()),
            ("bos_token", token(&self.tokens.bos)),
            ("eos_token", token(&self.tokens.eos)),
            ("add_generation_prompt", Value::from(ending == Ending::AssistantSpeaks)),
            ("tools", Value::from(())),
        ]);
        template.render(context).map_err(failed)
    }
}

fn assistant_text(message: &serde_json::Value) -> Option<&str> {
    let is_assistant = message.get("role").and_then(serde_json::Value::as_str) == Some("assistant");
    if !is_assistant || message.get("tool_calls").is_some_and(|calls| !calls.is_null()) {
        return None;
    }
    message.get("content").and_then(serde_json::Value::as_str)
}

/// `json.dumps` as Hugging Face sets it up: no escape of HTML, non-ASCII as it is.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let style = python_json::Style::from_kwargs(&kwargs)?;
    kwargs.assert_all_used()?;
    python_json::dumps(value, &style)
}

/// `{% generation %}` marks the assistant's text for training; it prints nothing and only Hugging Face
/// knows it. As a condition that always holds it keeps its control of white space.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(length) = tag.find("%}").map(|at| at + 2) else { break };
        let (tag, after) = tag.split_at(length);
        text.push_str(before);
        let word =
            tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+', ' ', '\n', '\t']);
        match word {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

fn failed(error: Error) -> TemplateError {
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if error.kind() == ErrorKind::UndefinedError {
        return TemplateError::MissingVariable(reason);
    }
    TemplateError::Failed(reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::TEMPLATE;

    fn render(source: &str, messages: serde_json::Value) -> Result<String, TemplateError> {
        let tokens = TemplateTokens { bos: Some("<s>".to_owned()), eos: Some("</s>".to_owned()) };
        let messages = messages.as_array().cloned().unwrap_or_default();
        ChatTemplate::compile(source, tokens)?.render(&Conversation { messages })
    }

    fn message(role: &str, content: &str) -> serde_json::Value {
        json!({"role": role, "content": content})
    }

    #[test]
    fn a_conversation_ends_where_the_assistant_speaks() {
        let prompt = render(TEMPLATE, json!([message("user", "Hi")])).unwrap();
        assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn a_begun_answer_is_continued() {
        let messages = json!([message("user", "Hi"), message("assistant", "Hello, ")]);
        let prompt = render(TEMPLATE, messages).unwrap();
        assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello, ");
        let trimming = TEMPLATE.replace("message['content']", "message['content'].strip()");
        let messages = json!([message("user", "Hi"), message("assistant", "Hello, ")]);
        assert!(render(&trimming, messages).unwrap().ends_with("assistant\nHello,"));
        let messages = json!([message("user", "Hi"), message("assistant", "")]);
        assert!(render(TEMPLATE, messages).unwrap().ends_with("<|im_start|>assistant\n"));
    }

    #[test]
    fn a_begun_answer_may_look_like_what_the_template_writes() {
        for begun in ["<", "end", "|im_end|>", "Hi", "assistant"] {
            let messages = json!([message("user", "Hi"), message("assistant", begun)]);
            let expected = format!("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{begun}");
            assert_eq!(render(TEMPLATE, messages), Ok(expected));
        }
        let silent = "{% for message in messages %}{{ message.role }}{% endfor %}";
        let error = render(silent, json!([message("assistant", "role")])).unwrap_err();
        assert!(error.to_string().contains("does not write the last message"), "{error}");
    }

    #[test]
    fn templates_speak_python() {
        let cases = [
            ("{{ bos_token }}{{ messages[0].content.upper() }}", "<s>A<B"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "a<b"}"#),
            (
                "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
                "a<b",
            ),
            ("{% if tools is not none %}tools{% endif %}x", "x"),
            ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}y{% endfor %}z", "z"),
            ("{% if strftime_now('%Y') | length == 4 %}year{% endif %}", "year"),
        ];
        for (source, expected) in cases {
            assert_eq!(
                render(source, json!([message("user", "a<b")])).as_deref(),
                Ok(expected),
                "{source}"
            );
        }
    }

    #[test]
    fn a_refusal_carries_the_templates_words() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let error = render(source, json!([message("user", "a")])).unwrap_err();
        assert_eq!(error, TemplateError::Failed("roles must alternate".to_owned()));
        let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, json!([])), Err(TemplateError::Failed(_))));
    }
}
