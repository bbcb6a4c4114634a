//! Every field of the three interfaces is honoured, which the answer shows, or refused, which a status and a
//! message say; values that change nothing always pass.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;

use lockstep_router::chat::{ChatTemplate, TemplateTokens};
use lockstep_router::model::Model;
use lockstep_router::shards::fake::FakeModel;
use lockstep_router::testing::TEMPLATE;
use lockstep_router::tools::CallSupport;
use serde_json::{Value, json};
use support::{Server, config};

/// The parameters of the Inference API and of the reference server.
const NATIVE: [&str; 20] = [
    "adapter_id",
    "best_of",
    "decoder_input_details",
    "details",
    "do_sample",
    "frequency_penalty",
    "grammar",
    "max_new_tokens",
    "repetition_penalty",
    "return_full_text",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_n_tokens",
    "top_p",
    "truncate",
    "typical_p",
    "watermark",
    "inputs",
];

const COMPLETIONS: [&str; 18] = [
    "best_of",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "model",
    "n",
    "presence_penalty",
    "prompt",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_p",
    "user",
];

const CHAT: [&str; 35] = [
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tool_prompt",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
];

/// A template that knows tools.
const WITH_TOOLS: &str = "{% for message in messages %}{{ message['role'] + ':' + message['content'] }}{% endfor %}\
                          {% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}";

/// One field and what becomes of its values.
struct Row {
    field: &'static str,
    /// Fields that go with it.
    with: Value,
    /// Change nothing.
    neutral: Vec<Value>,
    /// Change the answer.
    honoured: Vec<Value>,
    refused: Vec<(Value, u16, &'static str)>,
}

fn row(field: &'static str) -> Row {
    Row { field, with: json!({}), neutral: vec![Value::Null], honoured: Vec::new(), refused: Vec::new() }
}

impl Row {
    fn with(self, with: Value) -> Self {
        Self { with, ..self }
    }

    fn neutral(mut self, value: Value) -> Self {
        self.neutral.push(value);
        self
    }

    fn honoured(mut self, value: Value) -> Self {
        self.honoured.push(value);
        self
    }

    fn refused(mut self, value: Value, status: u16, message: &'static str) -> Self {
        self.refused.push((value, status, message));
        self
    }

    /// A field that a request cannot be without.
    fn required(mut self) -> Self {
        self.neutral.clear();
        self
    }

    /// A field that is refused unless it is neutral.
    fn unserved(self, value: Value) -> Self {
        self.refused(value, 422, "is not supported")
    }
}

/// One interface: where its fields go, and what is asked besides.
struct Interface {
    path: &'static str,
    base: Value,
    /// Fields of this object instead of the body's own.
    inside: Option<&'static str>,
    template: &'static str,
}

impl Interface {
    fn body(&self, row: &Row, value: Option<&Value>) -> Value {
        let mut body = self.base.clone();
        let fields = row.with.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value));
        for (name, value) in fields.chain(value.map(|value| (row.field, value))) {
            match self.inside.filter(|_| name != "inputs") {
                Some(object) => body[object][name] = value.clone(),
                None => body[name] = value.clone(),
            }
        }
        body
    }

    async fn check(&self, rows: &[Row]) {
        let template = ChatTemplate::compile(self.template, TemplateTokens::default()).unwrap();
        let model = Model { template: Some(template), ..support::model() };
        let calls = CallSupport::of(model.template.as_ref(), &model.tokenizer, None);
        let server = Server::loading(FakeModel::Seeded, config(), Model { calls, ..model });
        server.control.come_back();
        server.app.wait_until_ready().await.unwrap();
        for row in rows {
            let ask = async |value: Option<&Value>| {
                let reply = server.post(self.path, self.body(row, value)).await;
                (reply.status, steady(&reply.text))
            };
            let (status, plain) = ask(None).await;
            let field = row.field;
            assert_eq!(status, 200, "{field}: {plain}");
            assert!(
                row.neutral.len() + row.honoured.len() + row.refused.len() > 1,
                "{field} shows nothing"
            );
            for value in &row.neutral {
                assert_eq!(ask(Some(value)).await, (200, plain.clone()), "{field}: {value} is neutral");
            }
            for value in &row.honoured {
                let (status, answer) = ask(Some(value)).await;
                assert_eq!(status, 200, "{field}: {value}: {answer}");
                assert_ne!(answer, plain, "{field}: {value} is honoured");
            }
            for (value, status, message) in &row.refused {
                let (found, answer) = ask(Some(value)).await;
                assert_eq!(found, *status, "{field}: {value}: {answer}");
                assert!(answer.contains(message), "{field}: {value}: {answer}");
            }
        }
    }
}

