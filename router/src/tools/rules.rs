//! Which functions a request offers, and which of them the model may or must call.

use std::sync::Arc;

use serde_json::Value;

/// A function a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its name: letters, digits and a few marks that JSON and grammars take as they are.
    pub name: String,
    /// A JSON schema of its arguments, which are an object.
    pub parameters: Value,
}

/// Whether the model calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// As it likes.
    Auto,
    /// It does.
    Required,
    /// It calls this function.
    Named(String),
}

/// How many calls one answer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parallel {
    /// Any number.
    Several,
    /// One.
    One,
}

/// What a request asks of the model's calls.
#[derive(Clone, Debug, PartialEq)]
pub struct CallRules {
    /// The functions, at least one, no name twice.
    pub functions: Vec<Function>,
    /// Whether it calls.
    pub choice: Choice,
    /// How many calls one answer may have.
    pub parallel: Parallel,
}

impl CallRules {
    /// The functions that may be called.
    pub fn callable(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|function| match &self.choice {
            Choice::Auto | Choice::Required => true,
            Choice::Named(name) => function.name == *name,
        })
    }

    /// Their names, in the order of the request.
    pub fn names(&self) -> Arc<[String]> {
        self.callable().map(|function| function.name.clone()).collect()
    }
}
