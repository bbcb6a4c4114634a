//! Tokens → chunks. Pure.

use crate::engine::{FinishReason, GeneratedToken};
use crate::tokenizer::Vocabulary;

use super::calls::Listener;
use super::request::Usage as UsageWish;
use super::response::{Chunk, ChunkChoice, Delta, Envelope, LogprobEntry, TokenLogprob, Usage};
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
    /// By choice.
    speakers: Vec<Speaker>,
}

/// One choice as far as it is told.
struct Speaker {
    /// Its role, until its first chunk has told it.
    role: Option<&'static str>,
    listener: Listener,
}

impl ChatStream {
    pub(in crate::http) fn new(
        envelope: Envelope,
        logprobs: Logprobs,
        usage: UsageWish,
        listeners: Vec<Listener>,
    ) -> Self {
        let speaker = |listener| Speaker { role: Some("assistant"), listener };
        Self { envelope, logprobs, usage, speakers: listeners.into_iter().map(speaker).collect() }
    }

    /// What a choice's token adds, if it adds something.
    pub(in crate::http) fn on_token(
        &mut self,
        (choice, token): (usize, &GeneratedToken),
        vocabulary: &Vocabulary,
        usage: Usage,
    ) -> Vec<Chunk> {
        let content = entries(self.logprobs, std::slice::from_ref(token), vocabulary);
        let mut logprobs = content.filter(|logprobs| !logprobs.content.is_empty());
        let Some(speaker) = self.speakers.get_mut(choice) else { return Vec::new() };
        let (mut deltas, reason) = speaker.listener.hear(&token.delta, token.finish);
        if deltas.is_empty() && logprobs.is_some() {
            deltas.push(Delta { content: speaker.listener.silence(), ..Delta::default() });
        }
        let mut told: Vec<ChunkChoice> = Vec::with_capacity(deltas.len() + 1);
        for delta in deltas {
            let delta = Delta { role: speaker.role.take(), ..delta };
            told.push(ChunkChoice::new(choice, delta, logprobs.take(), None));
        }
        if reason.is_some() {
            let role = speaker.role.take();
            let delta = Delta { role, content: role.map(|_| String::new()), ..Delta::default() };
            told.push(ChunkChoice::new(choice, delta, None, reason));
        }
        told.into_iter().map(|told| self.chunk(told, usage)).collect()
    }

    /// What follows the last token of the last choice.
    pub(in crate::http) fn on_end(&self, usage: Usage) -> Option<Chunk> {
        let chunk = Chunk { choices: Vec::new(), usage: Some(Some(usage)), ..self.empty() };
        self.usage.at_end.then_some(chunk)
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
