//! A warm answer equals a cold one, and one with the cache off.

use futures::future::join_all;
use lockstep_integration_tests::client::Generate;
use lockstep_integration_tests::cluster::Setup;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

fn requests() -> Vec<Generate> {
    let story = "There was a little house near the river. A girl lived there with her dog. ".repeat(12);
    let endings = ["One day", "The girl said", "The dog"];
    let prompts = endings.iter().map(|ending| format!("{story}{ending}"));
    prompts
        .zip(0..)
        .flat_map(|(prompt, seed)| {
            let greedy = Generate::greedy(&prompt, 30);
            [greedy.clone(), greedy.seeded(seed)]
        })
        .collect()
}

#[tokio::test]
async fn a_warm_answer_equals_a_cold_one() {
    let off = Setup::demo(LOCKSTEP).flags(&["--prefix-caching", "false"]).start();
    let on = Setup::demo(LOCKSTEP).start();
    let (off, on) = (off.client(), on.client());
    let mut cold = Vec::new();
    for request in requests() {
        cold.push(off.generate(&request).await.expect("it answers"));
    }
    for (request, cold) in requests().iter().zip(&cold) {
        assert_eq!(&on.generate(request).await.expect("it answers"), cold, "the first time");
    }
    let found_so_far = on.metric("lockstep_prefix_hit_tokens_total").await;
    let requests = requests();
    let warm = join_all(requests.iter().map(|request| on.generate(request))).await;
    for (warm, cold) in warm.into_iter().zip(&cold) {
        assert_eq!(&warm.expect("it answers"), cold, "from the cache, all at once");
    }
    let found = on.metric("lockstep_prefix_hit_tokens_total").await - found_so_far;
    assert!(found > 600.0, "most of six long prompts was in the cache; found {found} tokens");
}
