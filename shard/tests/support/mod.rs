//! Runs a decoder the way an engine does: block tables, chunks, batches, groups of ranks.

#![expect(dead_code, reason = "each test takes what it needs of it")]

pub(crate) mod reference;

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use lockstep_models::ModelFiles;
use lockstep_process::reports::Progress;
use lockstep_proto::{BlockId, Blocks, Position, TokenId, Tokens};
use lockstep_shard::batch::{BLOCK_SIZE, Batch, BatchSequence};
use lockstep_shard::comm::{Communicator, Membership, Solo, Threads};
use lockstep_shard::decoder::{Decoder, Logits, ModelSpec, Precision};
use lockstep_shard::device::{CudaGraphs, DeviceArgs, DeviceChoice, Target};
use lockstep_shard::kv::{KvCacheDtype, KvPool};
use lockstep_shard::testing::TinyLlama;

/// Blocks of every test's pool.
const POOL: Blocks = Blocks(512);

/// Far longer than any exchange here takes.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Where decoders compute: the CPU, or what this says, as `--device` is told.
const DEVICE: &str = "LOCKSTEP_TEST_DEVICE";

fn target(communicator: &dyn Communicator) -> Target {
    let Some(device) = std::env::var_os(DEVICE) else { return Target::cpu() };
    let device = DeviceChoice::from_str(&device.to_string_lossy(), true).expect("a device");
    let cuda_graphs = CudaGraphs::Auto;
    let args = DeviceArgs { device, ranks_per_gpu: 64, exact: true, cuda_graphs, places_taken: 0 };
    let membership = Membership::new(communicator.rank(), communicator.world_size()).expect("a group");
    Target::open(args, membership).expect("the device is there")
}

#[cfg(not(feature = "cuda"))]
fn on_host(logits: Logits) -> Logits {
    logits
}

#[cfg(feature = "cuda")]
fn on_host(logits: Logits) -> Logits {
    logits.on_host().expect("the device and the group are there")
}

/// A decoder with its pool, and the next block that is free.
pub(crate) struct Runner {
    pub(crate) decoder: Decoder,
    kv: KvPool,
    next_block: u32,
    /// Rows of logits in a slice.
    pub(crate) at_once: usize,
}

/// One sequence: its tokens, how many are computed, its blocks.
#[derive(Clone)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<TokenId>,
    computed: usize,
    blocks: Vec<BlockId>,
}

impl Sequence {
    pub(crate) fn new(tokens: &[u32]) -> Self {
        Self { tokens: tokens.iter().copied().map(TokenId).collect(), computed: 0, blocks: Vec::new() }
    }

    pub(crate) fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

impl Runner {
    pub(crate) fn load(
        files: &ModelFiles,
        precision: impl Into<Precision>,
        communicator: Arc<dyn Communicator>,
    ) -> Self {
        Self::load_with(files, (precision.into(), KvCacheDtype::Auto), communicator)
    }

    pub(crate) fn load_with(
        files: &ModelFiles,
        (precision, kv_cache): (Precision, KvCacheDtype),
        communicator: Arc<dyn Communicator>,
    ) -> Self {
        let spec = ModelSpec::read(files).expect("config.json is served");
        let target = target(communicator.as_ref());
        let of = (&spec, precision);
        let decoder = Decoder::load_onto((&target, communicator), files, of, Progress::default());
        let decoder = decoder.expect("weights load");
        let decoder = decoder.with_kv_cache(kv_cache);
        let kv = decoder.allocate_kv(POOL).expect("blocks fit");
        let at_once = decoder.logit_rows_at_once();
        Self { decoder, kv, next_block: 0, at_once }
    }

    pub(crate) fn solo(files: &ModelFiles, precision: impl Into<Precision>) -> Self {
        Self::load(files, precision, Arc::new(Solo))
    }

    /// Computes up to `rows` tokens of each sequence in one batch; returns the logits of every row, as bits.
    pub(crate) fn step(&mut self, work: &mut [(&mut Sequence, usize)]) -> Vec<Vec<Vec<u32>>> {
        let batch = self.batch(work);
        let rows = self.compute(&batch);
        let of = |part: &BatchSequence| rows[part.first_row..part.first_row + part.rows].to_vec();
        batch.sequences.iter().map(of).collect()
    }

