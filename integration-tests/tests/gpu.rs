//! The whole server on an emulated GPU: the same bytes whatever is computed beside, whatever fails.

use futures::future::join_all;
use lockstep_integration_tests::client::{Client, EventStream, Generate};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::emulated_gpu::{EmulatedGpu, check_log};
use lockstep_integration_tests::{DEADLINE, faults};
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// CUDA_ERROR_ILLEGAL_ADDRESS, after which a context is of no use.
const ILLEGAL_ADDRESS: &str = "700";

fn requests() -> Vec<Generate> {
    let story =
        "A little red bird sat on a tree. It looked down at the river and saw a fish. The bird said";
    let penalised = Generate::greedy("Tom", 6).seeded(7).with("repetition_penalty", json!(1.3));
    vec![
        Generate::greedy("Once upon a time", 9).with("top_n_tokens", json!(3)),
        Generate::greedy(story, 6).seeded(3).with("decoder_input_details", json!(true)),
        penalised.with("top_n_tokens", json!(2)),
    ]
}

/// Every answer alone, and then every answer twice over, all at once.
async fn answers(setup: &Setup) -> (Vec<Value>, Vec<Value>) {
    let cluster = setup.start();
    let client = cluster.client();
    let mut alone = Vec::new();
    for request in requests() {
        alone.push(client.generate(&request).await.expect("it answers"));
    }
    let crowd: Vec<Generate> = (0..2).flat_map(|_| requests()).collect();
    let crowd = join_all(crowd.iter().map(|request| client.generate(request))).await;
    check_log(&cluster);
    (alone, crowd.into_iter().map(|answer| answer.expect("it answers")).collect())
}

/// Two ranks: on one GPU, where they exchange through main memory, or by an NCCL that takes both; and on one each.
fn two_ranks(gpu: &EmulatedGpu) -> [Setup; 3] {
    let shared = || gpu.setup(LOCKSTEP).ranks(2).flags(&["--ranks-per-gpu", "2"]);
    let by_nccl = shared().variable("NCCL_MULTI_RANK_GPU_ENABLE", "1");
    [shared(), by_nccl, gpu.setup(LOCKSTEP).ranks(2).variable("EMULATED_GPUS", "2")]
}

/// How many ranks of a cluster of [`two_ranks`] have to say that they exchange by NCCL.
const BY_NCCL: [usize; 3] = [0, 2, 2];

#[tokio::test]
async fn answers_are_the_same_alone_in_a_crowd_in_other_chunks_and_on_two_ranks() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    let (reference, crowd) = answers(&gpu.setup(LOCKSTEP).flags(&["--prefix-caching", "false"])).await;
    for (index, answer) in crowd.iter().enumerate() {
        assert_eq!(answer, &reference[index % reference.len()], "in a crowd");
    }
    for (two, by_nccl) in two_ranks(&gpu).into_iter().zip(BY_NCCL) {
        let (alone, crowd) = answers(&two.flags(&["--max-batch-prefill-tokens", "24"])).await;
        assert_eq!(alone, reference, "two ranks, {by_nccl} by NCCL");
        for (index, answer) in crowd.iter().enumerate() {
            assert_eq!(
                answer,
                &reference[index % reference.len()],
                "two ranks, {by_nccl} by NCCL, in a crowd"
            );
        }
    }
}

#[tokio::test]
async fn a_gpu_that_is_there_is_used_and_its_fastest_products_serve() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    let mut setup = gpu.setup(LOCKSTEP);
    setup.flags.retain(|flag| !["--device", "cuda", "--exact"].contains(&flag.as_str()));
    let cluster = setup.start();
    assert_eq!(cluster.count_in_log("gpu=\"emulated GPU\""), 1);
    let answers = join_all((0..5).map(|seed| {
        let client = cluster.client();
        async move { client.generate(&Generate::greedy("Once upon a time", 12).seeded(seed)).await }
    }));
    for answer in answers.await {
        let answer = answer.expect("it answers");
        assert_eq!(answer["details"]["generated_tokens"], 12, "{answer}");
    }
    check_log(&cluster);
}

#[tokio::test]
async fn answers_are_the_same_with_and_without_recordings_and_where_nothing_can_be_recorded() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    let setup = gpu.setup(LOCKSTEP);
    let (reference, crowd) = answers(&setup).await;
    for how in
        [setup.clone().flags(&["--cuda-graphs", "off"]), setup.variable("EMULATED_GPU_NO_CAPTURE", "1")]
    {
        assert_eq!(answers(&how).await, (reference.clone(), crowd.clone()));
    }
}

#[tokio::test]
async fn answers_are_the_same_in_a_crowd_whatever_weights_and_blocks_are_held_in() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    for flags in [["--quantize", "int4"], ["--kv-cache-dtype", "fp8"], ["--dtype", "float16"]] {
        let (alone, crowd) = answers(&gpu.setup(LOCKSTEP).flags(&flags)).await;
        for (index, answer) in crowd.iter().enumerate() {
            assert_eq!(answer, &alone[index % alone.len()], "{flags:?}");
        }
    }
}

