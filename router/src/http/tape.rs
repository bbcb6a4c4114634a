//! The events of a running request: those that an earlier process wrote down, then those that come, which are
//! written down before they are told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_proto::{PromptLogprobs, TokenId};
use lockstep_scheduler::AdmissionError;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::draws::Draws;
use crate::engine::{Assignment, Engine, EngineError, Generation, GenerationEvent, Generations};
use crate::journal::{Beginning, Journal, KeptRequest, Origin, Record};
use crate::validation::Prompt;

/// What the layers around a route know of a request that may be journaled.
#[derive(Clone)]
pub(super) struct Journaling {
    pub(super) journal: Journal,
    pub(super) origin: Origin,
    pub(super) request: Arc<KeptRequest>,
    /// Of a request that an earlier process has begun to answer.
    pub(super) past: Option<Arc<Past>>,
}

/// How long a request that must not be refused waits before it asks for room again.
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// What an earlier process has told.
#[derive(Debug)]
pub(super) struct Past {
    pub(super) prompts: Vec<Prompt>,
    /// By place, in the order they were told.
    pub(super) events: Vec<(usize, GenerationEvent)>,
}

/// What is known of the answer at one place.
#[derive(Clone, Debug, Default)]
struct Known {
    tokens: VecDeque<TokenId>,
    prompt_logprobs: usize,
    is_admitted: bool,
    is_over: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Tape {
    past: VecDeque<(usize, GenerationEvent)>,
    /// By place: what comes again and was told before.
    told: BTreeMap<usize, Known>,
    /// Until the stream is opened.
    beginning: Option<(Journal, Box<Beginning>)>,
    entry: Option<Entry>,
    /// Heard and not told yet.
    pending: Option<Pending>,
}

struct Entry {
    journal: Journal,
    stream: Uuid,
}

struct Pending {
    place: usize,
    event: GenerationEvent,
    /// Once it is on its way to the journal.
    written: Option<oneshot::Receiver<()>>,
}

impl Journaling {
    /// The prompt that an earlier process found for the request's `index`-th.
    pub(super) fn prompt(&self, index: usize) -> Option<Prompt> {
        self.past.as_ref()?.prompts.get(index).cloned()
    }

