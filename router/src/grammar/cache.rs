//! The grammars used last, compiled.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::{CompiledGrammar, Grammar};

/// Grammars that are kept.
const CAPACITY: usize = 128;

/// Least recently used first.
#[derive(Default)]
pub(super) struct Cache {
    entries: Mutex<VecDeque<(Grammar, Arc<CompiledGrammar>)>>,
}

impl Cache {
    pub(super) fn get(&self, grammar: &Grammar) -> Option<Arc<CompiledGrammar>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let place = entries.iter().position(|(key, _)| key == grammar)?;
        let entry = entries.remove(place)?;
        let compiled = Arc::clone(&entry.1);
        entries.push_back(entry);
        Some(compiled)
    }

    pub(super) fn insert(&self, grammar: Grammar, compiled: Arc<CompiledGrammar>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(key, _)| *key != grammar);
        entries.push_back((grammar, compiled));
        while entries.len() > CAPACITY {
            entries.pop_front();
        }
    }
}
