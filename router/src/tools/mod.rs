//! Functions a model may call: what is asked of it, how its call looks, and the calls found in its text. Pure.
//!
//! A request's [`CallRules`] and the model's [`CallStyle`] make a grammar ([`CallRules::grammar`]), which leaves
//! ordinary text alone and holds each call to its function's schema. The [`CallParser`] takes the answer apart again, as
//! it comes: whatever the cuts, the pieces joined are the same.

mod grammar;
mod hermes;
mod json;
mod llama3;
mod mistral;
mod object;
mod parser;
mod prompt;
mod reader;
mod rules;
mod style;
mod support;
mod value;

#[cfg(test)]
mod tests;

pub use parser::{CallParser, Outcome, Piece};
pub use prompt::{TemplateSkills, introduce, rewrite};
pub use rules::{CallRules, Choice, Function, Parallel};
pub use style::CallStyle;
pub use support::CallSupport;
