//! The model's own chat template, rendered as Python's jinja2 renders it for Hugging Face models.

use std::sync::Arc;

use minijinja::{Environment, Error};
use thiserror::Error as ThisError;

use super::clock::Clock;
use super::conversation::{Conversation, Ending};
use super::dialect;
use super::special_tokens::TemplateTokens;

/// The template that is used unless another fits better.
pub(super) const DEFAULT: &str = "default";
/// The template for conversations with tools.
const TOOL_USE: &str = "tool_use";
/// The template for conversations with documents.
const RETRIEVAL: &str = "rag";

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

/// One of a model's templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTemplate {
    /// `default`, `tool_use`, `rag` or any other.
    pub name: String,
    /// Its text.
    pub source: String,
}

/// A model's templates, compiled.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    names: Vec<String>,
    tokens: TemplateTokens,
}

impl ChatTemplate {
    /// Compiles a model's only template.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn compile(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let only = NamedTemplate { name: DEFAULT.to_owned(), source: source.to_owned() };
        Self::of_several(&[only], tokens, Clock::System)
    }

    /// Compiles all templates of a model; `clock` tells them the date.
    ///
    /// # Errors
    /// When one does not parse.
    pub fn of_several(
        templates: &[NamedTemplate],
        tokens: TemplateTokens,
        clock: Clock,
    ) -> Result<Self, TemplateError> {
        let mut environment = dialect::environment(clock).map_err(failed)?;
        for template in templates {
            let source = dialect::prepared(&template.source);
            environment.add_template_owned(template.name.clone(), source).map_err(failed)?;
        }
        let names = templates.iter().map(|template| template.name.clone()).collect();
        Ok(Self { environment: Arc::new(environment), names, tokens })
    }

    /// The text of the template that is used unless another fits better.
    pub fn source(&self) -> Option<String> {
        let only = self.names.first().map(String::as_str).unwrap_or_default();
        let template =
            self.environment.get_template(DEFAULT).or_else(|_| self.environment.get_template(only));
        template.ok().map(|template| template.source().to_owned())
    }

    /// The text of all templates.
    pub fn sources(&self) -> String {
        let templates = self.names.iter().filter_map(|name| self.environment.get_template(name).ok());
        templates.map(|template| template.source().to_owned()).collect::<Vec<_>>().join("\n")
    }

    /// Whether a prompt may depend on when it is written.
    pub fn reads_clock(&self) -> bool {
        let sources = self.names.iter().filter_map(|name| self.environment.get_template(name).ok());
        sources.into_iter().any(|template| template.source().contains(dialect::NOW))
    }

    /// The special tokens it may write.
    pub fn tokens(&self) -> &TemplateTokens {
        &self.tokens
    }

    /// The prompt of a conversation. Where the last message is the assistant's, the prompt ends with its
    /// text, to be continued.
    ///
    /// # Errors
    /// When the template refuses the messages or fails.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let begun = conversation.messages.last().and_then(assistant_text);
        let Some(begun) = begun else { return self.apply(conversation, Ending::AssistantSpeaks) };
        let mut conversation = conversation.clone();
        if begun.trim().is_empty() {
            conversation.messages.pop();
            return self.apply(&conversation, Ending::AssistantSpeaks);
        }
        let begun = begun.to_owned();
        self.render_begun(conversation, &begun)
    }

    /// The prompt up to the end of its last message, whose text is `begun`.
    ///
    /// A mark after that text shows where it ends: the text itself may also be in what templates write after
    /// messages.
    fn render_begun(&self, mut conversation: Conversation, begun: &str) -> Result<String, TemplateError> {
        // No client can guess it, so no message holds it.
        let mark = uuid::Uuid::new_v4().to_string();
        if let Some(content) =
            conversation.messages.last_mut().and_then(|message| message.get_mut("content"))
        {
            *content = format!("{begun}{mark} ").into();
        }
        let mut prompt = self.apply(&conversation, Ending::LastMessage)?;
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

    /// What transformers' `apply_chat_template` prints, byte for byte.
    ///
    /// # Errors
    /// When the template refuses the messages or fails.
    pub fn apply(&self, conversation: &Conversation, ending: Ending) -> Result<String, TemplateError> {
        let template = self.environment.get_template(self.choose(conversation)?).map_err(failed)?;
        template.render(conversation.context(&self.tokens, ending)).map_err(failed)
    }

    /// The name of the template that fits a conversation best.
    fn choose(&self, conversation: &Conversation) -> Result<&str, TemplateError> {
        let named = |name: &'static str| self.names.iter().any(|known| known == name).then_some(name);
        let for_tools = named(TOOL_USE).filter(|_| !conversation.tools.is_empty());
        let for_documents = || named(RETRIEVAL).filter(|_| !conversation.documents.is_empty());
        let chosen = for_tools.or_else(for_documents).or_else(|| named(DEFAULT));
        chosen.ok_or_else(|| {
            let known = self.names.join(", ");
            let reason = format!("the model has no default chat template, only these: {known}");
            TemplateError::Failed(reason)
        })
    }
}

