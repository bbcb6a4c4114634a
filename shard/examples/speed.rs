//! Times one rank's engine, sampling included: reads lines such as `prefill 512` (one prompt of so many tokens
//! in one step) or `decode 8 64 16` (8 streams, prompts of 64 tokens, 16 steps) and answers each with a line of
//! JSON, so that a model stays loaded while another program takes its turns. Figures are context for people,
//! not a verdict.
//!
//! `speed FOLDER|demo [--threads 2] [--dtype bfloat16] [--kv-cache-dtype int8] [--device cuda [--exact]] [WORK...]`;
//! with work on the command line, such as `decode:8:64:16`, nothing is read.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::io::BufRead;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use lockstep_models::ModelFiles;
use lockstep_process::reports::Progress;
use lockstep_proto::{
    BlockId, Bytes, ContextLogprobs, Epoch, Outcome, Position, Rank, Sampling, SamplingParams, SequenceId,
    SequenceStart, Step, StepId, TokenId, Tokens, Work, WorkTokens,
};
use lockstep_shard::batch::BLOCK_SIZE;
use lockstep_shard::comm::{Communicator, Membership, Solo, Timed};
use lockstep_shard::decoder::{Decoder, Dtype, ModelSpec, Precision, Quantize};
use lockstep_shard::device::{DeviceArgs, Target};
use lockstep_shard::engine::{Begun, Configuration, Engine, Group};
use lockstep_shard::kv::KvCacheDtype;
use lockstep_shard::{Loaded, use_instruction_set};
use serde_json::json;

/// The only incarnation of a group of one.
const EPOCH: Epoch = Epoch(0);
/// Room for the tokens of all sequences that stand at one time.
const ROOM: Tokens = Tokens(32 << 10);

