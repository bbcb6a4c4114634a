//! Writes the inputs that the fuzzer begins with and that are no text: `cargo run -p lockstep-fuzz-checks --example
//! seeds`.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use lockstep_fuzz_checks::TINY;
use lockstep_models::testing::GgufWriter;
use lockstep_proto::{
    BlockId, Bytes, ContextLogprobs, Epoch, Outcome, Position, Rank, Sampling, SamplingParams, SequenceId,
    SequenceResult, SequenceStart, ShardDescription, Step, StepId, StepOutput, StepTimings, TokenId,
    TokenLogprob, TokenLogprobs, TokenMask, Tokens, Watermark, Work, WorkTokens, wire,
};
use lockstep_router::engine::{FinishReason, GeneratedToken, GenerationEvent};
use lockstep_router::journal::{Beginning, KeptRequest, Origin, Record};
use lockstep_router::validation::Prompt;
use prost::Message;
use uuid::Uuid;

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let place = tempfile::tempdir()?;
    TINY.write(place.path())?;
    let seeds = [
        ("safetensors/tiny", std::fs::read(place.path().join("model.safetensors"))?),
        ("gguf/tiny", gguf()),
        ("protobuf/step", [vec![0], wire::Step::from(step()).encode_to_vec()].concat()),
        ("protobuf/output", [vec![1], wire::StepOutput::from(output()).encode_to_vec()].concat()),
        ("protobuf/shard", [vec![2], wire::DescribeResponse::from(shard()).encode_to_vec()].concat()),
        ("journal/segment", segment()),
    ];
    for (name, bytes) in seeds {
        let path = corpus.join(name);
        std::fs::create_dir_all(path.parent().ok_or("a seed without a folder")?)?;
        std::fs::write(path, bytes)?;
    }
    // One payload of each kind, to which the check gives its frame.
    for (index, record) in records().iter().enumerate() {
        let framed = record.encode().ok_or("a record that is not kept")?;
        std::fs::write(corpus.join(format!("journal/payload-{index}")), &framed[8..])?;
    }
    Ok(())
}

fn gguf() -> Vec<u8> {
    let mut file = GgufWriter::new();
    file.text("general.architecture", "llama")
        .unsigned("llama.embedding_length", 8)
        .unsigned("llama.feed_forward_length", 8)
        .unsigned("llama.block_count", 1)
        .unsigned("llama.attention.head_count", 2)
        .unsigned("llama.attention.head_count_kv", 1)
        .unsigned("llama.context_length", 16)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .float("llama.rope.freq_base", 10_000.0)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "a", "b", "ab"])
        .floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -1.0, -2.0, -3.0])
        .signeds("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1])
        .unsigned("tokenizer.ggml.bos_token_id", 1)
        .unsigned("tokenizer.ggml.eos_token_id", 2)
        .tensor("token_embd.weight", &[6, 8], 0, &[0; 192])
        .tensor("blk.0.attn_q.weight", &[8, 8], 1, &[0; 128]);
    file.finish()
}

fn token(id: u32) -> TokenLogprobs {
    TokenLogprobs {
        token: TokenId(id),
        logprob: -0.5,
        top: vec![TokenLogprob { token: TokenId(id), logprob: f32::NEG_INFINITY }],
    }
}

fn step() -> Step {
    let sequence = SequenceId(1);
    let watermark = Some(Watermark { gamma: 0.25, delta: 2.0 });
    let work = Work {
        sequence,
        first_position: Position(0),
        tokens: WorkTokens::Ids(vec![TokenId(5), TokenId(6)]),
        new_blocks: vec![BlockId(4)],
        sampling: Sampling::Sample,
        logprobs: ContextLogprobs::From(Position(1)),
        appended: vec![TokenId(6)],
    };
    let next =
        Work { sequence: SequenceId(2), tokens: WorkTokens::LastSampled, appended: vec![], ..work.clone() };
    Step {
        epoch: Epoch(2),
        step_id: StepId(9),
        starts: vec![SequenceStart {
            sequence,
            sampling: SamplingParams { watermark, ..SamplingParams::seeded(7) },
            context: vec![TokenId(5), TokenId(6)],
            prompt_tokens: Tokens(1),
        }],
        work: vec![work, next],
        masks: vec![TokenMask { sequence, allowed: vec![0b101] }],
        releases: vec![SequenceId(3)],
    }
}

fn output() -> StepOutput {
    let result = |outcome| SequenceResult { sequence: SequenceId(1), prompt: vec![token(3)], outcome };
    StepOutput {
        epoch: Epoch(2),
        step_id: StepId(9),
        results: vec![
            result(Outcome::Computed),
            result(Outcome::Sampled(token(4))),
            result(Outcome::Failed("its numbers are none".to_owned())),
        ],
        timings: StepTimings { forward_ns: 3, sample_ns: 2, comm_ns: 1 },
    }
}

fn shard() -> ShardDescription {
    ShardDescription {
        rank: Rank(1),
        world_size: 2,
        epoch: Epoch(3),
        vocabulary_size: 262,
        max_positions: Tokens(64),
        block_size: Tokens(16),
        block_bytes: Bytes(1 << 20),
        kv_budget: Bytes(1 << 30),
        weights: Bytes(7),
        arithmetic: "test".to_owned(),
    }
}

fn records() -> Vec<Record> {
    let stream = Uuid::from_u128(1);
    let beginning = Beginning {
        origin: Origin { stream, answer: stream, seed: 2, calls: 3, created: 4 },
        request: KeptRequest {
            owner: Some("a key".to_owned()),
            path: "/generate_stream".to_owned(),
            headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
            body: br#"{"inputs": "a"}"#.to_vec(),
        },
        prompts: vec![Prompt { text: "a".to_owned(), tokens: vec![TokenId(97)] }],
        fingerprint: "test".to_owned(),
    };
    let heard = |event| Record::Heard { stream, place: 0, event };
    let last = GeneratedToken {
        token: token(98),
        text: "b".to_owned(),
        delta: "b".to_owned(),
        special: false,
        finish: Some(FinishReason::Length),
    };
    vec![
        Record::Begun(Box::new(beginning)),
        heard(GenerationEvent::Admitted { queued: Duration::from_millis(2), cached: Tokens(0) }),
        heard(GenerationEvent::Prompt(vec![token(97)])),
        heard(GenerationEvent::Token(last)),
        heard(GenerationEvent::PromptDone),
        Record::Forgotten { stream },
    ]
}

fn segment() -> Vec<u8> {
    let mut bytes = b"LSJRNL01".to_vec();
    bytes.extend(records().iter().filter_map(Record::encode).flatten());
    bytes
}
