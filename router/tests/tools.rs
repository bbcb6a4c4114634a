//! Tools in chats: calls in answers, whole and streamed, what they are held to, and what templates are told.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use std::sync::Arc;

use lockstep_proto::{TokenId, Tokens};
use lockstep_router::app::{AppConfig, KeptAnswers};
use lockstep_router::chat::{ChatTemplate, TemplateTokens};
use lockstep_router::model::Model;
use lockstep_router::shards::fake::{FakeModel, FakeShape};
use lockstep_router::testing::{TEMPLATE, VOCABULARY_SIZE, byte_level_tokenizer_with, ids};
use lockstep_router::tokenizer::Tokenizer;
use lockstep_router::tools::CallSupport;
use serde_json::{Value, json};
use support::{Server, config, tokens_of};

const PATH: &str = "/v1/chat/completions";
const POSITIONS: Tokens = Tokens(4_000);

/// A template that writes tools, calls and results around these marks.
fn template(open: &str, close: &str) -> String {
    format!(
        "{{% for tool in tools or [] %}}{{{{ tool.function | tojson }}}}\n{{% endfor %}}\
         {{% for message in messages %}}[{{{{ message.role }}}}]{{{{ message.content }}}}\
         {{% for call in message.tool_calls or [] %}}{open}{{\"name\": \"{{{{ call.function.name }}}}\", \
         \"arguments\": {{{{ call.function.arguments | tojson }}}}}}{close}{{% endfor %}}\
         {{% if message.role == 'tool' %}}#{{{{ message.tool_call_id }}}}{{% endif %}}\n{{% endfor %}}"
    )
}

/// A server whose model has this template, and these special tokens besides.
async fn serving(fake: FakeModel, template: &str, marks: &[&str]) -> Server {
    serving_with(config(), fake, (template, marks)).await
}

async fn serving_with(config: AppConfig, fake: FakeModel, (template, marks): (&str, &[&str])) -> Server {
    let tokenizer = Tokenizer::from_bytes(byte_level_tokenizer_with(marks).as_bytes()).unwrap();
    let template = ChatTemplate::compile(template, TemplateTokens::default()).unwrap();
    let calls = CallSupport::of(Some(&template), &tokenizer, None);
    let model = Model {
        tokenizer: Arc::new(tokenizer),
        template: Some(template),
        calls,
        max_positions: Some(POSITIONS),
        ..support::model()
    };
    let mut config = config;
    config.engine.limits.max_total = POSITIONS;
    config.engine.limits.max_queue_tokens = Tokens(100_000);
    config.limits.max_total_tokens = POSITIONS;
    config.limits.max_input_tokens = POSITIONS.saturating_sub(Tokens(1));
    let vocabulary_size = VOCABULARY_SIZE + u32::try_from(marks.len()).unwrap();
    let shape =
        FakeShape { vocabulary_size, max_positions: POSITIONS, block_size: Tokens(16), blocks: 2_000 };
    let server = Server::loading_shape(fake, config, model, shape);
    server.control.come_back();
    server.app.wait_until_ready().await.unwrap();
    server
}

/// A model of Hermes' style that always answers with this text.
async fn hermes(answer: &str) -> Server {
    let script = tokens_of(answer).into_iter().map(TokenId).collect();
    serving(FakeModel::Script(script), &template("<tool_call>", "</tool_call>"), &[]).await
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {
            "type": "object", "properties": {"place": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 3]}},
            "required": ["place"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now"}}
    ])
}

fn ask(fields: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "Hi"}], "tools": tools(), "temperature": 0});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn with_stream(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body
}

