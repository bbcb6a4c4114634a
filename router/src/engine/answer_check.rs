//! Fail closed: the last token of an answer that has a grammar is told only once the whole text is checked.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{mpsc, oneshot};

use super::{EngineError, FinishReason, GeneratedToken, GenerationEvent};
use crate::cpu_pool::PoolError;
use crate::grammar::{CompiledGrammar, Completeness, GrammarError};

/// Watches the text of one answer as its client will have it.
pub(super) struct AnswerCheck {
    grammar: Arc<CompiledGrammar>,
    text: String,
    /// The last token, and the verdict that it waits for.
    last: Option<(GeneratedToken, oneshot::Receiver<Result<(), GrammarError>>)>,
}

impl AnswerCheck {
    pub(super) fn new(grammar: Arc<CompiledGrammar>) -> Self {
        Self { grammar, text: String::new(), last: None }
    }

    /// The next of `events`; a failure in place of the last token of an answer that breaks its grammar.
    pub(super) fn poll_next(
        &mut self,
        events: &mut mpsc::Receiver<GenerationEvent>,
        context: &mut Context<'_>,
    ) -> Poll<Option<GenerationEvent>> {
        if self.last.is_none() {
            let event = ready!(events.poll_recv(context));
            let Some(GenerationEvent::Token(token)) = event else { return Poll::Ready(event) };
            self.text.push_str(&token.delta);
            let Some(finish) = token.finish else {
                return Poll::Ready(Some(GenerationEvent::Token(token)));
            };
            match self.begin(finish) {
                Ok(verdict) => self.last = Some((token, verdict)),
                Err(error) => return Poll::Ready(Some(failed(&error.to_string()))),
            }
        }
        let Some((_, verdict)) = self.last.as_mut() else { return Poll::Ready(None) };
        let verdict = ready!(Pin::new(verdict).poll(context));
        let Some((token, _)) = self.last.take() else { return Poll::Ready(None) };
        Poll::Ready(Some(match verdict {
            Ok(Ok(())) => GenerationEvent::Token(token),
            Ok(Err(error)) => failed(&error.to_string()),
            Err(_) => failed(&PoolError::Panicked.to_string()),
        }))
    }

    fn begin(
        &mut self,
        finish: FinishReason,
    ) -> Result<oneshot::Receiver<Result<(), GrammarError>>, PoolError> {
        let grammar = Arc::clone(&self.grammar);
        let mut text = std::mem::take(&mut self.text);
        let completeness = match finish {
            FinishReason::EndOfSequence => Completeness::Complete,
            FinishReason::Length | FinishReason::StopSequence => {
                // What stands for a character that was cut in two.
                text.truncate(text.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
                Completeness::Beginning
            }
        };
        self.grammar.check_pool().begin(move || grammar.check(text.as_bytes(), completeness))
    }
}

fn failed(reason: &str) -> GenerationEvent {
    tracing::error!(reason, "an answer is withheld");
    GenerationEvent::Failed(EngineError::Failed(reason.to_owned()))
}