#[derive(Parser)]
#[command(about = "Times one rank's engine: reads `prefill TOKENS` and `decode STREAMS PROMPT STEPS`")]
struct Cli {
    /// A model's folder, a GGUF file, or "demo".
    #[arg(default_value = "demo")]
    model: String,
    /// What to time in place of what standard input says: prefill:512 or decode:8:64:16.
    works: Vec<Timing>,
    /// Threads that compute; 0 means one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// What weights and KV blocks are held in.
    #[arg(long, value_enum, default_value_t = Dtype::Bfloat16)]
    dtype: Dtype,
    /// How the weights of linear layers are quantized.
    #[arg(long, value_enum, default_value_t = Quantize::AsStored)]
    quantize: Quantize,
    /// What KV blocks are held in.
    #[arg(long, value_enum, default_value_t = KvCacheDtype::Auto)]
    kv_cache_dtype: KvCacheDtype,
    /// Kernels of this instruction set in place of the fastest: avx512-bf16, avx512, avx2 or portable.
    #[arg(long)]
    instruction_set: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What is timed.
#[derive(Clone, Copy, Debug)]
enum Timing {
    /// A prompt of so many tokens, in one step.
    Prefill { tokens: Tokens },
    /// So many steps of as many streams, whose prompts were computed before.
    Decode { streams: u64, prompt: Tokens, steps: u32 },
}

impl FromStr for Timing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split([' ', ':']).collect();
        let number =
            |word: &str| word.parse().map_err(|error| format!("read {word:?} of {text:?}: {error}"));
        match words.as_slice() {
            ["prefill", tokens] => Ok(Self::Prefill { tokens: Tokens(number(tokens)?) }),
            ["decode", streams, prompt, steps] => Ok(Self::Decode {
                streams: u64::from(number(streams)?),
                prompt: Tokens(number(prompt)?),
                steps: number(steps)?,
            }),
            _ => Err(format!("time {text:?}: say `prefill TOKENS` or `decode STREAMS PROMPT STEPS`")),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    lockstep_shard::keep_freed_memory();
    if let Some(name) = &cli.instruction_set {
        use_instruction_set(name)?;
    }
    rayon::ThreadPoolBuilder::new().num_threads(cli.threads).build_global()?;
    let mut bare = BareEngine::load(&cli)?;
    for timing in &cli.works {
        bare.time(*timing)?;
    }
    if cli.works.is_empty() {
        for line in std::io::stdin().lock().lines() {
            bare.time(line?.trim().parse()?)?;
        }
    }
    Ok(())
}

/// An engine without a server around it, and the streams it holds.
struct BareEngine {
    engine: Engine<Loaded>,
    vocabulary: u32,
    /// How many steps were taken.
    steps: u64,
    /// How many sequences were started.
    started: u64,
    streams: Streams,
}

/// Sequences that decode together.
#[derive(Default)]
struct Streams {
    ids: Vec<SequenceId>,
    prompt: Tokens,
    /// Tokens of each whose KV is computed.
    computed: Tokens,
}

/// What steps took.
#[derive(Default)]
struct Times {
    /// Each step's seconds.
    steps: Vec<f64>,
    forward: f64,
    sample: f64,
    /// What the last step sampled.
    sampled: Vec<u32>,
}

impl BareEngine {
    fn load(cli: &Cli) -> Result<Self, Box<dyn Error>> {
        let files = ModelFiles::from_argument(&cli.model);
        let spec = ModelSpec::read(&files)?;
        let precision = Precision { dtype: cli.dtype, quantize: cli.quantize };
        let target = Target::open(cli.device, Membership::new(Rank(0), 1)?)?;
        let begun = Instant::now();
        let place = (&target, Arc::new(Solo) as Arc<dyn Communicator>);
        let decoder = Decoder::load_onto(place, &files, (&spec, precision), Progress::default())?
            .with_kv_cache(cli.kv_cache_dtype);
        let seconds = begun.elapsed().as_secs_f64();
        let comm = Arc::new(Timed::new(Arc::new(Solo) as Arc<dyn Communicator>));
        let group = Group { comm, epoch: EPOCH, kv_budget: Bytes(u64::MAX) };
        let mut engine = Engine::new(Loaded::new(decoder), group);
        let blocks = ROOM.blocks_ceil(BLOCK_SIZE);
        engine.configure(Configuration { epoch: EPOCH, blocks, max_step_tokens: ROOM })?;
        let about = engine.describe();
        let ready = json!({
            "ready": about.arithmetic,
            "weight_bytes": about.weights.0,
            "kv_token_bytes": about.block_bytes.0 / u64::from(BLOCK_SIZE.0),
            "threads": rayon::current_num_threads(),
            "seconds": seconds,
        });
        println!("{ready}");
        let vocabulary = about.vocabulary_size;
        Ok(Self { engine, vocabulary, steps: 0, started: 0, streams: Streams::default() })
    }

    fn time(&mut self, timing: Timing) -> Result<(), Box<dyn Error>> {
        let (name, tokens, times) = match timing {
            Timing::Prefill { tokens } => ("prefill", tokens.len(), self.open(1, tokens)?),
            Timing::Decode { streams, prompt, steps } => {
                let tokens = steps as usize * streams as usize;
                ("decode", tokens, self.decode(streams, prompt, steps)?)
            }
        };
        let line = json!({
            "work": name,
            "streams": self.streams.ids.len(),
            "tokens": tokens,
            "depth": self.streams.computed.0,
            "seconds": times.steps.iter().sum::<f64>(),
            "median_step_seconds": median(times.steps),
            "forward_seconds": times.forward,
            "sample_seconds": times.sample,
            "sampled": times.sampled,
        });
        println!("{line}");
        Ok(())
    }

