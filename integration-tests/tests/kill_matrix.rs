//! The kill matrix: what an answer may depend on, times every place in it, times every rank.
//!
//! A cell is a feature, a number of events and a rank. It is covered by a request of its own whose client has seen
//! exactly so many events when that rank gets SIGKILL; what the client gets in all is then, byte for byte but for ids
//! and times, what it gets where nobody is killed. The engine may be ahead of its client. So the router's log is asked
//! whether it lost its group with the whole answer still incomplete: then the kill has *hit*. Where it has not, the
//! cell is tried again, and where the engine is always done before its client has read so far, as it is at the last
//! events of a stream, the kill has come *too late* to change anything, and the transcript is compared all the same.
//!
//! An answer that comes whole has no events. Beside it runs a stream, in the same steps, and its events are counted.
//!
//! `cargo test -p lockstep-integration-tests --test kill_matrix -- --nocapture` prints the matrix.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use futures::future::join_all;
use lockstep_integration_tests::client::{Client, Reply};
use lockstep_integration_tests::cluster::{Cluster, Setup};
use lockstep_integration_tests::frames::{Frames, without_ids_and_times};
use lockstep_integration_tests::{BETWEEN_LOOKS, DEADLINE, faults};
use serde_json::{Value, json};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep-under-test");

/// Tokens of an answer, unless it ends before: a prompt and these fill three blocks, so that borders are crossed.
const TOKENS: u32 = 32;
const RANKS: u32 = 2;
/// Clusters that are disturbed side by side.
const LANES: usize = 3;
/// How often a cell is tried before the kill counts as too late.
const ATTEMPTS: u32 = 4;

const STORY: &str = "Once upon a time, there was a little dog named Rex.";
const NATIVE: &str = "/generate_stream";
const WHOLE: &str = "/generate";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// One way in which an answer depends on what came before it, or in which it is told.
struct Feature {
    name: &'static str,
    path: &'static str,
    body: Value,
    /// How many sequences are computed for it.
    sequences: usize,
    /// What is in an answer that has it.
    shown: &'static str,
    /// What a client gets where nobody is killed.
    undisturbed: Vec<String>,
}

impl Feature {
    fn new(name: &'static str, path: &'static str, body: Value) -> Self {
        let given = ["n", "best_of"].iter().find_map(|field| body[field].as_u64());
        let given = given.or_else(|| body["parameters"]["best_of"].as_u64());
        let sequences = given.unwrap_or(1) as usize;
        Self { name, path, body, sequences, shown: "", undisturbed: Vec::new() }
    }

    fn showing(self, shown: &'static str) -> Self {
        Self { shown, ..self }
    }

    /// Whether it is told as it comes.
    fn is_stream(&self) -> bool {
        self.path == NATIVE || self.body["stream"] == true
    }

    /// After how many events somebody may be killed: none, or any but the last.
    fn places(&self) -> usize {
        if self.is_stream() { self.undisturbed.len() } else { TOKENS as usize }
    }

    /// Sequences that are under way while nothing of it is complete.
    fn sequences_under_way(&self) -> usize {
        self.sequences + usize::from(!self.is_stream())
    }
}

/// A request of the native interface, with these parameters besides the usual ones.
fn native(name: &'static str, path: &'static str, parameters: Value) -> Feature {
    let mut all = json!({ "max_new_tokens": TOKENS, "details": true });
    for (name, value) in parameters.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    Feature::new(name, path, json!({ "inputs": STORY, "parameters": all }))
}

/// A stream of an OpenAI interface, with these fields besides the usual ones.
fn openai(name: &'static str, path: &'static str, fields: Value) -> Feature {
    let mut body = json!({ "stream": true, "max_tokens": TOKENS, "seed": 7, "temperature": 0.8 });
    if path == CHAT {
        body["messages"] = json!([{ "role": "user", "content": "Tell me a story about a dog." }]);
    } else {
        body["prompt"] = json!(STORY);
    }
    for (name, value) in fields.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    Feature::new(name, path, body)
}

