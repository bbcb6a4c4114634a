//! Conversations to prompts.

mod clock;
mod python_json;
mod template;

pub use template::{ChatTemplate, Conversation, TemplateError, TemplateTokens};