/// A choice of a stream, put together as clients do it: the message, the log-probabilities, the reason.
fn assembled(events: &[String], index: u64) -> Value {
    let mut message = json!({"role": null, "content": null});
    let (mut logprobs, mut reason) = (Vec::new(), Value::Null);
    for event in events.iter().filter(|event| *event != "[DONE]") {
        let chunk: Value = serde_json::from_str(event).unwrap();
        let Some(choice) =
            chunk["choices"].as_array().unwrap().iter().find(|choice| choice["index"] == index)
        else {
            continue;
        };
        let delta = &choice["delta"];
        if let Some(role) = delta.get("role") {
            assert!(message["role"].is_null(), "the role comes once, first");
            message["role"] = role.clone();
        }
        assert!(!message["role"].is_null(), "{event}");
        append(&mut message["content"], &delta["content"]);
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let at = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            if message.get("tool_calls").is_none() {
                message["tool_calls"] = json!([]);
            }
            let calls = message["tool_calls"].as_array_mut().unwrap();
            if at == calls.len() {
                assert!(!call["id"].as_str().unwrap().is_empty());
                calls.push(json!({"id": call["id"], "type": call["type"],
                    "function": {"name": call["function"]["name"], "arguments": ""}}));
            }
            append(&mut calls[at]["function"]["arguments"], &call["function"]["arguments"]);
        }
        logprobs.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    json!({"message": message, "logprobs": logprobs, "finish_reason": reason})
}

fn append(to: &mut Value, more: &Value) {
    if let Some(more) = more.as_str() {
        *to = json!(format!("{}{more}", to.as_str().unwrap_or_default()));
    }
}

/// The same with ids checked and blanked, and the empty content that streams may have told as none.
fn steady(mut message: Value) -> Value {
    let mut ids = Vec::new();
    for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
        ids.push(std::mem::replace(&mut call["id"], json!("ID")));
    }
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!(ids.len(), message["tool_calls"].as_array().map_or(0, Vec::len), "ids are unique");
    if message["content"] == json!("") {
        message["content"] = Value::Null;
    }
    message
}