/// An answer without what differs from run to run.
fn steady(text: &str) -> String {
    let events = text.split("\n\n").map(|event| {
        let event = event.trim_start_matches("data: ");
        let Ok(mut body) = serde_json::from_str::<Value>(event) else { return event.to_owned() };
        if let Some(fields) = body.as_object_mut() {
            fields.retain(|name, _| !["id", "created"].contains(&name.as_str()));
        }
        if let Some(details) = body.pointer_mut("/usage/prompt_tokens_details") {
            details.take();
        }
        for choice in body.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
            let calls = choice.pointer_mut("/message/tool_calls").and_then(Value::as_array_mut);
            calls.into_iter().flatten().for_each(|call| call["id"] = Value::Null);
        }
        body.to_string()
    });
    events.collect::<Vec<_>>().join("\n")
}

fn has_a_row_for_each(fields: &[&str], rows: &[Row]) {
    let missing: Vec<&&str> =
        fields.iter().filter(|field| !rows.iter().any(|row| row.field == **field)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

/// What all three interfaces say of sampling with one voice.
fn sampling() -> Vec<Row> {
    vec![
        row("seed").honoured(json!(u64::MAX)).refused(json!(-1), 422, "`seed`"),
        row("top_p").neutral(json!(1.0)).honoured(json!(0.5)).refused(
            json!(0),
            422,
            "`top_p` must be > 0.0",
        ),
        row("typical_p").neutral(json!(1)).honoured(json!(0.5)).refused(
            json!(1.5),
            422,
            "`typical_p` must be",
        ),
        row("min_p").neutral(json!(0)).honoured(json!(0.5)).refused(json!(1.5), 422, "`min_p` must be"),
        row("repetition_penalty").neutral(json!(1.0)).honoured(json!(1.5)).refused(
            json!(0),
            422,
            "`repetition_penalty` must be strictly positive",
        ),
        row("frequency_penalty").neutral(json!(0)).honoured(json!(0.5)).refused(
            json!(-2.5),
            422,
            "`frequency_penalty` must be >= -2.0",
        ),
        row("presence_penalty").neutral(json!(0)).honoured(json!(0.5)).refused(
            json!(2.5),
            422,
            "`presence_penalty` must be >= -2.0",
        ),
        row("logit_bias")
            .neutral(json!({}))
            .honoured(json!({"5": 1.5}))
            .refused(json!({"999": 1}), 422, "`logit_bias` names token 999")
            .refused(json!({"5": 101}), 422, "`logit_bias` values must be >= -100"),
        // Half of all bytes begin no character: such a text is not long in coming.
        row("stop").neutral(json!([])).honoured(json!(["\u{FFFD}"])).refused(
            json!(["a", "b", "c", "d", "e"]),
            422,
            "`stop` supports up to 4 stop sequences. Given: 5",
        ),
        row("adapter_id").refused(json!("a"), 404, "The adapter a is not loaded"),
        row("watermark")
            .neutral(json!(false))
            .honoured(json!(true))
            .honoured(json!({"gamma": 0.25}))
            .refused(json!(1), 422, "`watermark` must be a boolean")
            .refused(json!({"gamma": 1.0}), 422, "`watermark.gamma` must be > 0.0 and < 1.0")
            .refused(json!({"delta": -1}), 422, "`watermark.delta` must be >= 0.0 and <= 100.0"),
        row("grammar").honoured(json!({"type": "regex", "value": "[b-f]{3}"})),
        row("ignore_eos").neutral(json!(false)),
    ]
}

/// What other servers take on OpenAI's routes.
fn foreign() -> Vec<Row> {
    vec![
        row("min_tokens").neutral(json!(0)).unserved(json!(1)),
        row("min_tokens").with(json!({"ignore_eos": true})).neutral(json!(12)).unserved(json!(13)),
        row("min_tokens")
            .with(json!({"ignore_eos": true, "stop": "zzz"}))
            .neutral(json!(0))
            .unserved(json!(1)),
        row("stop_token_ids").neutral(json!([])).unserved(json!([5])),
        row("bad_words").neutral(json!([])).unserved(json!(["a"])),
        row("allowed_token_ids").unserved(json!([5])),
        row("prompt_logprobs").unserved(json!(0)),
        row("truncate_prompt_tokens").unserved(json!(2)),
        row("use_beam_search").neutral(json!(false)).unserved(json!(true)),
        row("include_stop_str_in_output").neutral(json!(false)).unserved(json!(true)),
        row("skip_special_tokens").neutral(json!(true)).unserved(json!(false)),
    ]
}

/// What both of OpenAI's interfaces say with one voice.
fn openai() -> Vec<Row> {
    let mut rows = sampling();
    rows.extend([
        row("top_k").neutral(json!(0)).neutral(json!(-1)).honoured(json!(3)).refused(
            json!(-2),
            422,
            "`top_k` must be strictly positive",
        ),
        row("model").honoured(json!("another")),
        row("n").neutral(json!(1)).honoured(json!(2)).refused(json!(0), 422, "`n` must be >= 1"),
        row("temperature").neutral(json!(1.0)).honoured(json!(0)).honoured(json!(0.5)).refused(
            json!(-1),
            422,
            "`temperature` must be strictly positive",
        ),
        row("stop").neutral(json!([])).honoured(json!("\u{FFFD}")).refused(
            json!(7),
            422,
            "`stop` must be a string or a list",
        ),
        row("stream").neutral(json!(false)).honoured(json!(true)),
        row("stream_options")
            .with(json!({"stream": true}))
            .neutral(json!({"include_usage": false}))
            .honoured(json!({"include_usage": true}))
            .honoured(json!({"continuous_usage_stats": true})),
        // A mark for the operator: no answer depends on it.
        row("user").neutral(json!("someone")),
        row("response_format").neutral(json!({"type": "text"})).honoured(json!({"type": "json_object"})),
        row("structured_outputs").honoured(json!({"regex": "[b-f]{3}"})),
    ]);
    rows.extend(foreign());
    rows
}

#[tokio::test]
async fn native_fields() {
    let base = json!({"inputs": "abc def", "parameters": {"do_sample": true, "seed": 1, "max_new_tokens": 12, "details": true}});
    let interface = Interface { path: "/generate", base, inside: Some("parameters"), template: TEMPLATE };
    let mut rows = sampling();
    rows.retain(|row| row.field != "seed");
    rows.extend([
        row("seed").required().honoured(json!(u64::MAX)).refused(json!(-1), 422, "`seed`"),
        row("inputs")
            .required()
            .honoured(json!("abd"))
            .refused(json!(""), 422, "`inputs` cannot be empty")
            .refused(Value::Null, 422, "missing field `inputs`"),
        row("best_of").neutral(json!(1)).honoured(json!(2)).refused(
            json!(3),
            422,
            "`best_of` must be > 0 and <= 2. Given: 3",
        ),
        row("decoder_input_details").neutral(json!(false)).honoured(json!(true)),
        row("details").required().neutral(json!(true)).honoured(json!(false)),
        row("do_sample").required().neutral(json!(true)).honoured(json!(false)),
        row("max_new_tokens").required().honoured(json!(3)).refused(
            json!(0),
            422,
            "`max_new_tokens` must be strictly positive",
        ),
        row("return_full_text").neutral(json!(false)).honoured(json!(true)),
        row("temperature").neutral(json!(1.0)).honoured(json!(0.5)).refused(
            json!(0),
            422,
            "`temperature` must be strictly positive",
        ),
        row("top_k")
            .honoured(json!(3))
            .refused(json!(0), 422, "`top_k` must be strictly positive")
            .refused(json!(-1), 422, "`top_k` must be strictly positive"),
        row("top_n_tokens").neutral(json!(0)).honoured(json!(2)).refused(
            json!(6),
            422,
            "`top_n_tokens` must be >= 0 and <= 5. Given: 6",
        ),
        row("truncate").neutral(json!(100)).honoured(json!(2)).refused(
            json!(0),
            422,
            "`truncate` must be strictly positive and less than 199. Given: 0",
        ),
    ]);
    has_a_row_for_each(&NATIVE, &rows);
    interface.check(&rows).await;
}

#[tokio::test]
async fn completion_fields() {
    let base = json!({"prompt": "abc def", "seed": 1, "max_tokens": 12});
    let interface = Interface { path: "/v1/completions", base, inside: None, template: TEMPLATE };
    let mut rows = openai();
    rows.retain(|row| row.field != "seed");
    rows.extend([
        row("seed").required().honoured(json!(u64::MAX)).refused(json!(-1), 422, "`seed`"),
        row("prompt")
            .required()
            .neutral(json!(["abc def"]))
            .honoured(json!([1, 2]))
            .refused(Value::Null, 422, "missing field `prompt`")
            .refused(json!({"a": 1}), 422, "`prompt` must be a text"),
        row("best_of").neutral(json!(1)).honoured(json!(2)).refused(
            json!(3),
            422,
            "`best_of` must be > 0 and <= 2. Given: 3",
        ),
        row("echo").neutral(json!(false)).honoured(json!(true)),
        row("logprobs").honoured(json!(0)).honoured(json!(5)).refused(
            json!(6),
            422,
            "`logprobs` must be >= 0 and <= 5. Given: 6",
        ),
        row("max_tokens").required().honoured(json!(3)).honoured(json!(0)).refused(
            json!(500),
            422,
            "`prompt` tokens + `max_tokens` must be <= 200",
        ),
        row("suffix").neutral(json!("")).refused(json!("a"), 422, "Suffix is not supported"),
    ]);
    has_a_row_for_each(&COMPLETIONS, &rows);
    interface.check(&rows).await;
}

/// What chats say of tools.
fn tool_rows() -> Vec<Row> {
    let function = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    vec![
        row("tools")
            .neutral(json!([]))
            .honoured(json!([function]))
            .refused(json!([{"type": "web_search"}]), 422, "must be of type function")
            .refused(json!([{"type": "function", "function": {"name": "a b"}}]), 422, "needs a `name`")
            .refused(json!([function, function]), 422, "two functions named f"),
        row("tool_choice").neutral(json!("auto")).neutral(json!("none")).refused(
            json!("required"),
            422,
            "`tool_choice` needs `tools`",
        ),
        row("tool_choice")
            .with(json!({"tools": [function]}))
            .neutral(json!("auto"))
            .honoured(json!("none"))
            .honoured(json!("required"))
            .honoured(json!("f"))
            .honoured(json!({"type": "function", "function": {"name": "f"}}))
            .refused(json!("g"), 422, "`tool_choice` names g, which is none of `tools`")
            .refused(json!(3), 422, "`tool_choice` must be none, auto, required"),
        // Where the template has no words for tools, `tools.rs` shows what becomes of it.
        row("tool_prompt").with(json!({"tools": [function]})).refused(
            json!("Call:"),
            422,
            "the model's chat template has words of its own",
        ),
        row("parallel_tool_calls")
            .with(json!({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required",
                "max_tokens": 120, "n": 4}))
            .neutral(json!(true))
            .honoured(json!(false)),
        // Without tools there are no calls.
        row("parallel_tool_calls").neutral(json!(true)).neutral(json!(false)),
    ]
}

#[tokio::test]
async fn chat_fields() {
    let base = json!({"messages": [{"role": "user", "content": "Hi"}], "seed": 1, "max_tokens": 12});
    let interface = Interface { path: "/v1/chat/completions", base, inside: None, template: WITH_TOOLS };
    let begun =
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}]});
    let mut rows = openai();
    rows.retain(|row| row.field != "seed");
    rows.extend([
        row("seed").required().honoured(json!(u64::MAX)).refused(json!(-1), 422, "`seed`"),
        row("messages")
            .required()
            .honoured(json!([{"role": "user", "content": [{"type": "text", "text": "Ho"}]}]))
            .refused(Value::Null, 422, "missing field `messages`")
            .refused(json!([]), 422, "`messages` cannot be empty"),
        row("logprobs").neutral(json!(false)).honoured(json!(true)),
        row("top_logprobs").with(json!({"logprobs": true})).neutral(json!(0)).honoured(json!(2)).refused(
            json!(9),
            422,
            "`top_logprobs` must be >= 0 and <= 5",
        ),
        row("max_tokens").required().honoured(json!(3)).refused(json!(0), 422, "`max_tokens` must be"),
        row("max_completion_tokens").neutral(json!(12)).with(json!({"max_tokens": 12})).refused(
            json!(3),
            422,
            "`max_tokens` and `max_completion_tokens` must be equal",
        ),
        row("max_completion_tokens").with(json!({"max_tokens": null})).honoured(json!(3)),
        row("functions").neutral(json!([])).unserved(json!([{"name": "f"}])),
        row("function_call").neutral(json!("auto")).unserved(json!({"name": "f"})),
        row("audio").unserved(json!({"voice": "a"})),
        row("prediction").unserved(json!({"type": "content", "content": "a"})),
        row("reasoning_effort").unserved(json!("high")),
        row("web_search_options").unserved(json!({})),
        row("modalities").neutral(json!(["text"])).unserved(json!(["audio"])),
        row("verbosity").neutral(json!("medium")).unserved(json!("low")),
        row("service_tier").neutral(json!("auto")).unserved(json!("flex")),
        row("store").neutral(json!(false)).unserved(json!(true)),
        row("add_generation_prompt").neutral(json!(true)).unserved(json!(false)),
        row("continue_final_message").neutral(json!(false)).refused(
            json!(true),
            422,
            "`continue_final_message` needs a text of the assistant",
        ),
        row("continue_final_message").with(begun.clone()).neutral(json!(false)).neutral(json!(true)),
        row("add_generation_prompt").with(begun.clone()).neutral(json!(true)).unserved(json!(false)),
        row("add_generation_prompt")
            .with(json!({"messages": begun["messages"], "continue_final_message": true}))
            .neutral(json!(false)),
        // Marks for the operator: no answer depends on them.
        row("metadata").neutral(json!({"a": "b"})),
        row("prompt_cache_key").neutral(json!("a")),
        row("safety_identifier").neutral(json!("a")),
    ]);
    rows.extend(tool_rows());
    has_a_row_for_each(&CHAT, &rows);
    interface.check(&rows).await;
}