    /// Up to `rows` tokens of each sequence, with the logits of every row wanted; they count as computed.
    pub(crate) fn batch(&mut self, work: &mut [(&mut Sequence, usize)]) -> Batch {
        let mut batch = Batch::default();
        for (sequence, rows) in work.iter_mut() {
            let rows = (*rows).min(sequence.left());
            let end = sequence.computed + rows;
            while sequence.blocks.len() < Tokens::of_len(end).blocks_ceil(BLOCK_SIZE).len() {
                // Blocks are scattered: neighbours in a table are not neighbours in the pool.
                sequence.blocks.push(BlockId(self.next_block * 37 % POOL.0));
                self.next_block += 1;
            }
            batch.sequences.push(BatchSequence {
                first_row: batch.token_ids.len(),
                rows,
                first_position: Position(sequence.computed as u32),
                blocks: sequence.blocks.clone(),
            });
            batch.token_ids.extend(&sequence.tokens[sequence.computed..end]);
            sequence.computed = end;
        }
        batch.logit_rows = (0..batch.token_ids.len()).collect();
        batch
    }

    /// The logits of a batch's wanted rows, slice by slice, as bits.
    pub(crate) fn compute(&mut self, batch: &Batch) -> Vec<Vec<u32>> {
        let hidden = self.decoder.forward(batch, &mut self.kv).expect("the batch is sound");
        let mut rows = Vec::new();
        for first in (0..hidden.len()).step_by(self.at_once) {
            let slice = first..hidden.len().min(first + self.at_once);
            let logits = on_host(self.decoder.logits(&hidden, slice).expect("the rows are there"));
            rows.extend(logits.rows().map(|row| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>()));
        }
        rows
    }

    /// The logits of every row of a sequence computed alone, in chunks.
    pub(crate) fn alone(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<u32>> {
        let mut sequence = Sequence::new(tokens);
        let mut rows = Vec::new();
        while sequence.left() > 0 {
            rows.extend(self.step(&mut [(&mut sequence, chunk)]).remove(0));
        }
        rows
    }

    /// Extends a prompt by its likeliest tokens; returns them and the logits after the prompt.
    pub(crate) fn greedy(&mut self, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<f32>) {
        let mut sequence = Sequence::new(prompt);
        let mut found = Vec::new();
        let mut after_prompt = Vec::new();
        while found.len() < count {
            let rows = self.step(&mut [(&mut sequence, prompt.len())]).remove(0);
            let last: Vec<f32> = rows[rows.len() - 1].iter().copied().map(f32::from_bits).collect();
            let best = (0..last.len()).reduce(|best, at| if last[at] > last[best] { at } else { best });
            let best = best.expect("a row has logits");
            found.push(best as u32);
            sequence.tokens.push(TokenId(best as u32));
            if after_prompt.is_empty() {
                after_prompt = last;
            }
        }
        (found, after_prompt)
    }
}

/// Runs `work` on every rank of a group of threads; returns what each returned, in order of ranks.
pub(crate) fn on_every_rank<T: Send>(
    files: &ModelFiles,
    precision: impl Into<Precision>,
    world_size: u32,
    work: impl Fn(Runner) -> T + Sync,
) -> Vec<T> {
    let precision = precision.into();
    let group = Threads::group(world_size, WATCHDOG).expect("a power of two");
    std::thread::scope(|scope| {
        let work = &work;
        let ranks: Vec<_> = group
            .into_iter()
            .map(|rank| scope.spawn(move || work(Runner::load(files, precision, Arc::new(rank)))))
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("the rank ends well")).collect()
    })
}

/// The error of all values together, relative to their size.
pub(crate) fn relative_error(found: &[f32], exact: &[f32]) -> f32 {
    let size = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    size(&mut found.iter().zip(exact).map(|(a, b)| a - b)) / size(&mut exact.iter().copied())
}

/// A folder with a random model in it.
pub(crate) fn written(model: &TinyLlama) -> (tempfile::TempDir, ModelFiles) {
    let folder = tempfile::tempdir().expect("a folder");
    model.write(folder.path()).expect("room for a model");
    let files = ModelFiles::Folder(folder.path().to_owned());
    (folder, files)
}

/// Repeatable tokens.
pub(crate) fn tokens(count: usize, seed: u32, vocabulary: u32) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % vocabulary
    };
    (0..count).map(|_| next()).collect()
}
