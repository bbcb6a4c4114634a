//! Tokens → chunks. Pure.

use crate::engine::{FinishReason, GeneratedToken};
use crate::tokenizer::Vocabulary;

use super::request::Usage as UsageWish;
use super::response::{
    Chunk, ChunkChoice, Delta, Envelope, LogprobEntry, TokenLogprob, Usage, finish_reason,
};
use crate::http::openai::response::ChoiceLogprobs;

/// What stands for the log-probability of something impossible: JSON has no infinity.
pub(super) const IMPOSSIBLE: f32 = -9999.0;

/// Whether log-probabilities are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Logprobs {
    Report,
    Omit,
}

/// The chunks of a request's answers: text as it comes, then why each ended, then usage if it is wanted.
pub(in crate::http) struct ChatStream {
    envelope: Envelope,
    logprobs: Logprobs,
    usage: UsageWish,
    /// By choice: its role, until its first chunk has told it.
    roles: Vec<Option<&'static str>>,
}

impl ChatStream {
    pub(in crate::http) fn new(
        envelope: Envelope,
        logprobs: Logprobs,
        usage: UsageWish,
        choices: usize,
    ) -> Self {
        Self { envelope, logprobs, usage, roles: vec![Some("assistant"); choices] }
    }

    /// What a choice's token adds, if it adds something.
    pub(in crate::http) fn on_token(
        &mut self,
        (choice, token): (usize, &GeneratedToken),
        vocabulary: &Vocabulary,
        usage: Usage,
    ) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let content = entries(self.logprobs, std::slice::from_ref(token), vocabulary);
        let logprobs = content.filter(|logprobs| !logprobs.content.is_empty());
        if !token.delta.is_empty() || logprobs.is_some() {
            let delta = Delta { role: self.take_role(choice), content: Some(token.delta.clone()) };
            chunks.push(self.chunk(ChunkChoice::new(choice, delta, logprobs, None), usage));
        }
        let Some(reason) = token.finish else { return chunks };
        let role = self.take_role(choice);
        let delta = Delta { role, content: role.map(|_| String::new()) };
        let reason = Some(finish_reason(reason));
        chunks.push(self.chunk(ChunkChoice::new(choice, delta, None, reason), usage));
        chunks
    }

    /// What follows the last token of the last choice.
    pub(in crate::http) fn on_end(&self, usage: Usage) -> Option<Chunk> {
        let chunk = Chunk { choices: Vec::new(), usage: Some(Some(usage)), ..self.empty() };
        self.usage.at_end.then_some(chunk)
    }

    fn take_role(&mut self, choice: usize) -> Option<&'static str> {
        self.roles.get_mut(choice).and_then(Option::take)
    }

    fn chunk(&self, choice: ChunkChoice, usage: Usage) -> Chunk {
        let usage = match (self.usage.always, self.usage.at_end) {
            (true, _) => Some(Some(usage)),
            (false, true) => Some(None),
            (false, false) => None,
        };
        Chunk { choices: vec![choice], usage, ..self.empty() }
    }

    fn empty(&self) -> Chunk {
        let Envelope { id, created, model, system_fingerprint } = self.envelope.clone();
        let object = "chat.completion.chunk";
        Chunk { id, object, created, model, system_fingerprint, choices: Vec::new(), usage: None }
    }
}

/// The log-probabilities of tokens; the end-of-sequence token that ended the answer is none of its text.
pub(in crate::http) fn entries(
    logprobs: Logprobs,
    tokens: &[GeneratedToken],
    vocabulary: &Vocabulary,
) -> Option<ChoiceLogprobs> {
    let entry = |generated: &GeneratedToken| {
        let one = |token, logprob: f32| TokenLogprob {
            token: vocabulary.text(token),
            logprob: logprob.max(IMPOSSIBLE),
            bytes: vocabulary.bytes(token).to_vec(),
        };
        let rivals = generated.token.top.iter().map(|rival| one(rival.token, rival.logprob));
        LogprobEntry {
            token: one(generated.token.token, generated.token.logprob),
            top_logprobs: rivals.collect(),
        }
    };
    match logprobs {
        Logprobs::Omit => None,
        Logprobs::Report => {
            let of_text = tokens.iter().filter(|token| token.finish != Some(FinishReason::EndOfSequence));
            Some(ChoiceLogprobs { content: of_text.map(entry).collect() })
        }
    }
}
