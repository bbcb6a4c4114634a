//! What is asked, of every interface, and what is answered where nobody is disturbed.

use lockstep_integration_tests::client::Client;
use lockstep_integration_tests::frames::without_ids_and_times;
use serde_json::{Value, json};

const STORY: &str = "Once upon a time, there was a little dog named Rex.";
const NATIVE: &str = "/generate_stream";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A request for a stream.
pub(crate) struct Question {
    pub(crate) path: &'static str,
    pub(crate) body: Value,
    choices: usize,
    /// By choice: its events, masked.
    expected: Vec<Vec<String>>,
}

/// What has been heard of an answer, beside what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// All of it, and nothing else.
    Whole,
    /// Its beginning.
    Part,
    /// Something else.
    Other,
}

impl Question {
    fn new(path: &'static str, body: Value) -> Self {
        let choices = body["n"].as_u64().unwrap_or(1) as usize;
        Self { path, body, choices, expected: Vec::new() }
    }

    /// Asks undisturbed, for what is expected from then on.
    pub(crate) async fn ask(&mut self, client: &Client) -> Result<(), String> {
        let opened = client.open_frames(self.path, &self.body).await;
        let frames = opened.map_err(|refusal| format!("{}: {}", self.body, refusal.text))?;
        self.expected = self.by_choice(&frames.rest().await?);
        Ok(())
    }

    /// How many events its answer has.
    pub(crate) fn events(&self) -> usize {
        self.expected.iter().map(Vec::len).sum()
    }

    pub(crate) fn check(&self, frames: &[String]) -> Heard {
        let heard = self.by_choice(frames);
        let fits = |(heard, expected): (&Vec<String>, &Vec<String>)| expected.starts_with(heard);
        if heard == self.expected {
            Heard::Whole
        } else if heard.iter().zip(&self.expected).all(fits) {
            Heard::Part
        } else {
            Heard::Other
        }
    }

    /// What was heard of an answer, from where it differs.
    pub(crate) fn complaint(&self, frames: &[String], why: &str) -> String {
        let (heard, mut text) = (self.by_choice(frames), format!("{why}: {} {}", self.path, self.body));
        for (choice, (heard, expected)) in heard.iter().zip(&self.expected).enumerate() {
            let same = heard.iter().zip(expected).take_while(|(heard, expected)| heard == expected).count();
            if same < heard.len().max(expected.len()) {
                let (heard, expected) = (heard.get(same), expected.get(same));
                text += &format!("\n  choice {choice}, event {same}: {heard:?}, expected {expected:?}");
            }
        }
        text
    }

    /// Choices of one answer are told in no order; what is no choice's, such as the end, comes after them.
    fn by_choice(&self, frames: &[String]) -> Vec<Vec<String>> {
        let mut choices = vec![Vec::new(); self.choices + 1];
        for frame in frames {
            // The line of the event's id goes first.
            let data = frame.rsplit_once("\ndata: ").map_or(frame.as_str(), |(_, data)| data);
            let is_of = |choice: &usize| data.contains(&format!("\"index\":{choice},"));
            let choice = if self.choices == 1 { Some(0) } else { (0..self.choices).find(is_of) };
            choices[choice.unwrap_or(self.choices)].push(without_ids_and_times(data));
        }
        choices
    }
}

fn native(prompt: &str, tokens: u32, parameters: Value) -> Question {
    let mut all = json!({ "max_new_tokens": tokens, "details": true });
    for (name, value) in parameters.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    Question::new(NATIVE, json!({ "inputs": prompt, "parameters": all }))
}

fn openai(path: &'static str, tokens: u32, fields: Value) -> Question {
    let mut body = json!({ "stream": true, "max_tokens": tokens, "seed": 7, "temperature": 0.8 });
    if path == CHAT {
        body["messages"] = json!([{ "role": "user", "content": "Tell me a story about a dog." }]);
    } else {
        body["prompt"] = json!(STORY);
    }
    for (name, value) in fields.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    Question::new(path, body)
}

/// One that nobody has asked before, with a prompt of many chunks.
pub(crate) fn unheard_of(number: u64) -> Question {
    let prompt = format!("Number {number}. {}", "Rex the dog went to the park. ".repeat(150));
    native(&prompt, 4, json!({}))
}

/// All that visitors ask.
pub(crate) fn all() -> Vec<Question> {
    let long = "Rex the dog went to the park. ".repeat(40);
    let regex = json!({ "type": "regex", "value": "[A-Z][a-z]{2,8} has [0-9]{2} (cats|dogs)" });
    let parameters = json!({
        "type": "object",
        "properties": {"country": {"type": "string", "maxLength": 12}, "language": {"enum": ["en", "fr"]}},
        "required": ["country", "language"],
        "additionalProperties": false,
    });
    let tools =
        json!([{ "type": "function", "function": { "name": "capital_of", "parameters": parameters } }]);
    let mut all = vec![
        native(STORY, 40, json!({})),
        native(&long, 24, json!({})),
        native(STORY, 60, json!({ "do_sample": true, "seed": 1, "repetition_penalty": 1.3 })),
        native(STORY, 40, json!({ "do_sample": true, "seed": 2, "watermark": true })),
        native(STORY, 40, json!({ "do_sample": true, "seed": 3, "grammar": regex })),
        native(STORY, 60, json!({ "stop": ["very far away", "happy. "] })),
        native(&long, 12, json!({ "do_sample": true, "seed": 4, "top_n_tokens": 4 })),
        openai(CHAT, 40, json!({ "stream_options": { "include_usage": true } })),
        openai(CHAT, 24, json!({ "n": 3, "logprobs": true, "top_logprobs": 2 })),
        openai(CHAT, 60, json!({ "tools": tools, "tool_choice": "required" })),
        openai(COMPLETIONS, 40, json!({ "stop": ["sky"] })),
        openai(COMPLETIONS, 16, json!({ "echo": true, "logprobs": 2 })),
    ];
    let seeded = |seed: u64| json!({ "seed": seed, "temperature": 0.9, "top_k": 40, "top_p": 0.95 });
    all.extend((10..18).map(|seed| native("A little girl", 20 + seed as u32, seeded(seed))));
    all
}
