//! Answers that keep to a grammar: who may ask for one and how, what is refused, what never gets out.
#![expect(clippy::unwrap_used, reason = "an answer of another shape fails the test")]

mod support;

use futures::future::join_all;
use lockstep_router::shards::fake::FakeModel;
use serde_json::{Value, json};
use support::{Server, config, tokens_of};

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 4},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": false,
        // The fake model would go on with spaces for long.
        "x-guidance": {"whitespace_flexible": false},
    })
}

fn is_person(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap();
    let age = value["age"].as_u64().unwrap();
    let length = value["name"].as_str().unwrap().chars().count();
    (1..=4).contains(&length) && age <= 120 && value.as_object().unwrap().len() == 2
}

async fn hashing() -> Server {
    Server::start_with(FakeModel::Hash, config()).await
}

fn generate(input: &str, grammar: &Value) -> Value {
    json!({"inputs": input, "parameters": {"max_new_tokens": 120, "grammar": grammar, "details": true}})
}

#[tokio::test]
async fn every_native_shape_constrains_the_answer() {
    let server = hashing().await;
    let shapes = [
        json!({"type": "json", "value": person()}),
        json!({"type": "json_object", "value": person()}),
        json!({"type": "json", "value": person().to_string()}),
        json!({"type": "json_schema", "value": {"name": "person", "schema": person()}}),
    ];
    for grammar in shapes {
        let reply = server.post("/generate", generate("Who?", &grammar)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let answer = reply.json();
        assert!(is_person(answer["generated_text"].as_str().unwrap()), "{answer}");
        assert_eq!(answer["details"]["finish_reason"], "eos_token");
    }
    let grammar = json!({"type": "regex", "value": "[a-c]{3}-[0-9]+x"});
    let text =
        server.post("/generate", generate("Which?", &grammar)).await.json()["generated_text"].clone();
    let (letters, rest) = text.as_str().unwrap().split_once('-').unwrap();
    assert!(letters.len() == 3 && letters.chars().all(|letter| "abc".contains(letter)), "{text}");
    assert!(rest.strip_suffix('x').unwrap().chars().all(|digit| digit.is_ascii_digit()), "{text}");
}

#[tokio::test]
async fn every_openai_shape_constrains_the_answer() {
    let server = hashing().await;
    let fields = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": person(), "strict": true}}}),
        json!({"response_format": {"type": "json_schema", "value": {"name": "p", "schema": person()}}}),
        json!({"response_format": {"type": "json_object", "value": person()}}),
        json!({"response_format": {"type": "json", "value": person()}}),
        json!({"structured_outputs": {"json": person()}}),
        json!({"guided_json": person()}),
        json!({"guided_json": person().to_string()}),
        json!({"grammar": {"type": "json", "value": person()}}),
    ];
    for field in fields {
        let mut body = json!({"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 120});
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let reply = server.post("/v1/chat/completions", body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let choice = reply.json()["choices"][0].clone();
        assert!(is_person(choice["message"]["content"].as_str().unwrap()), "{choice}");
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_choice_is_one_of_its_texts() {
    let server = hashing().await;
    for field in [
        json!({"guided_choice": ["yes", "\"no\"", "né"]}),
        json!({"structured_outputs": {"choice": ["yes", "\"no\"", "né"]}}),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "Well?"}], "max_tokens": 20});
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let content =
            server.post("/v1/chat/completions", body).await.json()["choices"][0]["message"]["content"]
                .clone();
        assert!(["yes", "\"no\"", "né"].contains(&content.as_str().unwrap()), "{content}");
    }
}

#[tokio::test]
async fn a_context_free_grammar_constrains_the_answer() {
    let server = hashing().await;
    let lark = "start: pair pair\npair: \"(\" word \")\"\nword: /[ab]{2}/";
    for field in [
        json!({"structured_outputs": {"grammar": lark}}),
        // What guidance sends.
        json!({"structured_outputs": {"grammar": lark}, "guided_grammar": lark}),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "Well?"}], "max_tokens": 20});
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let reply = server.post("/v1/chat/completions", body).await;
        let content = reply.json()["choices"][0]["message"]["content"].clone();
        let words: Vec<&str> = content.as_str().unwrap().split(['(', ')']).collect();
        assert!(
            matches!(words[..], ["", one, "", two, ""] if one.len() == 2 && two.len() == 2),
            "{content}"
        );
    }
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = hashing().await;
    let body = generate("Who?", &json!({"type": "json", "value": person()}));
    let whole = server.post("/generate", body.clone()).await.json();
    let events = server.stream("/generate_stream", body).await;
    let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let last = events.last().unwrap();
    assert_eq!(last["generated_text"], whole["generated_text"]);
    let ids: Vec<&Value> = events.iter().map(|event| &event["token"]["id"]).collect();
    let whole_ids: Vec<&Value> =
        whole["details"]["tokens"].as_array().unwrap().iter().map(|token| &token["id"]).collect();
    assert_eq!(ids, whole_ids);
}

