//! Decides what each step computes: queue, blocks, prefix cache, preemption.
//!
//! A state machine without clock, channel or thread: what happened goes in, what to do comes out. The same
//! calls in the same order give the same steps.
//!
//! ```
//! use std::time::Instant;
//!
//! use lockstep_proto::{
//!     Blocks, Epoch, Outcome, PromptLogprobs, ReplicaId, SamplingParams, SequenceId, SequenceResult, StepOutput,
//!     StepTimings, TokenId, TokenLogprobs, Tokens,
//! };
//! use lockstep_scheduler::{
//!     CacheSalt, CacheShape, FinishReason, Limits, PrefixCaching, RunAhead, Scheduler, SequenceEvent, Service,
//!     Submission, TokenOrigin,
//! };
//!
//! let mut scheduler = Scheduler::new(Limits {
//!     max_requests: 128,
//!     max_queue_tokens: Tokens(1_000_000),
//!     max_running: 64,
//!     max_step_tokens: Tokens(512),
//!     max_total: Tokens(2048),
//!     prefix_cache: PrefixCaching::Enabled,
//! });
//! let only = ReplicaId(0);
//! let cache = CacheShape { blocks: Blocks(100), block_size: Tokens(16) };
//! assert!(scheduler.on_group_ready(only, Epoch(1), cache).is_empty());
//!
//! let submission = Submission {
//!     prompt: vec![TokenId(7), TokenId(8)],
//!     forced: Vec::new(),
//!     sampling: SamplingParams::greedy(),
//!     max_new_tokens: Tokens(20),
//!     stop_tokens: vec![TokenId(2)],
//!     prompt_logprobs: PromptLogprobs::Skip,
//!     cache_salt: CacheSalt(0),
//!     run_ahead: RunAhead::Allowed,
//!     service: Service::default(),
//! };
//! scheduler.on_submit(SequenceId(1), submission, Instant::now())?;
//!
//! let step = scheduler.plan_step(only, Instant::now()).expect("a sequence waits and the group is ready");
//! assert_eq!(step.starts[0].context, [TokenId(7), TokenId(8)]);
//!
//! // Every rank computes the step; the first one answers that the end-of-sequence token follows.
//! let token = TokenLogprobs { token: TokenId(2), logprob: -0.1, top: Vec::new() };
//! let output = StepOutput {
//!     epoch: step.epoch,
//!     step_id: step.step_id,
//!     results: vec![SequenceResult {
//!         sequence: SequenceId(1),
//!         prompt: Vec::new(),
//!         outcome: Outcome::Sampled(token.clone()),
//!     }],
//!     timings: StepTimings::default(),
//! };
//! let events = scheduler.on_step_done(only, &output, Instant::now())?;
//! let origin = TokenOrigin::Sampled;
//! assert_eq!(events[1], SequenceEvent::Token { sequence: SequenceId(1), token, origin });
//! assert_eq!(
//!     events[2],
//!     SequenceEvent::Finished { sequence: SequenceId(1), reason: FinishReason::StopToken },
//! );
//! assert!(scheduler.plan_step(only, Instant::now()).is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The modules, in a step's order:
//!
//! - `scheduler`: the calls
//! - `submission`, `limits`: what comes in, and how much of it
//! - `service`: for whom, how urgently, until when
//! - `queue`: the order of waiting
//! - `deadline`, `pace`: ends by the clock; what a queue means in seconds
//! - `budget`: tokens of a step
//! - `grow`: blocks for what runs; preemption
//! - `admit`: who may wait, who may run
//! - `placement`: with which replica
//! - `ahead`: a step before the last one is answered
//! - `group`: all that is lost with the shards; the steps in flight
//! - `replicas`: the groups there are
//! - `losses`: sequences that groups are lost with
//! - `forced`: tokens that are not sampled, and waiting for them
//! - `finish`: results, ends, cancellation
//! - `event`, `stats`: what goes out
//! - `sequence`: a sequence's states
//! - `blocks`: the KV cache and the prefix tree
//! - `invariants`: what always holds

#![forbid(unsafe_code)]

mod admit;
mod ahead;
mod blocks;
mod budget;
mod deadline;
mod event;
mod finish;
mod forced;
mod group;
mod grow;
mod invariants;
mod limits;
mod losses;
mod pace;
mod placement;
mod queue;
mod replicas;
mod scheduler;
mod sequence;
mod service;
mod stats;
mod submission;

#[cfg(test)]
mod tests;

pub use event::{ExpiredWhile, FinishReason, SequenceEvent, TokenOrigin};
pub use finish::StepMismatch;
pub use invariants::Violation;
pub use limits::{CacheShape, Limits, PrefixCaching};
pub use pace::Pace;
pub use scheduler::Scheduler;
pub use service::{Priority, PriorityError, Service, Tenant};
pub use stats::Stats;
pub use submission::{AdmissionError, CacheSalt, RunAhead, Submission};
