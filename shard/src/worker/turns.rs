//! What the worker does with its commands, one after the other.
//!
//! A step that a device computes is not waited for at once: the next one of its stream is begun behind it where it comes
//! before the first is done, so that the device finds it when it is. The first is answered then, and at most two are
//! begun. Whatever else is asked for waits until nothing is begun any more.

use std::sync::Arc;
use std::time::Duration;

use lockstep_process::traces::Traces;
use lockstep_proto::{Rank, Step, TraceParent};
use tokio::sync::mpsc;
use tracing::info;

use super::{Answer, Command, StepRefusal, StreamId, WorkerError};
use crate::engine::{Begun, Engine, Model, StepError};
use crate::traces::StepTrace;

/// Between two looks at the device, and at what has come.
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// The worker at work.
pub(super) struct Turns<'a, M: Model> {
    engine: &'a mut Engine<M>,
    inbox: mpsc::Receiver<Command>,
    traces: &'a Traces,
    rank: Rank,
    /// Whose steps are taken.
    current: Option<StreamId>,
    under_way: Option<UnderWay<'a, M>>,
    /// Whether any was begun behind another, which is told once.
    has_begun_behind: bool,
}

/// A step that was begun.
struct UnderWay<'a, M: Model> {
    begun: Begun<M>,
    asked: Asked<'a>,
}

/// What is left of a step's command once it is begun.
struct Asked<'a> {
    trace: Option<StepTrace<'a>>,
    answer: Answer,
}

/// A step of the current stream.
struct Next {
    step: Step,
    parents: Vec<TraceParent>,
    answer: Answer,
}

impl<'a, M: Model> Turns<'a, M> {
    pub(super) fn new(
        engine: &'a mut Engine<M>,
        inbox: mpsc::Receiver<Command>,
        traces: &'a Traces,
    ) -> Self {
        let rank = engine.describe().rank;
        Self { engine, inbox, traces, rank, current: None, under_way: None, has_begun_behind: false }
    }

    /// Until nobody sends commands any more.
    pub(super) fn run(mut self) -> Result<(), WorkerError> {
        loop {
            let command = match self.under_way.take() {
                None => self.inbox.blocking_recv(),
                Some(step) => match self.meanwhile(&step) {
                    Some(command) => {
                        self.under_way = Some(step);
                        Some(command)
                    }
                    None => {
                        self.finish(step)?;
                        continue;
                    }
                },
            };
            match command {
                Some(command) => self.take(command)?,
                None => return Ok(()),
            }
        }
    }

    /// What is asked for before a step is computed.
    fn meanwhile(&mut self, step: &UnderWay<'a, M>) -> Option<Command> {
        loop {
            if let Ok(command) = self.inbox.try_recv() {
                return Some(command);
            }
            match self.engine.is_computed(&step.begun) {
                Ok(false) => std::thread::sleep(LOOK_AGAIN),
                // Who finishes it is told what has failed.
                Ok(true) | Err(_) => return None,
            }
        }
    }

    fn take(&mut self, command: Command) -> Result<(), WorkerError> {
        match command {
            Command::Step { stream, step, traces: parents, answer } if self.current == Some(stream) => {
                self.begin(Next { step, parents, answer })
            }
            Command::Configure(..)
            | Command::CatchUp(_)
            | Command::OpenStream(_)
            | Command::Step { .. } => {
                if let Some(before) = self.under_way.take() {
                    self.finish(before)?;
                }
                self.do_at_rest(command);
                Ok(())
            }
        }
    }

    /// What is done while nothing is begun.
    fn do_at_rest(&mut self, command: Command) {
        match command {
            Command::Configure(configuration, answer) => {
                self.current = None;
                // The caller may have gone; the configuration holds all the same.
                let configured = self.engine.configure(configuration).map(|()| self.engine.steps());
                let _ = answer.send(configured);
            }
            Command::CatchUp(done) => {
                // Who asked may have turned to something else.
                let _ = done.send(());
            }
            Command::OpenStream(stream) => {
                self.engine.on_stream_opened();
                self.current = Some(stream);
            }
            Command::Step { stream: _, step: _, traces: _, answer } => {
                answer.send(Err(StepRefusal::StreamEnded));
            }
        }
    }

    /// Begins a step, behind the one that is under way where that may be.
    fn begin(&mut self, next: Next) -> Result<(), WorkerError> {
        let mut before = self.under_way.take();
        let can_wait = |before: &UnderWay<'a, M>| self.engine.can_begin_behind(&before.begun, &next.step);
        if let Some(first) = before.take_if(|before| !can_wait(before)) {
            self.finish(first)?;
        }
        let Next { step, parents, answer } = next;
        let trace = StepTrace::begin(self.traces, self.rank, &step, &parents);
        let asked = Asked { trace, answer };
        let begun = self.engine.begin_step(step, before.as_ref().map(|before| &before.begun));
        // What comes of the step before comes first, whatever has become of this one.
        if let Some(before) = before {
            if !std::mem::replace(&mut self.has_begun_behind, true) {
                info!(rank = self.rank.0, "a step was begun behind the one the device is at");
            }
            self.finish(before)?;
        }
        match begun {
            Ok(begun) if self.engine.is_asynchronous() => {
                self.under_way = Some(UnderWay { begun, asked });
                Ok(())
            }
            Ok(begun) => self.finish(UnderWay { begun, asked }),
            Err(error) => Err(refuse(error, asked)),
        }
    }

    fn finish(&mut self, step: UnderWay<'a, M>) -> Result<(), WorkerError> {
        let UnderWay { begun, asked } = step;
        match self.engine.finish_step(begun) {
            Ok(output) => {
                let timings = output.timings;
                // The router waits; the spans do not hold it up.
                asked.answer.send(Ok(output));
                if let Some(trace) = asked.trace {
                    trace.end(&timings);
                }
                Ok(())
            }
            Err(error) => Err(refuse(error, asked)),
        }
    }
}

/// Tells the router that a step has no output.
fn refuse(error: StepError, asked: Asked<'_>) -> WorkerError {
    let Asked { trace, answer } = asked;
    let error = match error {
        StepError::Invalid { step, reason } => {
            let reason = Arc::new(reason);
            answer.send(Err(StepRefusal::Invalid { step, reason: Arc::clone(&reason) }));
            WorkerError::Refused { step, reason }
        }
        StepError::Fatal { step, reason } => {
            // Who is told of it kills this process, which may say nothing more.
            tracing::error!(step = step.0, %reason, "this rank cannot go on");
            answer.send(Err(StepRefusal::RankLost { step }));
            WorkerError::Fatal { step, reason }
        }
    };
    if let Some(trace) = trace {
        trace.fail();
    }
    error
}
