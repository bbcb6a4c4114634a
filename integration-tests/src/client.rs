//! Speaks to a cluster as a stranger would, and asserts the wire format on the way.

use std::pin::Pin;

use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use serde_json::{Value, json};

use crate::frames::Frames;

/// One client of one cluster.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
    http: reqwest::Client,
}

/// A request for text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    body: Value,
}

impl Generate {
    /// The most probable continuation.
    pub fn greedy(prompt: &str, max_new_tokens: u32) -> Self {
        let parameters = json!({ "max_new_tokens": max_new_tokens, "details": true, "do_sample": false });
        Self { body: json!({ "inputs": prompt, "parameters": parameters }) }
    }

    /// A continuation drawn with this seed.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        let drawn =
            json!({ "do_sample": true, "seed": seed, "temperature": 0.9, "top_k": 40, "top_p": 0.95 });
        for (name, value) in drawn.as_object().into_iter().flatten() {
            self = self.with(name, value.clone());
        }
        self
    }

    /// With this parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.body["parameters"][name] = value;
        self
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub text: String,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }
}

/// A stream of events that has been opened. Dropping it hangs up.
pub struct EventStream {
    events: Pin<Box<dyn Stream<Item = Result<String, String>> + Send>>,
}

impl EventStream {
    /// The data of the next event; `None` at the end; an error where the connection breaks.
    pub async fn next(&mut self) -> Option<Result<String, String>> {
        self.events.next().await
    }

    /// All that is left.
    ///
    /// # Errors
    /// Where the connection breaks.
    pub async fn rest(mut self) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event?);
        }
        Ok(all)
    }
}

impl Client {
    /// Of the cluster at this address.
    pub fn new(url: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { url: url.to_owned(), http }
    }

    /// `GET`.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn get(&self, path: &str) -> Result<Reply, String> {
        read(self.http.get(format!("{}{path}", self.url))).await
    }

    /// `POST` of JSON.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply, String> {
        read(self.http.post(format!("{}{path}", self.url)).header("x-use-cache", "false").json(body)).await
    }

    /// The whole answer of `/generate`.
    ///
    /// # Errors
    /// What came in place of one.
    pub async fn generate(&self, request: &Generate) -> Result<Value, Reply> {
        let failed = |text| Reply { status: 0, text };
        let reply = self.post("/generate", &request.body).await.map_err(failed)?;
        if reply.status == 200 { Ok(reply.json()) } else { Err(reply) }
    }

    /// Opens a stream at `/generate_stream`.
    ///
    /// # Errors
    /// What came in place of one.
    pub async fn stream(&self, request: &Generate) -> Result<EventStream, Reply> {
        self.open("/generate_stream", &request.body).await
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// What came in place of one.
    pub async fn open(&self, path: &str, body: &Value) -> Result<EventStream, Reply> {
        let events = self.opened(path, body, None).await?.bytes_stream().eventsource();
        let events = events.map(|event| event.map(|event| event.data).map_err(|error| error.to_string()));
        Ok(EventStream { events: Box::pin(events) })
    }

    /// Opens a stream that is to be compared byte for byte.
    ///
    /// # Errors
    /// What came in place of one.
    pub async fn open_frames(&self, path: &str, body: &Value) -> Result<Frames, Reply> {
        Ok(frames(self.opened(path, body, None).await?))
    }

    /// Takes a stream up again after the event of this id.
    ///
    /// # Errors
    /// What came in place of one.
    pub async fn resume_frames(&self, path: &str, body: &Value, last: &str) -> Result<Frames, Reply> {
        Ok(frames(self.opened(path, body, Some(last)).await?))
    }

    /// A response that is a stream of events.
    async fn opened(
        &self,
        path: &str,
        body: &Value,
        last: Option<&str>,
    ) -> Result<reqwest::Response, Reply> {
        let mut request =
            self.http.post(format!("{}{path}", self.url)).header("x-use-cache", "false").json(body);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response =
            request.send().await.map_err(|error| Reply { status: 0, text: error.to_string() })?;
        let status = response.status().as_u16();
        if status != 200 {
            let text = response.text().await.unwrap_or_default();
            return Err(Reply { status, text });
        }
        let kind =
            response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        assert!(kind.starts_with("text/event-stream"), "a stream comes as {kind:?}");
        Ok(response)
    }

    /// The value of a metric without labels.
    ///
    /// # Panics
    /// When there is no such metric.
    pub async fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").await.expect("the router answers").text;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// Whether the service says that it is ready.
    pub async fn is_ready(&self) -> bool {
        self.get("/readyz").await.is_ok_and(|reply| reply.status == 200)
    }
}

fn frames(response: reqwest::Response) -> Frames {
    let pieces = response.bytes_stream();
    Frames::new(pieces.map(|piece| piece.map(|piece| piece.to_vec()).map_err(|error| error.to_string())))
}

async fn read(request: reqwest::RequestBuilder) -> Result<Reply, String> {
    let response = request.send().await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let text = response.text().await.map_err(|error| error.to_string())?;
    Ok(Reply { status, text })
}
