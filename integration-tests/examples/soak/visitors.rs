//! Clients that come and go: most hear an answer to its end, some leave, some break off and come back for the rest.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lockstep_integration_tests::client::Client;
use lockstep_integration_tests::draws::Draws;

use crate::requests::{Heard, Question, unheard_of};

/// What came of the requests.
#[derive(Default)]
pub(crate) struct Tally {
    is_over: AtomicBool,
    right: AtomicU64,
    resumed: AtomicU64,
    wrong: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    left: AtomicU64,
    left_in_prompts: AtomicU64,
    events: AtomicU64,
    /// What was wrong, of the first few.
    complaints: Mutex<Vec<String>>,
}

/// Complaints that are kept: one is enough to look into.
const COMPLAINTS: usize = 5;

impl Tally {
    /// Nobody comes any more.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn complain(&self, of: &AtomicU64, what: impl FnOnce() -> String) {
        count(of, 1);
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < COMPLAINTS {
            complaints.push(what());
        }
    }

    /// Whether every answer that was waited for was right, and there were some of each kind.
    pub(crate) fn is_good(&self) -> bool {
        let some = [&self.right, &self.resumed, &self.left, &self.left_in_prompts];
        let none = [&self.wrong, &self.failed];
        some.iter().all(|count| count.load(Ordering::Relaxed) > 0)
            && none.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "answers: {} right, of which {} were broken off and taken up again; {} wrong, {} failed; {} left by their \
             clients, {} more in their prompts; {} newcomers refused while shards loaded; {} events",
            count(&self.right),
            count(&self.resumed),
            count(&self.wrong),
            count(&self.failed),
            count(&self.left),
            count(&self.left_in_prompts),
            count(&self.refused),
            count(&self.events),
        )?;
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.iter().try_for_each(|complaint| write!(f, "\n{complaint}"))
    }
}

/// One client.
pub(crate) struct Visitor<'a> {
    client: Client,
    draws: Draws,
    questions: &'a [Question],
    tally: &'a Tally,
}

/// How a visitor takes an answer.
enum Manner {
    Stay,
    /// Hears so many events and leaves.
    Leave(usize),
    /// Hears so many events, breaks off and comes back.
    Return(usize),
}

impl<'a> Visitor<'a> {
    pub(crate) fn new(client: Client, seed: u64, questions: &'a [Question], tally: &'a Tally) -> Self {
        Self { client, draws: Draws(seed), questions, tally }
    }

    /// One request after the other, until it is over.
    pub(crate) async fn come_and_go(mut self) {
        while !self.tally.is_over() {
            if self.draws.below(8) == 0 {
                self.leave_in_prompt().await;
                continue;
            }
            let question = &self.questions[self.draws.below(self.questions.len() as u64) as usize];
            let some = 1 + self.draws.below(question.events() as u64 - 1) as usize;
            let manner = match self.draws.below(6) {
                0 => Manner::Leave(some),
                1 => Manner::Return(some),
                _ => Manner::Stay,
            };
            self.hear(question, manner).await;
        }
    }

    async fn leave_in_prompt(&mut self) {
        let question = unheard_of(self.draws.below(u64::MAX));
        match self.client.open_frames(question.path, &question.body).await {
            Ok(frames) => {
                drop(frames);
                count(&self.tally.left_in_prompts, 1);
            }
            Err(_) => self.be_refused().await,
        }
    }

    async fn hear(&self, question: &Question, manner: Manner) {
        let Ok(mut frames) = self.client.open_frames(question.path, &question.body).await else {
            return self.be_refused().await;
        };
        let patience = match manner {
            Manner::Stay => usize::MAX,
            Manner::Leave(events) | Manner::Return(events) => events,
        };
        let mut heard = Vec::new();
        while heard.len() < patience
            && let Some(frame) = frames.next().await
        {
            match frame {
                Ok(frame) => heard.push(frame),
                Err(error) => {
                    let what = || question.complaint(&heard, &error);
                    return self.tally.complain(&self.tally.failed, what);
                }
            }
        }
        drop(frames);
        if let Manner::Return(_) = manner {
            match self.rest(question, &heard).await {
                Ok(rest) => heard.extend(rest),
                Err(error) => {
                    let what = || question.complaint(&heard, &error);
                    return self.tally.complain(&self.tally.failed, what);
                }
            }
        }
        self.judge(question, &manner, &heard);
    }

    fn judge(&self, question: &Question, manner: &Manner, heard: &[String]) {
        count(&self.tally.events, heard.len() as u64);
        if heard.last().is_some_and(|last| last.contains("\"error_type\"")) {
            let what = || question.complaint(heard, "it ended with an error");
            return self.tally.complain(&self.tally.failed, what);
        }
        match (question.check(heard), manner) {
            (Heard::Whole, Manner::Stay) => count(&self.tally.right, 1),
            (Heard::Whole, Manner::Return(_)) => {
                count(&self.tally.right, 1);
                count(&self.tally.resumed, 1);
            }
            (Heard::Part | Heard::Whole, Manner::Leave(_)) => count(&self.tally.left, 1),
            (Heard::Part, Manner::Stay | Manner::Return(_)) | (Heard::Other, _) => {
                let what = || question.complaint(heard, "it is not what it is undisturbed");
                self.tally.complain(&self.tally.wrong, what);
            }
        }
    }

    /// What comes after the last event that was heard.
    async fn rest(&self, question: &Question, heard: &[String]) -> Result<Vec<String>, String> {
        let first_line = heard.last().and_then(|frame| frame.lines().next());
        let last =
            first_line.and_then(|line| line.strip_prefix("id: ")).ok_or("its last event has no id")?;
        let resumed = self.client.resume_frames(question.path, &question.body, last).await;
        let resumed = resumed.map_err(|refusal| format!("it is not gone on with: {}", refusal.text))?;
        resumed.rest().await
    }

    /// While shards load, newcomers are told to come back.
    async fn be_refused(&self) {
        count(&self.tally.refused, 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn count(of: &AtomicU64, more: u64) {
    of.fetch_add(more, Ordering::Relaxed);
}