pub(super) fn assistant_text(message: &serde_json::Value) -> Option<&str> {
    let is_assistant = message.get("role").and_then(serde_json::Value::as_str) == Some("assistant");
    if !is_assistant || message.get("tool_calls").is_some_and(|calls| !calls.is_null()) {
        return None;
    }
    message.get("content").and_then(serde_json::Value::as_str)
}

fn failed(error: Error) -> TemplateError {
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if dialect::is_about_missing(&error) {
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
        let tokens = TemplateTokens { bos: Some("<s>".to_owned()), ..TemplateTokens::default() };
        let messages = messages.as_array().cloned().unwrap_or_default();
        ChatTemplate::compile(source, tokens)?.render(&Conversation { messages, ..Default::default() })
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
    fn a_template_that_reads_the_clock_says_so() {
        let of =
            |name: &str, source: &str| NamedTemplate { name: name.to_owned(), source: source.to_owned() };
        let reads = |templates: &[NamedTemplate]| {
            let compiled = ChatTemplate::of_several(templates, TemplateTokens::default(), Clock::System);
            compiled.unwrap().reads_clock()
        };
        assert!(!reads(&[of(DEFAULT, TEMPLATE)]));
        assert!(reads(&[of(DEFAULT, TEMPLATE), of(TOOL_USE, "{{ strftime_now('%d %b %Y') }}")]));
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
    fn the_template_that_fits_the_conversation_is_taken() {
        let set = |names: &[&str]| {
            let named =
                |name: &&str| NamedTemplate { name: (*name).to_owned(), source: (*name).to_owned() };
            let templates: Vec<NamedTemplate> = names.iter().map(named).collect();
            ChatTemplate::of_several(&templates, TemplateTokens::default(), Clock::System).unwrap()
        };
        let plain = Conversation { messages: vec![message("user", "a")], ..Default::default() };
        let tools = Conversation { tools: vec![json!({})], ..plain.clone() };
        let documents = Conversation { documents: vec![json!({})], ..plain.clone() };
        let all = set(&["tool_use", "rag", "default", "other"]);
        let prompts = [&plain, &tools, &documents].map(|conversation| all.render(conversation).unwrap());
        assert_eq!(prompts, ["default", "tool_use", "rag"]);
        assert_eq!(set(&["default"]).render(&tools).as_deref(), Ok("default"));
        let error = set(&["tool_use", "other"]).render(&plain).unwrap_err().to_string();
        assert_eq!(error, "the model has no default chat template, only these: tool_use, other");
    }

    #[test]
    fn a_value_within_itself_is_no_end_of_the_process() {
        for print in ["{{ ns }}", "{{ ns | string }}", "{{ ns | tojson }}"] {
            let source = format!("{{% set ns = namespace() %}}{{% set ns.a = ns %}}{print}");
            let _either = render(&source, json!([message("user", "a")]));
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
