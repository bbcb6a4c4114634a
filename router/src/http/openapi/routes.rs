//! Which routes there are, and what goes in and out.

use serde_json::{Map, Value, json};

use super::schema::{list, named};

/// Statuses that any route with a body may answer.
const OF_BODIES: [u16; 6] = [400, 401, 408, 413, 415, 422];
/// Statuses of routes that generate, besides.
const OF_TEXT: [u16; 7] = [404, 409, 424, 429, 500, 503, 504];

/// Headers of requests for text: name, type, meaning.
const TEXT_HEADERS: [(&str, &str, &str); 8] = [
    ("x-request-id", "string", "Names the request in answer, logs and spans, and to DELETE /requests/{id}"),
    (
        "x-use-cache",
        "string",
        "`true` or `1`, the default; `false` or `0`: compute the answer even if it is known",
    ),
    (
        "x-wait-for-model",
        "string",
        "`true` or `1`: wait for a model that is loading; `false` or `0`, the default: 503",
    ),
    ("x-priority", "string", "`high`, `normal`, `low` or -100 to 100, among the tenant's own requests"),
    (
        "x-tenant",
        "string",
        "Whose share of the machine it takes, where it comes with no key: a key is its own tenant",
    ),
    ("x-request-timeout", "number", "Seconds it may take; 504 afterwards, 429 where that is clear at once"),
    (
        "last-event-id",
        "string",
        "The last event of a stream that broke: the rest follows (--resume-window), if it is in the last 8 MiB",
    ),
    ("traceparent", "string", "The span it comes from (W3C Trace Context)"),
];
/// Headers of answers that come whole, besides those of streams.
const WHOLE_HEADERS: [&str; 8] = [
    "x-compute-time",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
];
/// Headers of every answer with text.
const STREAM_HEADERS: [&str; 4] = ["x-request-id", "x-cache", "x-compute-type", "x-compute-characters"];

/// A route that generates.
struct Text {
    summary: &'static str,
    tag: &'static str,
    request: Value,
    /// What comes whole, where it does.
    whole: Option<Value>,
    /// What an event of a stream is, where there are streams.
    event: Option<Value>,
}

/// Every path with its methods.
pub(super) fn paths() -> Map<String, Value> {
    let mut paths = text_paths();
    paths.extend(token_paths());
    paths.extend(server_paths());
    paths.into_iter().map(|(path, methods)| (path.to_owned(), methods)).collect()
}

/// Headers of requests.
pub(super) fn parameters() -> Map<String, Value> {
    let header = |(name, kind, about): (&str, &str, &str)| {
        let schema = json!({"type": kind});
        let header = json!({"name": name, "in": "header", "description": about, "schema": schema});
        (name.to_owned(), header)
    };
    TEXT_HEADERS.into_iter().map(header).collect()
}

/// Headers of answers.
pub(super) fn headers() -> Value {
    let header = |schema: &str, about: &str| json!({"description": about, "schema": {"type": schema}});
    json!({
        "x-request-id": header("string", "The request's id"),
        "x-cache": header("string", "`hit`, `miss` or `bypass`"),
        "x-compute-type": header("string", "What computed it"),
        "x-compute-characters": header("integer", "Characters of the prompt"),
        "x-compute-time": header("number", "Seconds it took"),
        "x-total-time": header("integer", "Milliseconds it took"),
        "x-validation-time": header("integer", "Milliseconds until it was queued"),
        "x-queue-time": header("integer", "Milliseconds in the queue"),
        "x-inference-time": header("integer", "Milliseconds after the queue"),
        "x-time-per-token": header("integer", "Milliseconds for each token"),
        "x-prompt-tokens": header("integer", "Tokens of the prompts"),
        "x-generated-tokens": header("integer", "Tokens of the answers"),
        "x-error-message": header("string", "The error's message, on OpenAI's routes"),
        "retry-after": header("integer", "Seconds after which to try again"),
        "www-authenticate": header("string", "`Bearer`"),
    })
}

