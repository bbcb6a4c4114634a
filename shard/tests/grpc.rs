//! The service over a real Unix socket, with a model whose logits are a hash of what its KV blocks hold.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod client;
mod fake;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep_process::tasks::Tasks;
use lockstep_process::traces::Traces;
use lockstep_proto::wire::shard_client::ShardClient;
use lockstep_proto::{
    BlockId, Bytes, Epoch, Outcome, Position, Sampling, SamplingParams, SequenceId, SequenceStart,
    ShardDescription, Step, StepId, TokenId, TokenMask, Work, WorkTokens, wire,
};
use lockstep_shard::comm::{Communicator, Solo, Threads, Timed};
use lockstep_shard::config::ListenAddress;
use lockstep_shard::engine::{Engine, Group, Model};
use lockstep_shard::{Patience, ShardError, StreamEnd, serve};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use self::client::{EPOCH, Run, configuration, connect, decode, prefill, start, step, token};
use self::fake::device::{Call, FakeDevice, Pace};
use self::fake::{BLOCK_SIZE, BROKEN_TOKEN, FakeModel, HANG_TOKEN, PANIC_TOKEN, VOCABULARY};

/// A running shard and the folder its socket is in.
struct Shard {
    folder: tempfile::TempDir,
    tasks: Tasks,
    end: tokio::task::JoinHandle<Result<(), ShardError>>,
}

impl Shard {
    fn start(comm: Arc<dyn Communicator>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), comm, Patience::USUAL)
    }

    fn start_in(folder: tempfile::TempDir, comm: Arc<dyn Communicator>, patience: Patience) -> Self {
        Self::start_model(folder, comm, patience, FakeModel::new)
    }

    /// With a model of the group's communicator.
    fn start_model<M: Model + 'static>(
        folder: tempfile::TempDir,
        comm: Arc<dyn Communicator>,
        patience: Patience,
        model: impl FnOnce(Arc<dyn Communicator>) -> M + Send + 'static,
    ) -> Self {
        let tasks = Tasks::new();
        let listen = ListenAddress::Unix(socket(&folder));
        let serving = tasks.clone();
        #[expect(clippy::disallowed_methods, reason = "the test waits for its end")]
        let end = tokio::task::spawn(async move {
            let load = move || {
                let timed = Arc::new(Timed::new(comm));
                let model = model(Arc::clone(&timed) as Arc<dyn Communicator>);
                Ok(Engine::new(model, Group { comm: timed, epoch: EPOCH, kv_budget: Bytes(6400) }))
            };
            serve(listen, &serving, (Traces::default(), patience), load).await
        });
        Self { folder, tasks, end }
    }

    async fn connect(&self) -> Channel {
        connect(&socket(&self.folder)).await
    }

    async fn configured(&self) -> ShardClient<Channel> {
        let mut client = ShardClient::new(self.connect().await);
        client.configure(configuration()).await.unwrap();
        client
    }

    async fn stop(self) -> Result<(), ShardError> {
        self.tasks.stop_token().cancel();
        self.end.await.unwrap()
    }
}

fn socket(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("rank0.sock")
}

