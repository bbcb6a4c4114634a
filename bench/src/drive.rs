//! Sends requests to `/generate_stream` and times what comes back.

use std::fmt;
use std::time::{Duration, Instant};

use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt, stream};
use reqwest::Client;
use serde_json::{Value, json};

use crate::BenchError;
use crate::args::BenchArgs;
use crate::prompts::{PromptShape, prompt};

/// What came of all requests.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) samples: Vec<Sample>,
    pub(crate) took: Duration,
}

/// What came of one request.
#[derive(Clone, Debug)]
pub(crate) enum Sample {
    Answered(Answered),
    Failed(Failure),
}

/// What came in place of tokens, short enough to count by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing, for this reason.
    NoAnswer(String),
    /// A refusal, or an answer that breaks off.
    Answer(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(reason) | Self::Answer(reason) => f.write_str(reason),
        }
    }
}

/// The times of one answer.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) first_token: Duration,
    /// Between one token and the next.
    pub(crate) gaps: Vec<Duration>,
    pub(crate) whole: Duration,
    pub(crate) tokens: u64,
}

/// Warms the server up, then measures.
pub(crate) async fn drive(args: &BenchArgs) -> Result<Run, BenchError> {
    let client =
        Client::builder().no_proxy().build().map_err(|error| BenchError::SetUp(error.to_string()))?;
    let load = Load { args, client };
    for number in 0..args.warm_up {
        let url = args.url.clone();
        match load.request(number, Instant::now()).await {
            Sample::Answered(_) => {}
            Sample::Failed(Failure::NoAnswer(reason)) => return Err(BenchError::NoServer { url, reason }),
            Sample::Failed(Failure::Answer(reason)) => return Err(BenchError::WarmUp { url, reason }),
        }
    }
    let start = Instant::now();
    let due = load.due_times(start);
    let at_once = if args.rate.is_some() { args.requests } else { args.concurrency };
    let requests = due.enumerate().map(|(index, due)| load.request(args.warm_up + index, due));
    let samples = requests.buffer_unordered(at_once).collect().await;
    Ok(Run { samples, took: start.elapsed() })
}

struct Load<'a> {
    args: &'a BenchArgs,
    client: Client,
}

impl Load<'_> {
    /// When each request is due: as soon as there is room, or at a steady rate.
    fn due_times(&self, start: Instant) -> impl Stream<Item = Instant> + use<'_> {
        let rate = self.args.rate;
        stream::iter(0..self.args.requests).then(move |index| async move {
            let Some(rate) = rate else { return Instant::now() };
            let due = start + Duration::from_secs_f64(index as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
            due
        })
    }

    async fn request(&self, number: usize, due: Instant) -> Sample {
        // A request the closed loop holds back is due when it is sent.
        let start = if self.args.rate.is_some() { due } else { Instant::now() };
        match self.answer(number, start).await {
            Ok(answered) => Sample::Answered(answered),
            Err(failure) => Sample::Failed(failure),
        }
    }

    async fn answer(&self, number: usize, start: Instant) -> Result<Answered, Failure> {
        let args = self.args;
        let shape = PromptShape { seed: args.seed, words: args.prompt_tokens, shared: args.shared_prefix };
        let body = json!({
            "inputs": prompt(shape, number as u64),
            "parameters": { "max_new_tokens": args.max_new_tokens },
        });
        let url = format!("{}/generate_stream", args.url.trim_end_matches('/'));
        // What is measured is the model at work, not an answer that is known already.
        let mut request = self.client.post(url).header("x-use-cache", "false").json(&body);
        if let Some(key) = &args.api_key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| Failure::NoAnswer(cause(&error)))?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let body = response.text().await.unwrap_or_default();
            return Err(Failure::Answer(refusal(status, &body)));
        }
        time_tokens(response, start).await.map_err(Failure::Answer)
    }
}

/// A status with what the server says of it, if that is an error as servers of this API write it.
fn refusal(status: u16, body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    match body.get("error").and_then(Value::as_str) {
        Some(message) => format!("status {status}: {message}"),
        None => format!("status {status}"),
    }
}

async fn time_tokens(response: reqwest::Response, start: Instant) -> Result<Answered, String> {
    let mut events = Box::pin(response.bytes_stream().eventsource());
    let mut times = Vec::new();
    let mut finished = false;
    while let Some(event) = events.next().await {
        let event = event.map_err(|_| "broken stream".to_owned())?;
        let event: Value =
            serde_json::from_str(&event.data).map_err(|_| "event that is no JSON".to_owned())?;
        if let Some(error) = event.get("error") {
            return Err(error.as_str().unwrap_or("error event").to_owned());
        }
        times.push(start.elapsed());
        finished |= event.get("generated_text").is_some_and(|text| !text.is_null());
    }
    match times.first() {
        Some(first_token) if finished => Ok(Answered {
            first_token: *first_token,
            gaps: times.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            whole: start.elapsed(),
            tokens: times.len() as u64,
        }),
        Some(_) | None => Err("stream without an end".to_owned()),
    }
}

/// The innermost cause: the outer ones only say that a request failed.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let cases = [
            (
                r#"{"error":"`inputs` is too long","error_type":"validation"}"#,
                "status 422: `inputs` is too long",
            ),
            ("<html>", "status 422"),
            (r#"{"detail":"no"}"#, "status 422"),
        ];
        for (body, expected) in cases {
            assert_eq!(refusal(422, body), expected);
        }
    }
}
