//! Who asks, reads, breaks off and comes back; and whether what it is told may be told.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request as HttpRequest, Response};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use uuid::Uuid;

use crate::alone::Answer;
use crate::plan::{BREAKS, FAILS, FELLS, GROUP_LOSS_TIMEOUT, Patience, Request, Route, WINDOW};
use crate::world::{Shared, World, lock};

/// How often a client breaks off at most: where streams are not kept it begins anew each time.
const MOST_BREAKS: u32 = 6;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    Failed(String),
    Left,
}

pub(crate) struct Client {
    answer: Answer,
    /// How many tokens it has.
    seen: usize,
    stream: Option<Stream>,
    /// Whether a stream is being told to it.
    is_connected: bool,
    /// Which router its last event came from.
    heard_in: u32,
    /// Since when it has been without a connection, if it is.
    left: Duration,
    /// How often it has asked anew.
    asked: u32,
    asked_at: Duration,
    not_before: Duration,
    /// How often it may yet break off.
    restlessness: u32,
    has_cancelled: bool,
    end: Option<End>,
}

#[derive(Clone, Copy)]
struct Stream {
    id: Uuid,
    /// The router that began it.
    life: u32,
}

/// What a client does after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Read,
    BreakOff,
    Stop,
}

impl Client {
    pub(crate) fn new(request: &Request) -> Self {
        Self {
            answer: Answer::of(request),
            seen: 0,
            stream: None,
            is_connected: false,
            heard_in: 0,
            left: Duration::ZERO,
            asked: 0,
            asked_at: Duration::ZERO,
            not_before: request.arrives,
            restlessness: MOST_BREAKS,
            has_cancelled: false,
            end: None,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// The stream that router `life` told something of and that may still be taken up, and how much was told of it.
    pub(crate) fn open_stream(
        &self,
        (life, now): (u32, Duration),
        lossy_life: u32,
    ) -> Option<(Uuid, usize)> {
        let stream = self.stream.filter(|stream| stream.life > lossy_life && self.end.is_none())?;
        let is_open = self.heard_in == life && now.saturating_sub(self.left) < WINDOW;
        is_open.then_some((stream.id, self.seen))
    }

    /// Its connection, if it has one, breaks. That it came back to router `life` may not be on the disk, if that lost
    /// anything.
    pub(crate) fn on_router_gone(&mut self, (life, now): (u32, Duration), is_lossy: bool) {
        let is_noted = !is_lossy || self.stream.is_none_or(|stream| stream.life == life);
        if std::mem::take(&mut self.is_connected) && is_noted {
            self.left = now;
        }
    }

    fn ask_anew(&mut self) {
        (self.stream, self.seen) = (None, 0);
    }
}

/// Has one client ask until it has its end. A router that dies leaves it waiting.
pub(crate) async fn drive(world: Shared, router: Router, index: usize) {
    lock(&world).on_router_there(index);
    loop {
        let wait = {
            let world = lock(&world);
            if world.clients[index].has_ended() {
                return;
            }
            world.clients[index].not_before.saturating_sub(world.now())
        };
        tokio::time::sleep(wait).await;
        let request = lock(&world).request(index);
        let (route, patience) = {
            let world = lock(&world);
            (world.plan.requests[index].route, world.plan.requests[index].patience)
        };
        let asking = router.clone().oneshot(request);
        let response = match (route, patience) {
            (Route::Whole, Patience::Leaves(turns) | Patience::Cancels(turns)) => {
                let patience = Duration::from_millis(turns * 15);
                match tokio::time::timeout(patience, asking).await {
                    Ok(response) => response,
                    Err(_) => {
                        lock(&world).end(index, End::Left);
                        return;
                    }
                }
            }
            (Route::Stream | Route::Whole, _) => asking.await,
        };
        let Ok(response) = response;
        alive(&world).await;
        if response.status() != 200 {
            let status = response.status().as_u16();
            let body = whole(response).await;
            lock(&world).on_refusal(index, status, &body);
        } else if route == Route::Whole {
            let body = whole(response).await;
            alive(&world).await;
            lock(&world).on_whole(index, &body);
        } else {
            lock(&world).clients[index].is_connected = true;
            read(&world, &router, (index, response)).await;
        }
    }
}

async fn read(world: &Shared, router: &Router, (index, response): (usize, Response<Body>)) {
    let mut pieces = response.into_body().into_data_stream();
    if lock(world).turn(index) != Next::Read {
        return;
    }
    loop {
        let piece = pieces.next().await;
        alive(world).await;
        let Some(Ok(piece)) = piece else {
            lock(world).on_broken(index);
            return;
        };
        if piece.starts_with(b":") {
            continue;
        }
        let next = lock(world).on_event(index, &String::from_utf8_lossy(&piece));
        if next != Next::Read {
            return;
        }
        let cancelling = lock(world).cancelling(index);
        if let Some(request) = cancelling {
            let Ok(response) = router.clone().oneshot(request).await;
            alive(world).await;
            let status = response.status().as_u16();
            lock(world).log(format_args!("client {index} cancels: {status}"));
        }
    }
}

/// Nothing is heard of a router that is dead.
async fn alive(world: &Shared) {
    if lock(world).is_dead() {
        std::future::pending::<()>().await;
    }
}

async fn whole(response: Response<Body>) -> Value {
    let body = response.into_body().collect().await.expect("bodies in memory come whole").to_bytes();
    serde_json::from_slice(&body).unwrap_or(Value::Null)
}

impl World {
    /// Whatever connection it had is broken.
    fn on_router_there(&mut self, index: usize) {
        let now = self.now();
        let keeps = self.plan.server.keeps_streams && self.plan.server.journal.is_some();
        let pause = self.random.millis(0, 500);
        let client = &mut self.clients[index];
        if !keeps {
            client.ask_anew();
        }
        if self.life > 1 {
            client.not_before = client.not_before.max(now + pause);
        }
    }

    fn request(&mut self, index: usize) -> HttpRequest<Body> {
        let now = self.now();
        let client = &mut self.clients[index];
        let last = client.stream.map(|stream| format!("{}:{}", stream.id, client.seen));
        if last.is_none() {
            client.asked += 1;
            (client.asked_at, client.seen) = (now, 0);
        }
        let (asked, seen) = (client.asked, client.seen);
        let verb = if last.is_some() { "comes back" } else { "asks" };
        self.log(format_args!("client {index} {verb}, {asked}, with {seen}"));
        let request = &self.plan.requests[index];
        let mut http = HttpRequest::post(request.path())
            .header("content-type", "application/json")
            .header("x-tenant", request.tenant)
            .header("x-request-id", format!("client-{index}-{asked}"));
        if let Some(deadline) = request.deadline {
            http = http.header("x-request-timeout", deadline.as_secs_f64().to_string());
        }
        if let Some(last) = last {
            http = http.header("last-event-id", last);
        }
        http.body(Body::from(request.body().to_string())).expect("it is a request")
    }

    fn cancelling(&mut self, index: usize) -> Option<HttpRequest<Body>> {
        let Patience::Cancels(turns) = self.plan.requests[index].patience else { return None };
        let client = &mut self.clients[index];
        if client.has_cancelled || (client.seen as u64) < turns {
            return None;
        }
        client.has_cancelled = true;
        let path = format!("/requests/client-{index}-{}", client.asked);
        Some(HttpRequest::delete(path).body(Body::empty()).expect("it is a request"))
    }

    fn end(&mut self, index: usize, end: End) {
        self.log(format_args!("client {index} ends: {end:?}"));
        let request = &self.plan.requests[index];
        let poison = [FELLS, BREAKS, FAILS].into_iter().find(|byte| request.has(*byte));
        if end == End::Answered && poison.is_some() {
            self.violation(format!("client {index} is answered though no group survives its prompt"));
        }
        if self.clients[index].end.replace(end).is_some() {
            self.violation(format!("client {index} ends twice"));
        }
    }

    /// What a client does before it reads on.
    fn turn(&mut self, index: usize) -> Next {
        let now = self.now();
        if let Patience::Leaves(turns) = self.plan.requests[index].patience
            && self.clients[index].seen as u64 >= turns
        {
            self.end(index, End::Left);
            return Next::Stop;
        }
        if self.clients[index].restlessness == 0 || !self.is_met(|faults| faults.client_leaves) {
            return Next::Read;
        }
        let is_long = self.random.once_in(8);
        let away = if is_long { self.random.millis(55_000, 80_000) } else { self.random.millis(0, 5_000) };
        self.log(format_args!("client {index} breaks off for {} ms", away.as_millis()));
        let keeps = self.plan.server.keeps_streams;
        let client = &mut self.clients[index];
        client.restlessness -= 1;
        (client.left, client.not_before, client.is_connected) = (now, now + away, false);
        if !keeps {
            client.ask_anew();
        }
        Next::BreakOff
    }

    fn on_event(&mut self, index: usize, event: &str) -> Next {
        let life = self.life;
        let data = match event.strip_prefix("id: ") {
            None => event,
            Some(rest) => {
                let (id, data) = rest.split_once('\n').unwrap_or((rest, ""));
                let named =
                    id.split_once(':').and_then(|(id, at)| Some((id.parse().ok()?, at.parse().ok()?)));
                let Some((id, at)): Option<(Uuid, usize)> = named else {
                    self.violation(format!("client {index}: {event:?} has no id"));
                    return Next::Stop;
                };
                let client = &mut self.clients[index];
                let stream = *client.stream.get_or_insert(Stream { id, life });
                if (stream.id, client.seen + 1) != (id, at) {
                    let seen = client.seen;
                    self.violation(format!(
                        "client {index} has {seen} events of {}, then {id}:{at}",
                        stream.id
                    ));
                    self.end(index, End::Failed("events out of order".to_owned()));
                    return Next::Stop;
                }
                data
            }
        };
        let json = data.trim().strip_prefix("data:").and_then(|json| serde_json::from_str(json).ok());
        let Some(json): Option<Value> = json else {
            self.violation(format!("client {index}: {event:?} is no event"));
            return Next::Stop;
        };
        if json.get("error").is_some() {
            self.on_failure(index, &json);
            return Next::Stop;
        }
        self.on_token(index, &json)
    }

    fn on_token(&mut self, index: usize, json: &Value) -> Next {
        let life = self.life;
        let client = &mut self.clients[index];
        let found = json.pointer("/token/id").and_then(Value::as_u64);
        let expected = client.answer.tokens.get(client.seen).map(|token| u64::from(*token));
        client.seen += 1;
        client.heard_in = life;
        let (seen, answer) = (client.seen, client.answer.clone());
        self.log(format_args!("client {index} has {seen}: {found:?}"));
        if found.is_none() || found != expected || json["index"] != seen {
            self.violation(format!("client {index}: its token {seen} is {json}, expected {expected:?}"));
            self.end(index, End::Failed("a wrong token".to_owned()));
            return Next::Stop;
        }
        if json["generated_text"].is_null() {
            return self.turn(index);
        }
        let details = &json["details"];
        let is_right = json["generated_text"] == answer.text
            && details["finish_reason"] == answer.end.word()
            && details["generated_tokens"] == seen
            && seen == answer.tokens.len();
        if !is_right {
            self.violation(format!("client {index}: its end is {json}, expected {answer:?}"));
        }
        self.end(index, End::Answered);
        Next::Stop
    }

    fn on_whole(&mut self, index: usize, json: &Value) {
        let answer = self.clients[index].answer.clone();
        let tokens = json["details"]["tokens"].as_array().into_iter().flatten();
        let tokens: Vec<u64> = tokens.filter_map(|token| token["id"].as_u64()).collect();
        let is_right = json["generated_text"] == answer.text
            && json["details"]["finish_reason"] == answer.end.word()
            && tokens.into_iter().eq(answer.tokens.iter().map(|token| u64::from(*token)));
        if !is_right {
            self.violation(format!("client {index}: its answer is {json}, expected {answer:?}"));
        }
        self.end(index, End::Answered);
    }

    /// A stream ends and its last word was not said.
    fn on_broken(&mut self, index: usize) {
        self.violation(format!("client {index}: its stream ends without an end"));
        self.end(index, End::Failed("no end".to_owned()));
    }

    fn on_refusal(&mut self, index: usize, status: u16, body: &Value) {
        let now = self.now();
        let kind = body["error_type"].as_str().unwrap_or_default().to_owned();
        self.log(format_args!("client {index} is refused: {status} {kind}"));
        let pause = match kind.as_str() {
            "loading" => 500,
            "overloaded" => 300,
            "not_found" => return self.on_unknown(index),
            _ => return self.on_failure(index, body),
        };
        let client = &mut self.clients[index];
        (client.not_before, client.is_connected) = (now + Duration::from_millis(pause), false);
    }

    /// The stream it wants to go on with is not known.
    fn on_unknown(&mut self, index: usize) {
        let now = self.now();
        let client = &self.clients[index];
        let Some(stream) = client.stream else {
            return self.violation(format!("client {index}: its route is not known"));
        };
        let may_be_gone = if stream.life == self.life {
            now.saturating_sub(client.left) >= WINDOW
        } else {
            self.may_be_forgotten(stream.id, client.left) || self.may_have_failed_unheard(index, now)
        };
        if !may_be_gone {
            self.violation(format!("client {index}: its stream {} is not known any more", stream.id));
        }
        self.clients[index].ask_anew();
    }

    /// Whether there is a reason for the error `kind`, at `now`.
    fn may_have_failed(&self, index: usize, kind: &str, now: Duration) -> bool {
        let (request, client) = (&self.plan.requests[index], &self.clients[index]);
        let is_poison = [FELLS, BREAKS, FAILS].into_iter().any(|byte| request.has(byte));
        let away = self.shards.longest_away(now);
        match kind {
            "generation" => is_poison || self.has_reason_to_fail(index),
            "timeout" => request.deadline.is_some_and(|deadline| now - client.asked_at >= deadline),
            "group_lost" => away >= GROUP_LOSS_TIMEOUT,
            "cancelled" => client.has_cancelled,
            _ => false,
        }
    }

    /// Whether its answer may have ended with an error that it has not heard of yet, at `now`: such a stream is not
    /// taken up by another router.
    pub(crate) fn may_have_failed_unheard(&self, index: usize, now: Duration) -> bool {
        ["generation", "timeout", "group_lost"]
            .into_iter()
            .any(|kind| self.may_have_failed(index, kind, now))
    }

    fn on_failure(&mut self, index: usize, body: &Value) {
        let now = self.now();
        let kind = body["error_type"].as_str().unwrap_or_default();
        if !self.may_have_failed(index, kind, now) {
            self.violation(format!("client {index} fails without a reason: {body}"));
        }
        let kind = kind.to_owned();
        self.end(index, End::Failed(kind));
    }
}