    /// Computes the prompts of so many streams, each in a step of its own, in place of those before.
    fn open(&mut self, streams: u64, prompt: Tokens) -> Result<Times, Box<dyn Error>> {
        let mut releases = std::mem::take(&mut self.streams).ids;
        let blocks = ROOM.blocks_ceil(BLOCK_SIZE).0 / u32::try_from(streams.max(1))?;
        let mut times = Times::default();
        for (stream, first) in (0..streams).zip((0..).step_by(blocks as usize)) {
            let sequence = SequenceId(self.started);
            self.started += 1;
            self.streams.ids.push(sequence);
            let token = |row: u64| (stream * 7919 + row * 104_729) % u64::from(self.vocabulary);
            let context = (0..u64::from(prompt.0)).map(|row| Ok(TokenId(u32::try_from(token(row))?)));
            let context: Vec<TokenId> = context.collect::<Result<_, Box<dyn Error>>>()?;
            let start = SequenceStart {
                sequence,
                sampling: SamplingParams::greedy(),
                context: context.clone(),
                prompt_tokens: prompt,
            };
            let new_blocks = (first..first + blocks).map(BlockId).collect();
            let work = Work { new_blocks, ..chunk(sequence, Position(0), WorkTokens::Ids(context)) };
            let releases = std::mem::take(&mut releases);
            self.run(Step { starts: vec![start], releases, ..step(vec![work]) }, &mut times)?;
        }
        self.streams.prompt = prompt;
        self.streams.computed = prompt;
        Ok(times)
    }

    /// Decodes the streams that stand, where they are so many with such prompts and have room left.
    fn decode(&mut self, streams: u64, prompt: Tokens, steps: u32) -> Result<Times, Box<dyn Error>> {
        let standing = &self.streams;
        let end = u64::from((standing.computed + Tokens(steps) + BLOCK_SIZE).0);
        let same = standing.ids.len() as u64 == streams && standing.prompt == prompt;
        if !same || end * streams > u64::from(ROOM.0) {
            self.open(streams, prompt)?;
        }
        let mut times = Times::default();
        let mut since = Instant::now();
        let mut before: Option<Begun<Loaded>> = None;
        for _ in 0..steps {
            let position = Position(self.streams.computed.0);
            let last = |sequence: &SequenceId| chunk(*sequence, position, WorkTokens::LastSampled);
            let step = self.numbered(step(self.streams.ids.iter().map(last).collect()));
            // As a shard does whose router is a step ahead.
            if let Some(first) = before.take_if(|before| !self.engine.can_begin_behind(before, &step)) {
                self.finish(first, (&mut since, &mut times))?;
            }
            let begun = self.engine.begin_step(step, before.as_ref())?;
            if let Some(first) = before.replace(begun) {
                self.finish(first, (&mut since, &mut times))?;
            }
            self.streams.computed += Tokens(1);
        }
        if let Some(last) = before {
            self.finish(last, (&mut since, &mut times))?;
        }
        Ok(times)
    }

    fn numbered(&mut self, step: Step) -> Step {
        let step = Step { step_id: StepId(self.steps), ..step };
        self.steps += 1;
        step
    }

    fn run(&mut self, step: Step, times: &mut Times) -> Result<(), Box<dyn Error>> {
        let step = self.numbered(step);
        let mut since = Instant::now();
        let begun = self.engine.begin_step(step, None)?;
        self.finish(begun, (&mut since, times))
    }

    /// Takes a step's time since the one before it was finished.
    fn finish(
        &mut self,
        begun: Begun<Loaded>,
        (since, times): (&mut Instant, &mut Times),
    ) -> Result<(), Box<dyn Error>> {
        let output = self.engine.finish_step(begun)?;
        let done = Instant::now();
        times.steps.push((done - *since).as_secs_f64());
        *since = done;
        times.forward += output.timings.forward_ns as f64 / 1e9;
        times.sample += output.timings.sample_ns as f64 / 1e9;
        times.sampled.clear();
        for result in output.results {
            match result.outcome {
                Outcome::Sampled(sampled) => times.sampled.push(sampled.token.0),
                Outcome::Computed => {}
                Outcome::Failed(reason) => return Err(reason.into()),
            }
        }
        Ok(())
    }
}

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// A step that computes `work` and nothing else.
fn step(work: Vec<Work>) -> Step {
    Step {
        epoch: EPOCH,
        step_id: StepId(0),
        starts: Vec::new(),
        work,
        masks: Vec::new(),
        releases: Vec::new(),
    }
}

/// A chunk after which a token is sampled.
fn chunk(sequence: SequenceId, first_position: Position, tokens: WorkTokens) -> Work {
    Work {
        sequence,
        first_position,
        tokens,
        new_blocks: Vec::new(),
        sampling: Sampling::Sample,
        logprobs: ContextLogprobs::Skip,
        appended: Vec::new(),
    }
}