    /// The seed of the `index`-th prompt, where it names none.
    pub(super) fn seed(&self, index: usize) -> u64 {
        self.origin.seed.wrapping_add(index as u64)
    }
}

/// Draws everything for a request that comes now.
pub(super) fn new_origin(draws: &Draws) -> Origin {
    let (seed, calls) = draws.uuid().as_u64_pair();
    // Some of its bits say that it is random and are not.
    let (other_seed, other_calls) = draws.uuid().as_u64_pair();
    Origin {
        stream: draws.uuid(),
        answer: draws.uuid(),
        seed: seed ^ other_calls,
        calls: calls ^ other_seed,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    }
}

/// Submits what an earlier process had taken in: where there is no room it waits for some, and is not refused.
pub(super) async fn submit_again(
    engine: &Engine,
    assignment: Assignment,
) -> Result<Generation, EngineError> {
    loop {
        match engine.submit(assignment.clone()).await {
            Err(EngineError::Refused(AdmissionError::Full { .. } | AdmissionError::QueueFull { .. })) => {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            submitted => return submitted,
        }
    }
}

impl Tape {
    /// Of a request with so many answers and these prompts. Nothing is written before [`Self::open`].
    pub(super) fn new(journaling: &Journaling, prompts: Vec<Prompt>, fingerprint: String) -> Self {
        let Journaling { journal, origin, request, past } = journaling;
        let mut tape = Self::default();
        match past {
            None => {
                let request = KeptRequest::clone(request);
                let beginning = Beginning { origin: *origin, request, prompts, fingerprint };
                tape.beginning = Some((journal.clone(), Box::new(beginning)));
            }
            Some(past) => {
                for (place, event) in &past.events {
                    tape.told.entry(*place).or_default().note(event);
                }
                tape.past = past.events.iter().cloned().collect();
                tape.entry = Some(Entry { journal: journal.clone(), stream: origin.stream });
            }
        }
        tape
    }

    /// Has the engine go on where the answer at `place` is. `None` where that is at its end.
    pub(super) fn resume(&self, place: usize, mut assignment: Assignment) -> Option<Assignment> {
        let Some(known) = self.told.get(&place) else { return Some(assignment) };
        if known.is_over {
            return None;
        }
        // A grammar's matcher knows its own forced tokens only, and log-probabilities of a prompt come with its
        // prompt: those are computed from the start, and told from where they were.
        if assignment.grammar.is_none() && assignment.submission.prompt_logprobs == PromptLogprobs::Skip {
            assignment.submission.forced = known.tokens.iter().copied().collect();
        }
        Some(assignment)
    }

    /// What comes is a stream: from here on it is written down.
    pub(super) async fn open(&mut self) {
        let Some((journal, beginning)) = self.beginning.take() else { return };
        let stream = beginning.origin.stream;
        let written = journal.write(&Record::Begun(beginning)).await;
        self.entry = Some(Entry { journal, stream });
        // A journal that has failed says so itself.
        let _ = written.await;
    }

    /// Whether all that was known before is told.
    pub(super) fn is_played(&self) -> bool {
        self.past.is_empty() && self.pending.is_none()
    }

    /// What happened next, of any of the answers; as [`Generations::next`].
    ///
    /// # Cancel safety
    /// No event is lost, and none is written down twice.
    pub(super) async fn next(
        &mut self,
        generations: &mut Generations,
    ) -> Option<(usize, Option<GenerationEvent>)> {
        if let Some((place, event)) = self.past.pop_front() {
            return Some((place, Some(event)));
        }
        while self.pending.is_none() {
            let (place, event) = generations.next().await?;
            let Some(event) = event else { return Some((place, None)) };
            if let Some(event) = self.news(place, event) {
                self.pending = Some(Pending { place, event, written: None });
            }
        }
        self.write_pending().await;
        self.pending.take().map(|Pending { place, event, .. }| (place, Some(event)))
    }

    async fn write_pending(&mut self) {
        let (Some(entry), Some(pending)) = (&self.entry, &mut self.pending) else { return };
        if matches!(pending.event, GenerationEvent::Failed(_)) {
            // It is told, and that is its end.
            entry.journal.forget(entry.stream).await;
            return;
        }
        let written = match &mut pending.written {
            Some(written) => written,
            none => {
                let (stream, place) = (entry.stream, u32::try_from(pending.place).unwrap_or(u32::MAX));
                let record = Record::Heard { stream, place, event: pending.event.clone() };
                none.insert(entry.journal.write(&record).await)
            }
        };
        // A journal that has failed says so itself.
        let _ = written.await;
    }

    /// What an event adds to what was told before.
    fn news(&mut self, place: usize, event: GenerationEvent) -> Option<GenerationEvent> {
        let Some(told) = self.told.get_mut(&place) else { return Some(event) };
        match event {
            GenerationEvent::Admitted { .. } => {
                (!std::mem::replace(&mut told.is_admitted, false)).then_some(event)
            }
            GenerationEvent::Prompt(mut tokens) => {
                let known = told.prompt_logprobs.min(tokens.len());
                told.prompt_logprobs -= known;
                tokens.drain(..known);
                (!tokens.is_empty()).then_some(GenerationEvent::Prompt(tokens))
            }
            GenerationEvent::Token(token) => {
                let Some(expected) = told.tokens.pop_front() else {
                    return Some(GenerationEvent::Token(token));
                };
                let found = token.token.token;
                (found != expected).then(|| GenerationEvent::Failed(cannot_go_on(expected, found)))
            }
            GenerationEvent::PromptDone | GenerationEvent::Failed(_) => Some(event),
        }
    }
}

/// No client is given half of one answer and half of another.
fn cannot_go_on(expected: TokenId, found: TokenId) -> EngineError {
    EngineError::Failed(format!(
        "go on where another process ended: found token {found}, expected {expected}; ask again"
    ))
}

impl Known {
    fn note(&mut self, event: &GenerationEvent) {
        match event {
            GenerationEvent::Admitted { .. } => self.is_admitted = true,
            GenerationEvent::Prompt(tokens) => self.prompt_logprobs += tokens.len(),
            GenerationEvent::Token(token) => {
                self.tokens.push_back(token.token.token);
                self.is_over |= token.finish.is_some();
            }
            GenerationEvent::PromptDone | GenerationEvent::Failed(_) => self.is_over = true,
        }
    }
}