#[tokio::test]
async fn steps_stream_through_a_unix_socket() {
    let shard = Shard::start(Arc::new(Solo));
    let channel = shard.connect().await;
    let health = HealthCheckRequest { service: "lockstep.shard.v1.Shard".to_owned() };
    let health = HealthClient::new(channel.clone()).check(health).await.unwrap().into_inner();
    assert_eq!(health.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    let mut client = ShardClient::new(channel);
    let described = client.describe(wire::DescribeRequest { lost_epoch: None }).await.unwrap().into_inner();
    let described = ShardDescription::from(described);
    assert_eq!(described.vocabulary_size, VOCABULARY);
    assert_eq!(described.blocks_that_fit().0, 100);
    assert_eq!((described.epoch, described.block_size), (EPOCH, BLOCK_SIZE));

    client.configure(configuration()).await.unwrap();
    let mut run = Run::open(&mut client).await;
    let mut context = vec![3, 1, 4];
    let first = run.run(vec![start(1, &context)], vec![prefill(1, &context, 9)]).await.unwrap();
    context.push(token(&first[0]));
    // Two steps on their way at once: the second is planned before the first is answered.
    run.send(step(1, Vec::new(), vec![decode(1, 3)])).await;
    run.send(step(2, Vec::new(), vec![Work { new_blocks: vec![BlockId(2)], ..decode(1, 4) }])).await;
    for _ in 0..2 {
        context.push(token(&run.receive().await.unwrap().results[0].outcome));
    }
    assert_eq!(context[3..], fake::continuation(&[3, 1, 4], 3));
    shard.stop().await.unwrap();
}

#[tokio::test]
async fn a_step_is_begun_before_the_one_a_device_is_at_is_answered() {
    let (calls_tx, calls) = std::sync::mpsc::channel();
    let model = move |comm| {
        // The device is done with a step once the next one is begun, so that nothing is answered before.
        let (model, calls) = FakeDevice::new(comm, Pace::OnceTheNextIsBegun { last: 3 });
        calls_tx.send(calls).unwrap();
        model
    };
    let folder = tempfile::tempdir().unwrap();
    let shard = Shard::start_model(folder, Arc::new(Solo), Patience::USUAL, model);
    let mut client = shard.configured().await;
    let mut run = Run::open(&mut client).await;
    let context = vec![3, 1];
    run.send(step(0, vec![start(1, &context)], vec![prefill(1, &context, 9)])).await;
    run.send(step(1, Vec::new(), vec![decode(1, 2)])).await;
    let mut tokens = Vec::new();
    for id in 2..4 {
        let output = run.receive().await.unwrap();
        assert_eq!(output.step_id, StepId(id - 2));
        tokens.push(token(&output.results[0].outcome));
        let blocks = if id == 3 { vec![BlockId(2)] } else { Vec::new() };
        run.send(step(id, Vec::new(), vec![Work { new_blocks: blocks, ..decode(1, id as u32 + 1) }])).await;
    }
    for id in 2..4 {
        let output = run.receive().await.unwrap();
        assert_eq!(output.step_id, StepId(id));
        tokens.push(token(&output.results[0].outcome));
    }
    assert_eq!(tokens, fake::continuation(&context, 4));
    // All that was begun is done when the next router comes.
    client.configure(configuration()).await.unwrap();
    let calls = calls.recv().unwrap();
    let (begin, answers) = (Call::Begin, Call::Answers);
    let expected = [begin(0), begin(1), answers(0), begin(2), answers(1), begin(3), answers(2), answers(3)];
    assert_eq!(*calls.lock().unwrap(), expected);
    shard.stop().await.unwrap();
}

/// Steps of one stream, each of which is the first one's successor.
type Steps = Vec<(Vec<SequenceStart>, Vec<Work>)>;

/// The last of `steps` is answered with INVALID_ARGUMENT, and then the rank ends and says why.
async fn check_refused(expected: &str, steps: Steps, change: fn(&mut Step)) {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = shard.configured().await;
    let mut run = Run::open(&mut client).await;
    let last = steps.len() - 1;
    for (id, (starts, work)) in (0..).zip(steps) {
        let mut step = step(id, starts, work);
        if id as usize == last {
            change(&mut step);
            run.send(step).await;
        } else {
            run.send(step).await;
            run.receive().await.unwrap();
        }
    }
    let status = run.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{expected}: {status}");
    assert!(status.message().contains(expected), "expected {expected:?} in {:?}", status.message());
    let path = socket(&shard.folder);
    let error = shard.end.await.unwrap().unwrap_err().to_string();
    assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    assert!(!path.exists(), "its socket is left behind");
}

#[tokio::test]
async fn a_step_that_makes_no_sense_is_refused_and_ends_the_rank() {
    let ok = [5, 6];
    let good = || (vec![start(1, &ok)], vec![prefill(1, &ok, 0)]);
    let work = |change: fn(&mut Work)| {
        let mut work = prefill(1, &ok, 0);
        change(&mut work);
        (vec![start(1, &ok)], vec![work])
    };
    let cases = vec![
        ("it is not known", (Vec::new(), vec![prefill(1, &ok, 0)])),
        ("it was started before", (vec![start(1, &ok), start(1, &ok)], Vec::new())),
        ("two chunks in one step", (vec![start(1, &ok)], vec![prefill(1, &ok, 0), prefill(1, &ok, 0)])),
        ("its context has 0 tokens", (vec![start(1, &[])], Vec::new())),
        ("token 99 is not in the vocabulary", (vec![start(1, &[99])], Vec::new())),
        ("token 99 is not in the vocabulary", work(|work| work.appended = vec![TokenId(5), TokenId(99)])),
        // Appended to the context, and not part of the chunk that is sampled.
        ("it is sampled at 2", work(|work| work.appended = vec![TokenId(7)])),
        ("41 tokens, at most 40", (vec![start(1, &[1; 41])], vec![prefill(1, &[1; 41], 0)])),
        ("block 64 is not one of 64", work(|work| work.new_blocks = vec![BlockId(64)])),
        ("its 0 blocks end before its chunk", work(|work| work.new_blocks.clear())),
        ("its chunk ends at 3, the context at 2", work(|work| work.first_position = Position(1))),
        ("its chunk ends at", work(|work| work.first_position = Position(u32::MAX))),
        (
            "its token at position 1 is 7, its context has 6",
            work(|work| work.tokens = WorkTokens::Ids(vec![TokenId(5), TokenId(7)])),
        ),
        ("it is sampled at 1", work(|work| work.tokens = WorkTokens::Ids(vec![TokenId(5)]))),
        (
            "the next to compute is 1",
            work(|work| (work.tokens, work.sampling) = (WorkTokens::LastSampled, Sampling::Skip)),
        ),
    ];
    for (expected, step) in cases {
        check_refused(expected, vec![step], |_| {}).await;
    }
    let other_epoch = "it is of epoch 6, this group is epoch 7";
    check_refused(other_epoch, vec![good()], |step| step.epoch = Epoch(6)).await;
    let skipped = vec![good(), (Vec::new(), vec![decode(1, 2)])];
    check_refused("it follows step 0", skipped, |step| step.step_id = StepId(5)).await;
    let again = vec![good(), (Vec::new(), vec![prefill(1, &ok, 1)])];
    check_refused("begins at position 0, the next to compute is 2", again, |_| {}).await;
}

#[tokio::test]
async fn a_message_that_is_no_step_is_refused_and_ends_the_rank() {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = shard.configured().await;
    let mut broken = wire::Step::from(step(0, vec![start(1, &[2])], vec![prefill(1, &[2], 0)]));
    broken.starts[0].sampling = None;
    let steps = tokio_stream::iter([broken]).chain(tokio_stream::pending());
    let mut outputs = client.run(steps).await.unwrap().into_inner();
    let status = outputs.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let error = shard.end.await.unwrap().unwrap_err();
    assert!(matches!(error, ShardError::StreamEnded { why: StreamEnd::Refused(_) }), "{error}");
}

#[tokio::test]
async fn a_step_before_configure_is_refused() {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = ShardClient::new(shard.connect().await);
    let configure = |change: fn(&mut wire::ConfigureRequest)| {
        let mut request = configuration();
        change(&mut request);
        request
    };
    let cases = [
        (configure(|request| request.epoch = 6), Code::FailedPrecondition),
        (configure(|request| request.blocks = 0), Code::InvalidArgument),
        (configure(|request| request.max_step_tokens = 0), Code::InvalidArgument),
        (configure(|request| request.blocks = 101), Code::ResourceExhausted),
    ];
    for (request, code) in cases {
        assert_eq!(client.configure(request).await.unwrap_err().code(), code);
    }
    let adapter = wire::LoadAdapterRequest { adapter_id: "a".to_owned() };
    assert_eq!(client.load_adapter(adapter).await.unwrap_err().code(), Code::Unimplemented);
    let status = Run::open(&mut client).await.run(Vec::new(), Vec::new()).await.unwrap_err();
    assert!(status.message().contains("call Configure before the first step"), "{status}");
    shard.end.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_second_stream_takes_over_and_knows_nothing() {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = shard.configured().await;
    let mut first = Run::open(&mut client).await;
    first.run(vec![start(1, &[2])], vec![prefill(1, &[2], 0)]).await.unwrap();
    let mut second = Run::open(&mut client).await;
    let status = first.run(Vec::new(), vec![decode(1, 1)]).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    drop(first);
    // The rank lives on, also where another stream that was taken over from ends without a word.
    second.run(vec![start(1, &[3])], vec![prefill(1, &[3], 0)]).await.unwrap();
    let mut third = Run::open(&mut client).await;
    drop(second);
    third.run(vec![start(2, &[4])], vec![prefill(2, &[4], 0)]).await.unwrap();
    let status = third.run(Vec::new(), vec![decode(1, 1)]).await.unwrap_err();
    assert!(status.message().contains("sequence 1: it is not known"), "{status}");
    shard.end.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_rank_outlives_its_routers_and_tells_each_how_many_steps_were_begun() {
    let shard = Shard::start(Arc::new(Solo));
    for routers in 0..3 {
        let mut client = ShardClient::new(shard.connect().await);
        // One that loses its way between the two calls is asked again.
        for _ in 0..2 {
            let configured = client.configure(configuration()).await.unwrap().into_inner();
            assert_eq!(configured.steps, 2 * routers);
        }
        let mut run = Run::open(&mut client).await;
        let first = run.run(vec![start(1, &[2])], vec![prefill(1, &[2], 0)]).await.unwrap();
        let second = run.run(Vec::new(), vec![decode(1, 1)]).await.unwrap();
        assert_eq!([token(&first[0]), token(&second[0])][..], fake::continuation(&[2], 2));
        // Its sequence is not released.
    }
    shard.stop().await.unwrap();
}

#[tokio::test]
async fn a_rank_that_a_router_has_lost_leaves() {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = shard.configured().await;
    let mut run = Run::open(&mut client).await;
    let lost = |epoch| wire::DescribeRequest { lost_epoch: Some(epoch) };
    client.describe(lost(EPOCH.0 - 1)).await.unwrap();
    run.run(vec![start(1, &[2])], vec![prefill(1, &[2], 0)]).await.unwrap();
    client.describe(lost(EPOCH.0)).await.unwrap();
    let path = socket(&shard.folder);
    let error = shard.end.await.unwrap().unwrap_err();
    assert!(matches!(error, ShardError::StreamEnded { why: StreamEnd::GivenUp }), "{error}");
    assert!(!path.exists(), "its socket is left behind");
}

#[tokio::test]
async fn a_rank_that_no_router_wants_leaves() {
    let brief = Patience { for_router: Duration::from_millis(1), ..Patience::USUAL };
    let shard = Shard::start_in(tempfile::tempdir().unwrap(), Arc::new(Solo), brief);
    let mut client = shard.configured().await;
    drop(Run::open(&mut client).await);
    // Whether the end of the stream or the loss of its reader is seen first decides which of the two.
    let end = shard.end.await.unwrap();
    assert!(matches!(end, Ok(()) | Err(ShardError::StreamEnded { .. })), "{end:?}");
}

#[tokio::test]
async fn steps_of_an_earlier_router_are_refused_once_another_has_configured() {
    let shard = Shard::start(Arc::new(Solo));
    let mut first = Run::open(&mut shard.configured().await).await;
    let _second = shard.configured().await;
    let status = first.run(vec![start(1, &[2])], vec![prefill(1, &[2], 0)]).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    shard.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_stream_ends_a_rank_whose_worker_is_stuck() {
    let brief = Patience { for_step: Duration::from_millis(1), ..Patience::USUAL };
    let shard = Shard::start_in(tempfile::tempdir().unwrap(), Arc::new(Solo), brief);
    let mut client = shard.configured().await;
    let mut run = Run::open(&mut client).await;
    run.send(step(0, vec![start(1, &[HANG_TOKEN])], vec![prefill(1, &[HANG_TOKEN], 0)])).await;
    // More steps than there is room for: the shard reads no further.
    for id in 1..12 {
        run.send(step(id, Vec::new(), vec![decode(1, id as u32)])).await;
    }
    while !fake::HANGS.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
    drop(run);
    let error = shard.end.await.unwrap().unwrap_err();
    assert!(matches!(error, ShardError::StreamEnded { .. }), "{error}");
}

/// As a grammar that rules everything out.
#[tokio::test]
async fn a_sequence_that_no_token_is_left_for_fails_alone() {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = shard.configured().await;
    let mut run = Run::open(&mut client).await;
    let starts = vec![start(1, &[2]), start(2, &[3]), start(3, &[4])];
    let work = vec![prefill(1, &[2], 0), prefill(2, &[3], 1), prefill(3, &[4], 2)];
    let nothing = TokenMask { sequence: SequenceId(2), allowed: vec![0; VOCABULARY as usize / 8] };
    run.send(Step { masks: vec![nothing], ..step(0, starts, work) }).await;
    let outcomes: Vec<Outcome> =
        run.receive().await.unwrap().results.into_iter().map(|result| result.outcome).collect();
    assert!(matches!(&outcomes[1], Outcome::Failed(reason) if reason.contains("grammar")), "{outcomes:?}");
    // Planned before the router knew.
    let again = run.run(Vec::new(), vec![decode(1, 1), decode(2, 1), decode(3, 1)]).await.unwrap();
    assert!(matches!(again[1], Outcome::Failed(_)));
    for (index, context) in [(0, [2]), (2, [4])] {
        let tokens = [token(&outcomes[index]), token(&again[index])];
        assert_eq!(tokens[..], fake::continuation(&context, 2));
    }
    let alone = run.run(Vec::new(), vec![decode(2, 2)]).await.unwrap();
    assert!(matches!(alone[0], Outcome::Failed(_)));
    shard.stop().await.unwrap();
}

#[tokio::test]
async fn logits_that_are_no_numbers_end_the_group() {
    let group = Threads::group(2, Duration::from_secs(300)).unwrap();
    let shards: Vec<Shard> = group.into_iter().map(|rank| Shard::start(Arc::new(rank))).collect();
    let mut runs = Vec::new();
    for shard in &shards {
        runs.push(Run::open(&mut shard.configured().await).await);
    }
    let starts = vec![start(1, &[2]), start(2, &[BROKEN_TOKEN])];
    let broken = step(0, starts, vec![prefill(1, &[2], 0), prefill(2, &[BROKEN_TOKEN], 1)]);
    for run in &mut runs {
        run.send(broken.clone()).await;
    }
    for (run, shard) in runs.iter_mut().zip(shards) {
        assert_eq!(run.receive().await.unwrap_err().code(), Code::Unavailable);
        let error = shard.end.await.unwrap().unwrap_err();
        assert!(matches!(error, ShardError::Worker(_) | ShardError::StreamEnded { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_panic_ends_the_shard() {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = shard.configured().await;
    let mut run = Run::open(&mut client).await;
    run.run(vec![start(1, &[PANIC_TOKEN])], vec![prefill(1, &[PANIC_TOKEN], 0)]).await.unwrap_err();
    let path = socket(&shard.folder);
    let error = shard.end.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "compute: the worker panicked: on purpose");
    assert!(!path.exists(), "its socket is left behind");
}

#[tokio::test]
async fn told_to_stop_it_answers_says_so_and_leaves_nothing() {
    let shard = Shard::start(Arc::new(Solo));
    let mut client = shard.configured().await;
    let mut run = Run::open(&mut client).await;
    run.run(vec![start(1, &[2])], vec![prefill(1, &[2], 0)]).await.unwrap();
    shard.tasks.stop_token().cancel();
    let status = run.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let path = socket(&shard.folder);
    shard.end.await.unwrap().unwrap();
    assert!(!path.exists(), "its socket is left behind");
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(socket(&folder)).unwrap());
    let shard = Shard::start_in(folder, Arc::new(Solo), Patience::USUAL);
    shard.configured().await;
    shard.stop().await.unwrap();
}

/// What two sequences get in six steps, of which so many are sent before the first of them is answered. One has its
/// prompt in two chunks, both draw their tokens.
async fn drawn(ranks: Vec<Arc<dyn Communicator>>, in_flight: usize) -> Vec<Vec<Outcome>> {
    let shards: Vec<Shard> = ranks.into_iter().map(Shard::start).collect();
    let mut runs = Vec::new();
    for shard in &shards {
        runs.push(Run::open(&mut shard.configured().await).await);
    }
    let (short, long) = ([1, 2, 3], [9, 8, 7, 6, 5]);
    let seeded =
        |start: SequenceStart, seed| SequenceStart { sampling: SamplingParams::seeded(seed), ..start };
    let first = Work {
        tokens: WorkTokens::Ids(long[..2].iter().copied().map(TokenId).collect()),
        sampling: Sampling::Skip,
        ..prefill(2, &long, 1)
    };
    let second = Work {
        first_position: Position(2),
        tokens: WorkTokens::Ids(long[2..].iter().copied().map(TokenId).collect()),
        ..prefill(2, &long, 2)
    };
    let grows = |work: Work, block| Work { new_blocks: vec![BlockId(block)], ..work };
    let starts = vec![seeded(start(1, &short), 4), seeded(start(2, &long), 5)];
    let steps = [
        step(0, starts, vec![prefill(1, &short, 0), first]),
        step(1, Vec::new(), vec![decode(1, 3), second]),
        step(2, Vec::new(), vec![grows(decode(1, 4), 3), decode(2, 5)]),
        step(3, Vec::new(), vec![decode(1, 5), decode(2, 6)]),
        step(4, Vec::new(), vec![decode(1, 6), decode(2, 7)]),
        step(5, Vec::new(), vec![decode(1, 7), grows(decode(2, 8), 4)]),
    ];
    let mut outcomes = Vec::new();
    let mut sent = 0;
    while outcomes.len() < steps.len() {
        let until = steps.len().min(outcomes.len() + in_flight);
        // A rank has all of them before the next rank has any: it computes the first and waits for the others.
        for run in &mut runs {
            for step in &steps[sent..until] {
                run.send(step.clone()).await;
            }
        }
        sent = until;
        outcomes.push(received(&mut runs).await);
    }
    for shard in shards {
        shard.stop().await.unwrap();
    }
    outcomes
}

/// Rank 0's answer to a step, when every rank has answered.
async fn received(runs: &mut [Run]) -> Vec<Outcome> {
    let mut results = Vec::new();
    for run in runs {
        results.extend(run.receive().await.unwrap().results);
    }
    results.into_iter().map(|result| result.outcome).collect()
}

#[tokio::test]
async fn a_step_that_waits_for_the_one_before_it_brings_what_it_brings_afterwards() {
    let alone = || vec![Arc::new(Solo) as Arc<dyn Communicator>];
    let two = || {
        let group = Threads::group(2, Duration::from_secs(300)).unwrap();
        group.into_iter().map(|rank| Arc::new(rank) as Arc<dyn Communicator>).collect::<Vec<_>>()
    };
    let one_by_one = drawn(alone(), 1).await;
    assert!(one_by_one[2..].iter().flatten().all(|outcome| matches!(outcome, Outcome::Sampled(_))));
    for ahead in [drawn(alone(), 2).await, drawn(two(), 1).await, drawn(two(), 2).await] {
        assert_eq!(ahead, one_by_one);
    }
}

#[tokio::test]
async fn every_rank_learns_what_rank_0_sampled() {
    let group = Threads::group(2, Duration::from_secs(300)).unwrap();
    let shards: Vec<Shard> = group.into_iter().map(|rank| Shard::start(Arc::new(rank))).collect();
    let mut runs = Vec::new();
    for shard in &shards {
        runs.push(Run::open(&mut shard.configured().await).await);
    }
    let context = [1, 2, 3];
    for id in 0..5 {
        let (starts, work) = match id {
            0 => (vec![start(1, &context)], prefill(1, &context, 0)),
            _ => (Vec::new(), decode(1, 2 + id)),
        };
        let new_blocks = if id == 2 { vec![BlockId(1)] } else { work.new_blocks.clone() };
        let step = step(u64::from(id), starts, vec![Work { new_blocks, ..work }]);
        for run in &mut runs {
            run.send(step.clone()).await;
        }
        // The fake model compares what the ranks have in their KV blocks.
        let output = runs[0].receive().await.unwrap();
        let expected = fake::continuation(&context, id as usize + 1)[id as usize];
        assert_eq!(token(&output.results[0].outcome), expected);
        assert!(runs[1].receive().await.unwrap().results.is_empty());
    }
    for shard in shards {
        shard.stop().await.unwrap();
    }
}
