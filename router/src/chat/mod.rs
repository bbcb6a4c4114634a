//! Conversations to prompts.

mod clock;
mod conversation;
mod dialect;
mod filters;
mod methods;
mod python_json;
mod python_text;
mod sources;
mod special_tokens;
mod template;

pub use clock::Clock;
pub use conversation::{Conversation, Ending, RESERVED_VARIABLES, parse_arguments};
pub use sources::{SourceError, template_sources};
pub use special_tokens::TemplateTokens;
pub use template::{ChatTemplate, NamedTemplate, TemplateError};
