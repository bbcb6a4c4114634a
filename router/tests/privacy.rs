//! Prompts are nobody's business: a log above debug never quotes one.

mod support;

use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::log::Log;
use support::{Server, config};
use tracing::Level;

const SECRET: &str = "my private text";

/// Requests that are refused or answered, all with the text in them.
fn requests() -> Vec<(&'static str, Value)> {
    vec![
        ("/generate", json!({"inputs": SECRET, "parameters": {"max_new_tokens": 2}})),
        ("/generate", json!({"inputs": [SECRET]})),
        ("/generate", json!({"inputs": "a", "parameters": SECRET})),
        ("/generate", json!({"inputs": "a", "parameters": {"stop": SECRET}})),
        ("/generate", json!({"inputs": SECRET.repeat(100)})),
        ("/v1/chat/completions", json!({"messages": SECRET})),
        ("/v1/chat/completions", json!({"messages": [SECRET]})),
        ("/v1/chat/completions", json!({"messages": [{"role": SECRET, "content": {"text": SECRET}}]})),
        ("/v1/completions", json!({"prompt": {"text": SECRET}})),
        ("/tokenize", json!({"inputs": [SECRET]})),
    ]
}

#[tokio::test]
async fn what_is_logged_above_debug_quotes_no_prompt() {
    let server = Server::start_with(FakeModel::Hash, config()).await;
    let quiet = Log::default();
    {
        let _heard = quiet.listen(Level::INFO);
        for (path, body) in requests() {
            server.post(path, body).await;
        }
    }
    let told = quiet.text();
    assert!(told.matches("request refused").count() >= 8, "{told}");
    assert!(!told.contains(SECRET), "{told}");
    // Whoever debugs is told why.
    let loud = Log::default();
    let _heard = loud.listen(Level::DEBUG);
    server.post("/v1/chat/completions", json!({"messages": SECRET})).await;
    assert!(loud.text().contains("why it is refused"), "{}", loud.text());
}
