//! The same bytes from one process, from two and from four, alone and under load.

use futures::future::join_all;
use lockstep_integration_tests::client::Generate;
use lockstep_integration_tests::cluster::Setup;
use serde_json::Value;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");
const PROMPTS: [&str; 4] = [
    "Once upon a time",
    "The capital of France is",
    "A little red bird sat on a tree. It looked down at the river and saw a fish. The bird said",
    "Tom",
];

fn requests() -> Vec<Generate> {
    let greedy = PROMPTS.iter().map(|prompt| Generate::greedy(prompt, 40));
    let seeded = PROMPTS.iter().zip(1..).map(|(prompt, seed)| Generate::greedy(prompt, 40).seeded(seed));
    greedy.chain(seeded).map(|request| request.with("top_n_tokens", 3.into())).collect()
}

/// Every answer alone, and then every answer four times over, all at once.
async fn answers(ranks: u32) -> (Vec<Value>, Vec<Value>) {
    let cluster = Setup::demo(LOCKSTEP).ranks(ranks).flags(&["--prefix-caching", "false"]).start();
    let client = cluster.client();
    let mut alone = Vec::new();
    for request in requests() {
        alone.push(client.generate(&request).await.expect("it answers"));
    }
    let crowd: Vec<Generate> = (0..4).flat_map(|_| requests()).collect();
    let crowd = join_all(crowd.iter().map(|request| client.generate(request))).await;
    (alone, crowd.into_iter().map(|answer| answer.expect("it answers")).collect())
}

#[tokio::test]
async fn one_two_and_four_processes_answer_alike() {
    let (reference, _) = answers(1).await;
    for ranks in [1, 2, 4] {
        let (alone, crowd) = answers(ranks).await;
        // Texts, token ids, log-probabilities and the rivals' as printed: the shortest decimal of a float is
        // different for every float.
        assert_eq!(alone, reference, "{ranks} ranks, alone");
        for (index, answer) in crowd.iter().enumerate() {
            assert_eq!(answer, &reference[index % reference.len()], "{ranks} ranks, under load");
        }
    }
}