#[test]
fn what_is_recorded_is_counted_and_what_cannot_be_is_said_once() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    let recorded = gpu.setup(LOCKSTEP).start();
    assert_eq!(recorded.count_in_log("recordings=0 B"), 0);
    let plain = gpu.setup(LOCKSTEP).flags(&["--cuda-graphs", "off"]).start();
    assert_eq!(plain.count_in_log("recordings=0 B"), 1);
    let refused = gpu.setup(LOCKSTEP).variable("EMULATED_GPU_NO_CAPTURE", "1").start();
    assert_eq!(refused.count_in_log("decode steps are not recorded"), 1);
}

/// How many ranks have begun a step behind another, after as many answers as it takes for all that may.
async fn count_behind(cluster: &Cluster, ranks: usize) -> usize {
    let client = cluster.client();
    let request = Generate::greedy("Once upon a time", 24);
    let count = || cluster.count_in_log("a step was begun behind the one the device is at");
    let all = async {
        loop {
            client.generate(&request).await.expect("it answers");
            if count() >= ranks {
                break;
            }
        }
    };
    tokio::time::timeout(DEADLINE, all).await.expect("steps are begun behind others");
    check_log(cluster);
    count()
}

#[tokio::test]
async fn steps_are_begun_before_the_gpu_is_done_unless_the_host_is_needed_in_the_middle() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    assert_eq!(count_behind(&gpu.setup(LOCKSTEP).start(), 1).await, 1);
    for (two, by_nccl) in two_ranks(&gpu).into_iter().zip(BY_NCCL) {
        assert_eq!(count_behind(&two.start(), by_nccl).await, by_nccl);
    }
}

async fn rest(stream: EventStream) -> Vec<String> {
    let rest = tokio::time::timeout(DEADLINE, stream.rest()).await.expect("the stream ends");
    rest.expect("the connection holds")
}

/// The stream's events, with `disturb` done once three of them have been seen.
async fn disturbed(client: &Client, request: &Generate, disturb: impl FnOnce()) -> Vec<String> {
    let mut stream = client.stream(request).await.expect("it answers");
    let mut events = Vec::new();
    while events.len() < 3 {
        events.push(stream.next().await.expect("the answer is longer").expect("the connection holds"));
    }
    disturb();
    events.extend(rest(stream).await);
    events
}

/// A stream that is disturbed is the one that is not, and the group was restarted once.
async fn goes_on(cluster: &Cluster, disturb: impl FnOnce()) {
    let client = cluster.client();
    let request = Generate::greedy("Once upon a time", 10).seeded(5);
    let undisturbed = rest(client.stream(&request).await.expect("it answers")).await;
    assert_eq!(disturbed(&client, &request, disturb).await, undisturbed);
    cluster.wait_for_log("the service is ready again");
    assert_eq!(cluster.returns(), 1);
    check_log(cluster);
}

#[tokio::test]
async fn a_stream_goes_on_after_an_error_of_cuda_and_its_reason_is_logged() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    for ranks in [1, 2] {
        let cluster = gpu.setup(LOCKSTEP).ranks(ranks).flags(&["--ranks-per-gpu", "2"]).start();
        goes_on(&cluster, || gpu.fail_with(ILLEGAL_ADDRESS)).await;
        assert!(cluster.count_in_log("CUDA_ERROR_ILLEGAL_ADDRESS") > 0, "the reason is not logged");
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_a_rank_was_killed() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    for (two, by_nccl) in two_ranks(&gpu).into_iter().zip(BY_NCCL) {
        let cluster = two.start();
        assert_eq!(cluster.count_in_log("joined the group's devices"), by_nccl);
        // Sums that are made on the host cannot be recorded.
        assert_eq!(cluster.count_in_log("recordings=0 B"), 2 - by_nccl);
        goes_on(&cluster, || faults::strike(faults::rank(&cluster, 1))).await;
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_a_gpu_hung() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    let cluster = gpu.setup(LOCKSTEP).flags(&["--step-timeout", "4"]).start();
    goes_on(&cluster, || gpu.fail_with("hang")).await;
}

#[tokio::test]
async fn a_kv_cache_of_all_memory_that_is_left_leaves_room_for_steps_and_recordings() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    let (reference, _) = answers(&gpu.setup(LOCKSTEP)).await;
    let mut setup = gpu.setup(LOCKSTEP).variable("EMULATED_GPU_MEMORY_MIB", "1024");
    let wished = setup.flags.iter().position(|flag| flag == "--kv-cache-memory").expect("it is given");
    setup.flags[wished + 1] = "64GiB".to_owned();
    let cluster = setup.start();
    assert_eq!(cluster.count_in_log("kv_cache=64.0 GiB"), 0, "the GPU has less");
    drop(cluster);
    let (alone, crowd) = answers(&setup).await;
    assert_eq!(alone, reference);
    assert!(crowd.iter().all(|answer| reference.contains(answer)));
}

#[test]
fn a_gpu_that_is_too_small_is_said_at_start() {
    let Some(gpu) = EmulatedGpu::find() else { return };
    let cases = [
        ("8", "of weights onto the GPU: 8.0 MiB of its 8.0 MiB are free; split the model over more GPUs"),
        ("64", "48.0 KiB is one KV block; split the model over more GPUs with --num-shard, or lower"),
    ];
    for (mebibytes, reason) in cases {
        let mut cluster = gpu.setup(LOCKSTEP).variable("EMULATED_GPU_MEMORY_MIB", mebibytes).begin();
        assert!(!cluster.wait().success());
        assert!(cluster.log().contains(reason), "{mebibytes} MiB: {}", cluster.log());
        check_log(&cluster);
    }
}