fn features() -> Vec<Feature> {
    let penalties =
        json!({ "do_sample": true, "seed": 3, "repetition_penalty": 1.3, "frequency_penalty": 0.4 });
    let forced = json!({ "max_new_tokens": 60, "do_sample": true, "seed": 9, "grammar": grammar() });
    // A whole answer outlasts the stream beside it.
    let longer = TOKENS + 8;
    let best = json!({ "max_new_tokens": longer, "do_sample": true, "seed": 4, "best_of": 2 });
    let prompt = json!({ "max_new_tokens": longer, "decoder_input_details": true, "top_n_tokens": 2 });
    // The first one is what an answer begins to say, and does not go on with.
    let stops = json!({ "max_new_tokens": 60, "stop": ["by the sea. Every night", "a boy named Oscar"] });
    vec![
        native("greedy", NATIVE, json!({})),
        native(
            "seeded sampling",
            NATIVE,
            json!({ "seed": 17, "temperature": 0.9, "top_k": 40, "top_p": 0.95 }),
        ),
        native("penalties", NATIVE, penalties),
        native("watermark", NATIVE, json!({ "do_sample": true, "seed": 23, "watermark": true })),
        native("grammar, forced tokens", NATIVE, forced),
        native("stop strings held back", NATIVE, stops).showing("\"finish_reason\":\"stop_sequence\""),
        native("log-probabilities", NATIVE, json!({ "do_sample": true, "seed": 5, "top_n_tokens": 4 }))
            .showing("\"top_tokens\":[{"),
        openai("chat", CHAT, json!({ "stream_options": { "include_usage": true } })),
        openai("chat, n = 2", CHAT, json!({ "n": 2, "logprobs": true, "top_logprobs": 2 }))
            .showing("\"index\":1"),
        openai(
            "tool-call deltas",
            CHAT,
            json!({ "tools": tools(), "tool_choice": "required", "max_tokens": 60 }),
        )
        .showing("\"tool_calls\":[{"),
        openai("completions", COMPLETIONS, json!({})),
        openai("prompt logprobs, told", COMPLETIONS, json!({ "echo": true, "logprobs": 2 }))
            .showing("\"token_logprobs\":[null,-"),
        native("prompt logprobs, whole", WHOLE, prompt).showing("\"prefill\":[{"),
        native("best_of = 2, whole", WHOLE, best).showing("\"best_of_sequences\":[{"),
    ]
}

/// The first half of an answer is forced, but for a choice; the second is not.
fn grammar() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {
            "where_the_dog_went": {"enum": ["to the park with a friend", "to the river with a bird"]},
            "what_it_saw": {"type": "string", "minLength": 20, "maxLength": 30},
        },
        "required": ["where_the_dog_went", "what_it_saw"],
        "additionalProperties": false,
        "x-guidance": {"whitespace_flexible": false},
    });
    json!({ "type": "json", "value": schema })
}

fn tools() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {"country": {"type": "string", "maxLength": 12}, "language": {"enum": ["en", "fr"]}},
        "required": ["country", "language"],
        "additionalProperties": false,
    });
    json!([{ "type": "function", "function": { "name": "capital_of", "parameters": parameters } }])
}

/// What runs beside an answer that comes whole.
fn pacer() -> Feature {
    native("beside it", NATIVE, json!({}))
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    feature: usize,
    after: usize,
    rank: u32,
    /// How often it was tried before.
    tried: u32,
}

/// Cells of a feature and a rank, by what became of them.
#[derive(Clone, Copy, Default)]
struct Count {
    hit: usize,
    too_late: usize,
}

struct Matrix {
    features: Vec<Feature>,
    pacer: Vec<String>,
    to_do: Mutex<VecDeque<Cell>>,
    counts: Mutex<Vec<[Count; RANKS as usize]>>,
}

impl Matrix {
    /// Asks once for everything, undisturbed.
    async fn new(client: &Client) -> Self {
        let mut features = features();
        for feature in &mut features {
            feature.undisturbed = transcript(feature, client).await;
            let Feature { name, shown, undisturbed, .. } = &feature;
            assert!(undisturbed.iter().any(|frame| frame.contains(shown)), "{name}: {undisturbed:?}");
        }
        let pacer = transcript(&pacer(), client).await;
        assert_eq!(pacer.len(), TOKENS as usize, "{pacer:?}");
        let cells = features.iter().enumerate().flat_map(|(index, feature)| {
            let places = (0..feature.places()).flat_map(|after| (0..RANKS).map(move |rank| (after, rank)));
            places.map(move |(after, rank)| Cell { feature: index, after, rank, tried: 0 })
        });
        let to_do = Mutex::new(cells.collect());
        let counts = Mutex::new(vec![Default::default(); features.len()]);
        Self { features, pacer, to_do, counts }
    }

    fn take(&self) -> Option<Cell> {
        self.to_do.lock().expect("nobody panics with it").pop_front()
    }

    /// What became of a cell. One that was not hit is tried again.
    fn note(&self, cell: Cell, is_hit: bool) {
        let tried = cell.tried + 1;
        if !is_hit && tried < ATTEMPTS {
            self.to_do.lock().expect("nobody panics with it").push_back(Cell { tried, ..cell });
            return;
        }
        let count =
            &mut self.counts.lock().expect("nobody panics with it")[cell.feature][cell.rank as usize];
        *(if is_hit { &mut count.hit } else { &mut count.too_late }) += 1;
    }

    /// The matrix as Markdown.
    fn table(&self) -> String {
        let counts = self.counts.lock().expect("nobody panics with it");
        let mut table = String::from(
            "| what | route | killed after, events | rank 0: hit | too late | rank 1: hit | too late |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for (feature, [zero, one]) in self.features.iter().zip(counts.iter()) {
            let Feature { name, path, .. } = feature;
            let last = feature.places() - 1;
            let (hit, late) = ((zero.hit, one.hit), (zero.too_late, one.too_late));
            table += &format!(
                "| {name} | `{path}` | 0 to {last} | {} | {} | {} | {} |\n",
                hit.0, late.0, hit.1, late.1
            );
        }
        table
    }
}