fn text_paths() -> Vec<(&'static str, Value)> {
    let generated = || Some(named("GenerateResponse"));
    let event = || Some(named("StreamResponse"));
    let native = |summary, request, whole, event| Text { summary, tag: "native", request, whole, event };
    let array = || Some(list("An array of one", named("GenerateResponse")));
    let any =
        json!({"anyOf": [named("CompatibleRequest"), named("ChatRequest"), named("CompletionRequest")]});
    let array_of_one = list("", named("GenerateResponse"));
    let any_answer = json!({"anyOf": [array_of_one, named("ChatCompletion"), named("Completion")]});
    let any_event =
        json!({"anyOf": [named("StreamResponse"), named("ChatChunk"), named("CompletionChunk")]});
    let generate = native("Continue a text", named("GenerateRequest"), generated(), None);
    let stream = native("Continue a text, token by token", named("GenerateRequest"), None, event());
    let compatible =
        native("Continue a text, as `stream` says", named("CompatibleRequest"), array(), event());
    let of_model =
        native("The same, of this model and no other", named("CompatibleRequest"), array(), event());
    let invocations =
        native("SageMaker's route for all three interfaces", any, Some(any_answer), Some(any_event));
    let chat = Text {
        summary: "Continue a conversation",
        tag: "openai",
        request: named("ChatRequest"),
        whole: Some(named("ChatCompletion")),
        event: Some(named("ChatChunk")),
    };
    let completions = Text {
        summary: "Continue texts",
        tag: "openai",
        request: named("CompletionRequest"),
        whole: Some(named("Completion")),
        event: Some(named("CompletionChunk")),
    };
    let mut model = json!({"post": of_model.operation()});
    model["parameters"] = json!([path_parameter("model", "The model's name, which may have slashes")]);
    let mut root = json!({"post": compatible.operation()});
    root["get"] = probe("Whether requests for text are answered");
    vec![
        ("/generate", json!({"post": generate.operation()})),
        ("/generate_stream", json!({"post": stream.operation()})),
        ("/", root),
        ("/models/{model}", model),
        ("/invocations", json!({"post": invocations.operation()})),
        ("/v1/chat/completions", json!({"post": chat.operation()})),
        ("/v1/completions", json!({"post": completions.operation()})),
    ]
}

impl Text {
    fn operation(self) -> Value {
        let Self { summary, tag, request, whole, event } = self;
        let mut content = Map::new();
        let mut headers: Vec<&str> = STREAM_HEADERS.to_vec();
        if let Some(schema) = whole {
            headers.extend(WHOLE_HEADERS);
            content.insert("application/json".to_owned(), json!({"schema": schema}));
        }
        if let Some(event) = event {
            let about = "Server-sent events without names, each with one JSON object that x-event describes; \
                         OpenAI's streams end with `data: [DONE]`";
            let schema = json!({"type": "string", "description": about, "x-event": event});
            content.insert("text/event-stream".to_owned(), json!({"schema": schema}));
        }
        let headers: Map<String, Value> =
            headers.into_iter().map(|name| (name.to_owned(), reference("headers", name))).collect();
        let answer = json!({"description": "The answer", "headers": headers, "content": content});
        let errors = OF_BODIES.into_iter().chain(OF_TEXT);
        json!({
            "summary": summary,
            "tags": [tag],
            "parameters": TEXT_HEADERS.map(|(name, ..)| reference("parameters", name)),
            "requestBody": body(&request),
            "responses": responses(&answer, errors),
        })
    }
}