#[tokio::test]
async fn what_is_no_grammar_is_refused_by_name() {
    let server = hashing().await;
    let cases = [
        (json!({"type": "json"}), "`grammar` needs a `value`"),
        (json!({"type": "regex"}), "`grammar` needs a `value`"),
        (json!({"type": "lark", "value": "x"}), "must have the `type`"),
        (json!({"value": "x"}), "must have the `type`"),
        (json!("json"), "must be an object"),
        (json!({"type": "regex", "value": 7}), "needs a string"),
        (json!({"type": "regex", "value": "(a"}), "grammar is not valid"),
        (json!({"type": "regex", "value": "a(?=b)"}), "grammar is not valid"),
        (json!({"type": "json", "value": "{"}), "the schema is no JSON"),
        (json!({"type": "json", "value": 7}), "a JSON Schema is an object or a boolean"),
        (json!({"type": "json", "value": {"type": "thing"}}), "grammar is not valid"),
        (
            json!({"type": "json", "value": {"type": "string", "format": "no-such-format"}}),
            "no-such-format",
        ),
        (json!({"type": "json", "value": {"$ref": "#/$defs/none"}}), "grammar is not valid"),
        (json!({"type": "json", "value": {"$ref": "http://127.0.0.1/x"}}), "grammar is not valid"),
        (
            json!({"type": "json", "value": {"allOf": [{"type": "string"}, {"type": "number"}]}}),
            "grammar is not valid",
        ),
        (json!({"type": "json", "value": {"type": "object", "x-guidance": {"lenient": true}}}), "lenient"),
        (json!({"type": "json_schema", "value": {"name": "p"}}), "needs a `schema`"),
    ];
    for (grammar, message) in cases {
        let reply = server.post("/generate", generate("Who?", &grammar)).await;
        assert_eq!(
            (reply.status, reply.json()["error_type"].as_str()),
            (422, Some("validation")),
            "{grammar}: {}",
            reply.text
        );
        assert!(
            reply.text.contains(message) || reply.json()["error"].as_str().unwrap().contains(message),
            "{grammar}: {}",
            reply.text
        );
    }
}

#[tokio::test]
async fn what_is_no_grammar_is_refused_by_name_in_chat() {
    let server = hashing().await;
    let chat = |fields: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Who?"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let cases = [
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": {"type": "thing"}}}}),
            "response_format",
        ),
        (json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}), "response_format"),
        (json!({"structured_outputs": {"grammar": "start: no_such_rule"}}), "grammar"),
        (json!({"structured_outputs": {"json": {}, "regex": "a"}}), "structured_outputs"),
        (json!({"guided_grammar": "start: /a/", "structured_outputs": {"regex": "a"}}), "response_format"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": [1]}), "choice"),
        (json!({"response_format": {"type": "json_object"}, "ignore_eos": true}), "ignore_eos"),
    ];
    for (fields, name) in cases {
        let reply = server.post("/v1/chat/completions", chat(fields.clone())).await;
        let error = reply.json()["error"].clone();
        assert_eq!(reply.status, 422, "{fields}: {}", reply.text);
        assert!(error.to_string().contains(name) && error["param"].is_string(), "{fields}: {error}");
    }
}

#[tokio::test]
async fn neutral_values_constrain_nothing() {
    let server = Server::saying("Hi").await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "text"},
        "grammar": null, "structured_outputs": null, "guided_json": null});
    assert_eq!(
        server.post("/v1/chat/completions", body).await.json()["choices"][0]["message"]["content"],
        "Hi"
    );
}

#[tokio::test]
async fn a_grammar_that_is_too_much_is_refused() {
    let mut config = config();
    config.payload_limit_bytes = 4_000_000;
    let server = Server::start_with(FakeModel::Hash, config).await;
    let deep = (0..60)
        .fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner, "minItems": 30}));
    let refs: serde_json::Map<String, Value> = (0..3000)
        .map(|index| {
            (format!("d{index}"), json!({"$ref": format!("#/$defs/d{}", index + 1), "description": "x"}))
        })
        .collect();
    let cases = [
        json!({"type": "regex", "value": "a".repeat(300_000)}),
        json!({"type": "regex", "value": format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000))}),
        json!({"type": "json", "value": {"type": "string", "maxLength": 100_000_000, "pattern": "(a|b)*c(a|b){400}"}}),
        json!({"type": "json", "value": {"$ref": "#/$defs/d0", "$defs": refs}}),
        json!({"type": "json", "value": {"$ref": "#"}}),
    ];
    for grammar in cases {
        let reply = server.post("/generate", generate("Who?", &grammar)).await;
        let shown: String = grammar.to_string().chars().take(80).collect();
        assert_eq!(reply.status, 422, "{shown}: {}", reply.text);
        assert!(reply.text.len() < 2000, "{}", reply.text);
    }
    let chain = |name: &str, count: usize| {
        let rules: String = (0..count).map(|at| format!("{name}{at}: {name}{}\n", at + 1)).collect();
        format!("start: {name}0\n{rules}{name}{count}: \"a\"\n")
    };
    for lark in [chain("r", 15_000), chain("T", 15_000), "start: \"a\" <[200]> \"b\"".to_owned()] {
        let reply = server.post("/v1/completions", json!({"prompt": "a", "guided_grammar": lark})).await;
        assert_eq!(reply.status, 422, "{}", reply.text);
        assert!(reply.text.len() < 2000, "{}", reply.text);
    }
    let reply =
        server.post("/v1/completions", json!({"prompt": "a", "guided_grammar": chain("r", 990)})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    // Whatever is made of these, the server goes on.
    let repeats = json!({"type": "regex", "value": "((a{1000}){1000}){1000}b"});
    for grammar in [json!({"type": "json", "value": deep}), repeats] {
        server.post("/generate", generate("Who?", &grammar)).await;
    }
    let reply =
        server.post("/generate", generate("Who?", &json!({"type": "json", "value": person()}))).await;
    assert!(is_person(reply.json()["generated_text"].as_str().unwrap()));
}