/// Everything a client gets, masked.
async fn transcript(feature: &Feature, client: &Client) -> Vec<String> {
    if feature.is_stream() {
        masked(feature, frames_of(open(client, feature).await).await)
    } else {
        vec![whole(client, feature).await]
    }
}

/// Choices of one answer are told in no order; each is looked at for itself.
fn masked(feature: &Feature, frames: Vec<String>) -> Vec<String> {
    let mut frames: Vec<String> = frames.iter().map(|frame| without_ids_and_times(frame)).collect();
    if feature.sequences > 1 {
        frames.sort_by_key(|frame| {
            (0..feature.sequences).find(|choice| frame.contains(&format!("\"index\":{choice},")))
        });
    }
    frames
}

async fn frames_of(frames: Frames) -> Vec<String> {
    let rest = tokio::time::timeout(DEADLINE, frames.rest()).await.expect("the stream ends");
    rest.expect("the connection holds")
}

/// Until the service is there: it may have said that it is ready a moment before it hears of a kill.
async fn open(client: &Client, feature: &Feature) -> Frames {
    let start = Instant::now();
    loop {
        match client.open_frames(feature.path, &feature.body).await {
            Ok(frames) => return frames,
            Err(refusal) => wait_on(start, &refusal).await,
        }
    }
}

async fn whole(client: &Client, feature: &Feature) -> String {
    let start = Instant::now();
    loop {
        let reply = tokio::time::timeout(DEADLINE, client.post(feature.path, &feature.body)).await;
        let reply = reply.expect("the answer comes").expect("the connection holds");
        if reply.status == 200 {
            return without_ids_and_times(&reply.text);
        }
        wait_on(start, &reply).await;
    }
}

async fn wait_on(start: Instant, refusal: &Reply) {
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(start.elapsed() < DEADLINE, "the service does not return: {refusal:?}");
    tokio::time::sleep(BETWEEN_LOOKS).await;
}

/// A cluster whose ranks are killed again and again.
struct Lane {
    cluster: Cluster,
    client: Client,
    kills: usize,
}

impl Lane {
    fn start() -> Self {
        let cluster = Setup::demo(LOCKSTEP).ranks(RANKS).start();
        let client = cluster.client();
        Self { cluster, client, kills: 0 }
    }

    async fn run(mut self, matrix: &Matrix) {
        while let Some(cell) = matrix.take() {
            let feature = &matrix.features[cell.feature];
            let place =
                format!("{}: rank {} was killed after {} events", feature.name, cell.rank, cell.after);
            let told = if feature.is_stream() {
                let frames = open(&self.client, feature).await;
                masked(feature, self.disturbed(frames, cell).await)
            } else {
                self.disturbed_beside(feature, cell, matrix, &place).await
            };
            assert_eq!(told, feature.undisturbed, "{place}");
            self.wait_until_it_is_back().await;
            let at_losses = self.cluster.sequences_at_losses();
            matrix.note(cell, at_losses[self.kills - 1] == feature.sequences_under_way());
        }
    }

    /// All that a stream tells, with the kill when so many events have come.
    async fn disturbed(&mut self, mut frames: Frames, cell: Cell) -> Vec<String> {
        let victim = faults::rank(&self.cluster, cell.rank);
        let mut told = Vec::new();
        while told.len() < cell.after {
            told.push(frames.next().await.expect("the answer is longer").expect("the connection holds"));
        }
        faults::strike(victim);
        self.kills += 1;
        told.extend(frames_of(frames).await);
        told
    }

    /// A whole answer, disturbed when the stream beside it has told so many events.
    async fn disturbed_beside(
        &mut self,
        feature: &Feature,
        cell: Cell,
        matrix: &Matrix,
        place: &str,
    ) -> Vec<String> {
        let client = self.client.clone();
        let beside = async {
            let frames = open(&client, &pacer()).await;
            self.disturbed(frames, cell).await
        };
        let (told, beside) = tokio::join!(whole(&client, feature), beside);
        assert_eq!(masked(&pacer(), beside), matrix.pacer, "beside it, {place}");
        vec![told]
    }

    async fn wait_until_it_is_back(&self) {
        let start = Instant::now();
        while self.cluster.returns() < self.kills || self.cluster.sequences_at_losses().len() < self.kills {
            assert!(start.elapsed() < DEADLINE, "the service does not return");
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
}

#[tokio::test]
async fn an_answer_is_the_same_whichever_rank_is_killed_at_whichever_of_its_events() {
    let lanes: Vec<Lane> = (0..LANES).map(|_| Lane::start()).collect();
    let matrix = Matrix::new(&lanes[0].client).await;
    join_all(lanes.into_iter().map(|lane| lane.run(&matrix))).await;
    println!("{}", matrix.table());
    let counts = matrix.counts.lock().expect("nobody panics with it");
    for (feature, by_rank) in matrix.features.iter().zip(counts.iter()) {
        for count in by_rank {
            assert_eq!(
                count.hit + count.too_late,
                feature.places(),
                "{}: every cell is covered",
                feature.name
            );
            assert!(count.hit > 0, "{}: no kill ever hit it", feature.name);
        }
    }
}