fn token_paths() -> Vec<(&'static str, Value)> {
    let post = |summary: &str, request: Value, answer: &Value| {
        let answer = json!({"description": "Done", "content": {"application/json": {"schema": answer}}});
        let errors = OF_BODIES.into_iter().chain([429]);
        json!({"post": {
            "summary": summary,
            "tags": ["tokens"],
            "parameters": [reference("parameters", "x-request-id")],
            "requestBody": body(&request),
            "responses": responses(&answer, errors),
        }})
    };
    let either = json!({"anyOf": [named("GenerateRequest"), named("TokenizePromptRequest")]});
    let tokens = json!({"anyOf": [list("Of `inputs`", named("SimpleToken")), named("TokenIds")]});
    vec![
        ("/tokenize", post("The tokens of a text", either, &tokens)),
        (
            "/chat_tokenize",
            post("The prompt of a conversation and its tokens", named("ChatRequest"), &named("ChatTokens")),
        ),
        ("/detokenize", post("The text of tokens", named("DetokenizeRequest"), &named("Text"))),
        ("/tokenizer_info", get("tokens", "What writing prompts needs", &named("TokenizerInfo"))),
    ]
}

fn server_paths() -> Vec<(&'static str, Value)> {
    let open = |summary: &str, media_type: &str, kind: &str| {
        let answer = json!({"description": "Done", "content": {media_type: {"schema": {"type": kind}}}});
        let responses = json!({"200": answer});
        json!({"get": {"summary": summary, "tags": ["server"], "security": [{}], "responses": responses}})
    };
    let page = |summary, media_type| open(summary, media_type, "string");
    let document = |summary| open(summary, "application/json", "object");
    let one_probe = |summary| json!({"get": probe(summary)});
    let done =
        json!({"description": "Done", "content": {"application/json": {"schema": named("Cancelled")}}});
    let answers = responses(&done, [401, 404]);
    let cancel = json!({
        "parameters": [path_parameter("id", "The request's x-request-id")],
        "delete": {"summary": "Cancel a request", "tags": ["server"], "responses": answers},
    });
    let model = json!({
        "parameters": [path_parameter("model", "The model's name, which may have slashes")],
        "get": get("openai", "A model that is served", &named("Model"))["get"],
    });
    vec![
        ("/requests/{id}", cancel),
        ("/info", get("server", "What is served, and its limits", &named("Info"))),
        ("/v1/models", get("openai", "What is served", &named("Models"))),
        ("/v1/models/{model}", model),
        ("/health", one_probe("Whether requests for text are answered")),
        ("/ping", one_probe("The same")),
        ("/readyz", one_probe("The same")),
        ("/startupz", one_probe("Whether the model was there once")),
        ("/livez", one_probe("Whether the process lives")),
        ("/metrics", page("Numbers for Prometheus", "text/plain")),
        ("/playground", page("A page to try the server with", "text/html")),
        ("/docs", page("A page that shows this document", "text/html")),
        ("/api-doc/openapi.json", document("This document")),
        ("/openapi.json", document("This document")),
    ]
}

fn probe(summary: &str) -> Value {
    let answer = json!({"description": "Yes"});
    json!({"summary": summary, "tags": ["server"], "security": [{}], "responses": responses(&answer, [503])})
}

fn get(tag: &str, summary: &str, schema: &Value) -> Value {
    let answer = json!({"description": "Done", "content": {"application/json": {"schema": schema}}});
    json!({"get": {"summary": summary, "tags": [tag], "responses": responses(&answer, [401])}})
}

fn body(schema: &Value) -> Value {
    json!({"required": true, "content": {"application/json": {"schema": schema}}})
}

/// `answer` for 200, and what the table of errors says of each of `errors`.
fn responses(answer: &Value, errors: impl IntoIterator<Item = u16>) -> Map<String, Value> {
    let errors =
        errors.into_iter().map(|status| (status.to_string(), reference("responses", &status.to_string())));
    let mut responses: Vec<(String, Value)> = errors.chain([("200".to_owned(), answer.clone())]).collect();
    responses.sort_by(|(one, _), (other, _)| one.cmp(other));
    responses.into_iter().collect()
}

fn path_parameter(name: &str, about: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": about, "schema": {"type": "string"}})
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}
