//! A model as its files say: chat templates, special tokens, end tokens, defaults.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use lockstep_models::ModelFiles;
use lockstep_proto::TokenId;
use lockstep_router::model::Model;
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Reply, Server, config};

/// Ids of the fixture's tokenizer.
const BOS: u64 = 1;
const END: u32 = 2;

/// A model of these files, with the Llama-like tokenizer of the fixtures.
fn model(files: &[(&str, Value)]) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = include_str!("fixtures/tokenizers/llama2.json");
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    for (name, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    Model::load(&ModelFiles::Folder(folder.path().to_path_buf()), "test/model".to_owned()).unwrap()
}

async fn server(model: Model) -> Server {
    let server = Server::loading_rows(FakeModel::Script(vec![TokenId(END)]), config(), model, 1000);
    server.control.come_back();
    server.app.wait_until_ready().await.unwrap();
    server
}

fn chat(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "the cat"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn ids(tokens: &Value) -> Vec<u64> {
    tokens.as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap()).collect()
}

/// How often a sequence begins in a chat's prompt.
async fn beginnings(template: &str, flags: Value) -> usize {
    let mut tokenizer_config =
        json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template});
    tokenizer_config.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
    let server = server(model(&[("tokenizer_config.json", tokenizer_config)])).await;
    let reply = server.post("/chat_tokenize", chat(json!({}))).await.json();
    ids(&reply["tokenize_response"]).into_iter().filter(|id| *id == BOS).count()
}

#[tokio::test]
async fn a_chat_prompt_begins_as_often_as_its_template_says() {
    let writes = "{{ bos_token }}{{ messages[0].content }}";
    for flags in [json!({}), json!({"add_bos_token": true}), json!({"add_bos_token": false})] {
        assert_eq!(beginnings(writes, flags.clone()).await, 1, "{flags}");
        assert_eq!(beginnings("{{ messages[0].content }}", flags.clone()).await, 0, "{flags}");
    }
}

#[tokio::test]
async fn a_plain_prompt_begins_as_the_tokenizer_says() {
    let flags = json!({"add_bos_token": false, "bos_token": "<s>"});
    let server = server(model(&[("tokenizer_config.json", flags)])).await;
    let reply = server.post("/tokenize", json!({"inputs": "the cat"})).await.json();
    assert_eq!(ids(&reply).iter().filter(|id| **id == BOS).count(), 1, "{reply}");
}

#[tokio::test]
async fn without_a_template_texts_are_continued_and_chats_refused() {
    let server = server(model(&[])).await;
    let Reply { status, text, .. } = server.post("/v1/chat/completions", chat(json!({}))).await;
    assert!(status == 422 && text.contains("the model has no chat template"), "{status} {text}");
    let parameters = json!({"max_new_tokens": 1});
    let reply = server.post("/generate", json!({"inputs": "the cat", "parameters": parameters})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn a_refusal_of_the_template_reaches_the_client() {
    let template = json!("{{ raise_exception('System role not supported') }}");
    let server = server(model(&[("chat_template.jinja", template)])).await;
    let reply = server.post("/v1/chat/completions", chat(json!({}))).await;
    assert_eq!((reply.status, &reply.json()["error_type"]), (422, &json!("template_error")));
    assert_eq!(reply.json()["error"]["message"], "Template error: System role not supported");
}

#[tokio::test]
async fn switches_of_a_request_reach_the_template_and_replace_nothing() {
    let template = json!("{{ thinks }} {{ documents | length }} {{ messages | length }}");
    let server = server(model(&[("chat_template.jinja", template)])).await;
    let body = chat(json!({"chat_template_kwargs": {"thinks": false}, "documents": [{"text": "a"}]}));
    let reply = server.post("/chat_tokenize", body).await.json();
    assert_eq!(reply["templated_text"], "False 1 1");
    let body = chat(json!({"chat_template_kwargs": {"messages": []}}));
    let reply = server.post("/chat_tokenize", body).await;
    assert!(reply.status == 422 && reply.text.contains("cannot replace `messages`"), "{}", reply.text);
}

#[tokio::test]
async fn defaults_of_the_model_count_for_chats_only() {
    let generation = json!({"eos_token_id": [7, 2], "do_sample": true, "temperature": 0.5, "top_k": 20});
    let template = json!("{{ messages[0].content }}");
    let mut model = model(&[("generation_config.json", generation), ("chat_template.jinja", template)]);
    assert_eq!(model.end_tokens, [TokenId(7), TokenId(END)]);
    let defaults = &model.sampling_defaults;
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (Some(0.5), Some(20), None));
    // A value that no request may have shows which routes take it.
    model.sampling_defaults.top_k = Some(-1);
    let server = server(model).await;
    assert_eq!(server.post("/v1/chat/completions", chat(json!({}))).await.status, 422);
    for spoken in
        [json!({"top_k": 5}), json!({"top_k": 0}), json!({"top_k": -1}), json!({"temperature": 0})]
    {
        assert_eq!(server.post("/v1/chat/completions", chat(spoken.clone())).await.status, 200, "{spoken}");
    }
    let parameters = json!({"max_new_tokens": 1, "do_sample": true});
    let reply = server.post("/generate", json!({"inputs": "the cat", "parameters": parameters})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}
