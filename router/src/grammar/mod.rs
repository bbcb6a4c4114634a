//! Answers that keep to a grammar: a JSON Schema, a regular expression or a choice of texts.
//!
//! In the order of a request: [`Grammars::compile`] turns a [`Grammar`] into a [`CompiledGrammar`] on its own
//! threads, within limits, or takes it from a cache; the engine asks its [`TokenMatcher`] which tokens may
//! follow; the finished answer is checked again, from nothing but its bytes, before its last token is told.
//!
//! Where a grammar leaves no choice, the text that must follow is cut into tokens by the model's tokenizer and given
//! to the scheduler as it is: nothing is sampled.
//!
//! A matcher is a function of the grammar and the tokens emitted so far, and of nothing else: no batch, no
//! preemption and no lost group changes what it allows.

mod cache;
mod compile;
mod matcher;
mod service;
mod spec;
mod tokens;

pub use compile::{CompiledGrammar, Completeness};
pub use matcher::{Allowed, Following, TokenMatcher};
pub use service::{CompileError, Grammars};
pub use spec::{CallGrammar, Grammar, GrammarError};
