//! Conversations to prompts.

mod clock;
mod conversation;
mod dialect;
mod filters;
mod methods;
mod python_json;
mod python_text;
mod sources;
mod template;

pub use clock::Clock;
pub use conversation::{Conversation, Ending, TemplateTokens};
pub use sources::{SourceError, template_sources};
pub use template::{ChatTemplate, NamedTemplate, TemplateError};