#[tokio::test]
async fn an_answer_that_breaks_its_grammar_never_ends_well() {
    for text in ["Hi", "{\"name\":\"a\"", "{\"name\":\"abcde\",\"age\":1}", "{\"name\":\"a\",\"age\":1}x"] {
        let server = Server::answering(&tokens_of(text)).await;
        server.control.ignore_masks();
        let body = generate("Who?", &json!({"type": "json", "value": person()}));
        let reply = server.post("/generate", body.clone()).await;
        assert_eq!(
            (reply.status, reply.json()["error_type"].as_str()),
            (424, Some("generation")),
            "{text}"
        );
        let events = server.stream("/generate_stream", body).await;
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error_type"], "generation", "{last}");
        assert!(events.iter().all(|event| !event.contains("finish_reason")), "{events:?}");
        // Its end is its own: the next request is served.
        let free = server.post("/generate", json!({"inputs": "Hi"})).await;
        assert_eq!(free.status, 200, "{}", free.text);
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_a_beginning() {
    let server = hashing().await;
    let grammar = json!({"type": "json", "value": person()});
    let body =
        json!({"inputs": "Who?", "parameters": {"max_new_tokens": 3, "grammar": grammar, "details": true}});
    let answer = server.post("/generate", body).await.json();
    assert_eq!(answer["details"]["finish_reason"], "length");
    assert!(answer["generated_text"].as_str().unwrap().starts_with('{'), "{answer}");
    let body = json!({"inputs": "Who?", "parameters": {"max_new_tokens": 120, "grammar": grammar, "stop": ["\"age\""], "details": true}});
    let answer = server.post("/generate", body).await.json();
    assert_eq!(answer["details"]["finish_reason"], "stop_sequence", "{answer}");
}

#[tokio::test]
async fn answers_do_not_depend_on_company_preemption_or_loss() {
    let alone = hashing().await;
    let grammar = json!({"type": "json", "value": {
        "type": "array", "minItems": 3, "maxItems": 6, "items": {"type": "string", "minLength": 5, "maxLength": 12}}});
    let inputs = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let ask = |input: &str| json!({"inputs": input.repeat(20), "parameters": {"max_new_tokens": 150, "grammar": grammar, "details": true}});
    let mut expected = Vec::new();
    for input in inputs {
        expected.push(alone.post("/generate", ask(input)).await.json());
    }
    // 64 blocks of 4 tokens: eight such answers do not fit together, so some are preempted.
    let server = hashing().await;
    server.control.pause();
    let free = json!({"inputs": "free", "parameters": {"max_new_tokens": 30}});
    let mut requests: Vec<_> =
        inputs[1..].iter().map(|input| server.post("/generate", ask(input))).collect();
    requests.push(server.post("/generate", free));
    let crowd = async {
        server.control.allow_steps(25);
        server.until(async |server| server.control.steps() >= 25).await;
        server.control.lose();
        server.control.come_back();
        server.control.resume();
    };
    let (replies, ()) = futures::join!(join_all(requests), crowd);
    for (reply, expected) in replies.iter().zip(&expected[1..]) {
        assert_eq!(reply.json(), *expected);
    }
    assert!(server.metric("lockstep_preemptions_total").await > 0.0);
    assert!(server.metric("lockstep_grammar_mask_seconds_count").await > 0.0);
}

#[tokio::test]
async fn a_grammar_is_compiled_once() {
    let server = hashing().await;
    for _ in 0..3 {
        let reply =
            server.post("/generate", generate("Who?", &json!({"type": "json", "value": person()}))).await;
        assert_eq!(reply.status, 200);
    }
    assert_eq!(server.metric("lockstep_grammar_compile_seconds_count").await, 1.0);
}