/// The answer, whole; that its stream says the same is checked.
async fn answer(server: &Server, body: Value) -> Value {
    let reply = server.post(PATH, body.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let whole = reply.json();
    let events = server.stream(PATH, with_stream(body)).await;
    for choice in whole["choices"].as_array().unwrap() {
        let streamed = assembled(&events, choice["index"].as_u64().unwrap());
        assert_eq!(steady(streamed["message"].clone()), steady(choice["message"].clone()));
        assert_eq!(streamed["finish_reason"], choice["finish_reason"]);
        let logprobs = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        assert_eq!(streamed["logprobs"], json!(logprobs));
    }
    whole
}

fn call(name: &str, arguments: &str) -> Value {
    json!({"id": "ID", "type": "function", "function": {"name": name, "arguments": arguments}})
}

const TWO: &str = "Let me see: 東京.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Zürich\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

#[tokio::test]
async fn calls_come_out_of_the_models_own_syntax() {
    let server = hermes(TWO).await;
    let whole = answer(&server, ask(json!({}))).await;
    let choice = &whole["choices"][0];
    let expected = json!({"role": "assistant", "content": "Let me see: 東京.",
        "tool_calls": [call("weather", "{\"place\": \"Zürich\"}"), call("now", "{}")]});
    assert_eq!(steady(choice["message"].clone()), expected);
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(whole["usage"]["completion_tokens"], json!(TWO.len() + 1));
    let several = answer(&server, ask(json!({"n": 2, "logprobs": true, "top_logprobs": 1}))).await;
    assert_eq!(steady(several["choices"][1]["message"].clone()), expected);
    assert_eq!(several["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), TWO.len());
}

#[tokio::test]
async fn an_answer_without_calls_is_as_without_tools() {
    let server = hermes("No <tool needed: 世界\n").await;
    let whole = answer(&server, ask(json!({}))).await;
    let expected = json!({"role": "assistant", "content": "No <tool needed: 世界\n"});
    assert_eq!(whole["choices"][0]["message"], expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let none = answer(&server, ask(json!({"tool_choice": "none"}))).await;
    assert_eq!(none["choices"][0]["message"], expected);
}

#[tokio::test]
async fn a_stream_tells_each_call_before_its_arguments() {
    let server = hermes("<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>").await;
    let events = server.stream(PATH, with_stream(ask(json!({})))).await;
    let deltas: Vec<Value> = events
        .iter()
        .filter(|event| *event != "[DONE]")
        .map(|event| serde_json::from_str::<Value>(event).unwrap()["choices"][0]["delta"].clone())
        .collect();
    assert_eq!(deltas[0]["role"], "assistant");
    let first = &deltas[0]["tool_calls"][0];
    assert_eq!(
        (&first["index"], &first["type"], &first["function"]["name"]),
        (&json!(0), &json!("function"), &json!("now"))
    );
    assert!(first["id"].as_str().unwrap().starts_with("call_"));
    let more = |text: &str| json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]});
    assert_eq!(deltas[1..], [more("{"), more("}"), json!({})]);
}

#[tokio::test]
async fn what_cuts_an_answer_cuts_its_calls() {
    let server = hermes(TWO).await;
    let length = TWO.find("ürich").unwrap();
    let cut = answer(&server, ask(json!({"max_tokens": length}))).await;
    let expected = json!({"role": "assistant", "content": "Let me see: 東京.",
        "tool_calls": [call("weather", "{\"place\": \"Z")]});
    assert_eq!(steady(cut["choices"][0]["message"].clone()), expected);
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    let stopped = answer(&server, ask(json!({"stop": "rich"}))).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        stopped["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
        "{\"place\": \"Zü"
    );
    let complete = answer(&server, ask(json!({"stop": ["</tool_call>"]}))).await;
    assert_eq!(complete["choices"][0]["finish_reason"], "tool_calls");
    let before = answer(&server, ask(json!({"stop": ["<tool_call>"]}))).await;
    assert_eq!(
        before["choices"][0]["message"],
        json!({"role": "assistant", "content": "Let me see: 東京.\n"})
    );
}

#[tokio::test]
async fn special_tokens_of_the_syntax_are_read_and_never_shown() {
    let (open, args) = (VOCABULARY_SIZE, VOCABULARY_SIZE + 1);
    let mut script: Vec<u32> = "Ok. ".bytes().map(u32::from).collect();
    for (name, arguments) in [("weather", "{\"place\":\"A\"}"), ("now", "{}")] {
        script.push(open);
        script.extend(name.bytes().map(u32::from));
        script.push(args);
        script.extend(arguments.bytes().map(u32::from));
    }
    script.push(ids::IM_END);
    let script: Vec<TokenId> = script.into_iter().map(TokenId).collect();
    let source = template("[TOOL_CALLS]", "[ARGS]");
    let server = serving(FakeModel::Script(script), &source, &["[TOOL_CALLS]", "[ARGS]"]).await;
    let whole = answer(&server, ask(json!({"logprobs": true}))).await;
    let message = whole["choices"][0]["message"].clone();
    assert_eq!(message["tool_calls"][0]["id"].as_str().unwrap().len(), 9, "Mistral's templates want nine");
    let expected = json!({"role": "assistant", "content": "Ok.",
        "tool_calls": [call("weather", "{\"place\":\"A\"}"), call("now", "{}")]});
    assert_eq!(steady(message), expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    let none = server.post(PATH, ask(json!({"tool_choice": "none"}))).await.json();
    let content = none["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!content.contains("[TOOL_CALLS]"), "special tokens are hidden from other answers: {content}");
}

#[tokio::test]
async fn a_call_that_is_told_again_has_an_id_of_its_own() {
    let app = AppConfig { kept: KeptAnswers { response_cache_bytes: 1 << 20, journal: None }, ..config() };
    let script = tokens_of(TWO).into_iter().map(TokenId).collect();
    let server =
        serving_with(app, FakeModel::Script(script), (&template("<tool_call>", "</tool_call>"), &[])).await;
    for stream in [false, true] {
        let mut told = Vec::new();
        for hit in ["miss", "hit"] {
            let reply = server.post(PATH, ask(json!({"stream": stream}))).await;
            assert_eq!(reply.header("x-cache"), hit);
            let message = match stream {
                true => assembled(&reply.events(), 0)["message"].clone(),
                false => reply.json()["choices"][0]["message"].clone(),
            };
            told.push(message);
        }
        let ids = |message: &Value| -> Vec<Value> {
            let calls = message["tool_calls"].as_array().unwrap();
            calls.iter().map(|call| call["id"].clone()).collect()
        };
        let (first, again) = (ids(&told[0]), ids(&told[1]));
        assert!(first.len() == 2 && first.iter().all(|id| !again.contains(id)), "{first:?} {again:?}");
        assert_eq!(steady(told[0].clone()), steady(told[1].clone()));
    }
}

/// Whether a call's arguments are what `weather` and `now` take.
fn is_valid(call: &Value) -> bool {
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let fields = arguments.as_object().unwrap();
    match call["function"]["name"].as_str().unwrap() {
        "now" => fields.is_empty(),
        "weather" => {
            let is_known = fields.keys().all(|name| ["place", "days"].contains(&name.as_str()));
            let days = fields.get("days").is_none_or(|days| [json!(1), json!(2), json!(3)].contains(days));
            is_known && days && fields["place"].as_str().is_some_and(|place| place.chars().count() <= 12)
        }
        _ => false,
    }
}

#[tokio::test]
async fn whatever_the_model_says_forced_calls_are_valid() {
    const MARKS: [&str; 3] = ["<tool_call>", "[TOOL_CALLS]", "[ARGS]"];
    let sources = [
        (template("<tool_call>", "</tool_call>"), &[][..]),
        (template("<tool_call>", "</tool_call>"), &MARKS),
        (template("[TOOL_CALLS] [", "]"), &[]),
        (template("[TOOL_CALLS] [", "]"), &MARKS),
        (template("[TOOL_CALLS]", "[ARGS]"), &[]),
        (template("[TOOL_CALLS]", "[ARGS]"), &MARKS),
        (template("<|python_tag|>", ""), &[]),
        (template("", ""), &[]),
    ];
    for (source, marks) in sources {
        let server = serving(FakeModel::Seeded, &source, marks).await;
        for seed in 0..4 {
            let hot = |choice: Value| {
                ask(json!({"tool_choice": choice, "temperature": 1, "seed": seed,
                "parallel_tool_calls": false, "max_tokens": 1_500}))
            };
            let named = json!({"type": "function", "function": {"name": "weather"}});
            for choice in [json!("required"), named.clone(), json!("now")] {
                let whole = answer(&server, hot(choice.clone())).await;
                let chosen = &whole["choices"][0];
                assert_eq!(chosen["finish_reason"], "tool_calls", "{source}: {chosen}");
                let calls = chosen["message"]["tool_calls"].as_array().unwrap();
                assert_eq!((calls.len(), &chosen["message"]["content"]), (1, &Value::Null));
                assert!(is_valid(&calls[0]), "{source}: {calls:?}");
                assert!(choice != named || calls[0]["function"]["name"] == "weather", "{calls:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_choice_may_leave_out_functions() {
    let server = serving(FakeModel::Seeded, &template("<tool_call>", "</tool_call>"), &[]).await;
    for (name, seed) in [("weather", 1), ("now", 1), ("weather", 2), ("now", 2)] {
        let allowed =
            json!({"mode": "required", "tools": [{"type": "function", "function": {"name": name}}]});
        let choice = json!({"type": "allowed_tools", "allowed_tools": allowed});
        let body = ask(
            json!({"tool_choice": choice, "parallel_tool_calls": false, "temperature": 1, "seed": seed}),
        );
        let whole = answer(&server, body).await;
        assert_eq!(whole["choices"][0]["message"]["tool_calls"][0]["function"]["name"], name);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_its_grammar_ends_with_an_error() {
    let server =
        hermes("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": 3}}\n</tool_call>").await;
    server.control.ignore_masks();
    let whole = server.post(PATH, ask(json!({}))).await;
    assert_ne!(whole.status, 200, "{}", whole.text);
    let events = server.stream(PATH, with_stream(ask(json!({})))).await;
    assert!(events.last().unwrap().contains("\"error_type\""), "{events:?}");
}

#[tokio::test]
async fn templates_are_told_of_tools_calls_and_results() {
    let history = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"place\": \"Rom\"}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": [{"type": "text", "text": "5 °C"}]}
    ]);
    let body = json!({"messages": history, "tools": [{"type": "function", "function": {"name": "now"}}]});
    let server = hermes("").await;
    let rendered = server.post("/chat_tokenize", body.clone()).await.json();
    let expected = "{\"name\": \"now\"}\n[user]Weather?[assistant]<tool_call>{\"name\": \"weather\", \"arguments\": \
                    {\"place\": \"Rom\"}}</tool_call>[tool]5 °C#call_1";
    assert_eq!(rendered["templated_text"], expected);
    // One that knows nothing of it is told in plain messages.
    let server = serving(FakeModel::Hash, TEMPLATE, &[]).await;
    let rendered = server.post("/chat_tokenize", body.clone()).await.json();
    let text = rendered["templated_text"].as_str().unwrap();
    let introduction = "<|im_start|>user\nYou may call these functions, each described by a JSON schema:\n{\"name\":\"now\"}\nTo call";
    assert!(text.starts_with(introduction), "{text}");
    let called =
        "<|im_start|>assistant\n{\"name\":\"weather\",\"arguments\":{\"place\":\"Rom\"}}<|im_end|>\n";
    assert!(text.contains(&format!("{called}<|im_start|>tool\n5 °C<|im_end|>\n")), "{text}");
    let mut prompted = body;
    prompted["tool_prompt"] = json!("Call these:");
    let rendered = server.post("/chat_tokenize", prompted).await.json();
    let text = rendered["templated_text"].as_str().unwrap();
    assert!(text.starts_with("<|im_start|>user\nCall these:\n{\"name\":\"now\"}\n\nWeather?"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_with_tools_is_said_by_name() {
    let server = hermes("Hi").await;
    let function = |fields: Value| json!([{"type": "function", "function": fields}]);
    let call = |call: Value| json!([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]);
    let cases = [
        (
            json!({"tools": [{"type": "web_search"}]}),
            "tools",
            "must be of type function. Given: web_search",
        ),
        (json!({"tools": function(json!({"name": "a b"}))}), "tools", "needs a `name` of 1 to 128"),
        (json!({"tools": function(json!({"name": "a", "parameters": 3}))}), "tools", "needs a JSON Schema"),
        (
            json!({"tools": function(json!({"name": "a", "parameters": {"type": "string"}}))}),
            "tools",
            "of type object. Given for a: \"string\"",
        ),
        (
            json!({"tools": function(json!({"name": "a", "strict": 1}))}),
            "tools",
            "a `strict` of another type",
        ),
        (
            json!({"tools": function(json!({"name": "a", "parameters": {"properties": {"b": {"format": "c"}}}}))}),
            "tools",
            "is not valid",
        ),
        (
            json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}}}),
            "tool_choice",
            "must be none, auto, required",
        ),
        (json!({"tool_choice": "other"}), "tool_choice", "names other, which is none of `tools`"),
        (json!({"tool_choice": {"type": "custom"}}), "tool_choice", "must be none, auto, required"),
        (json!({"response_format": {"type": "json_object"}}), "response_format", "together with `tools`"),
        (json!({"ignore_eos": true}), "ignore_eos", "together with `tools`"),
        (json!({"tool_prompt": "Call"}), "tool_prompt", "words of its own"),
        (
            json!({"messages": call(json!({"function": {}}))}),
            "messages",
            "needs a `function` with a `name`",
        ),
        (
            json!({"messages": call(json!({"function": {"name": "a", "arguments": 3}}))}),
            "messages",
            "must be a JSON object in a string",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "a", "tool_call_id": 3}]}),
            "messages",
            "`tool_call_id` of each of `messages` must be a string",
        ),
    ];
    for (fields, param, message) in cases {
        let reply = server.post(PATH, ask(fields.clone())).await;
        let error = reply.json();
        assert_eq!((reply.status, &error["error"]["param"]), (422, &json!(param)), "{fields}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(message), "{fields}: {error}");
    }
}
