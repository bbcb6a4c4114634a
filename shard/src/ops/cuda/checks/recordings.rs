//! Decode steps that are recorded and replayed, against the same steps run kernel by kernel.

use std::sync::Arc;

use lockstep_models::ModelFiles;
use lockstep_process::reports::Progress;
use lockstep_proto::{BlockId, Blocks, Position, TokenId, Tokens};

use super::devices::{Checked, broken};
use super::{Checks, Error, F32, Numbers};
use crate::batch::{BLOCK_SIZE, Batch, BatchSequence};
use crate::comm::Solo;
use crate::decoder::{Decoder, Dtype, ModelSpec, Precision, Quantize};
use crate::device::Target;
use crate::kv::{KvCacheDtype, KvPool};
use crate::testing::TinyLlama;

const POOL: Blocks = Blocks(192);

/// Tokens of each sequence before it decodes: within a block, at its end, and shortly before contexts are another size.
const PROMPTS: [usize; 9] = [3, 16, 250, 505, 31, 1, 90, 127, 64];

/// Which sequences decode, and for how many steps: they come and go, in all orders.
const TURNS: [(&[usize], usize); 8] = [
    (&[0], 5),
    (&[2], 9),
    (&[3, 0, 1], 9),
    (&[0, 1, 2, 4, 5], 4),
    (&[8, 7, 6, 5, 4, 3, 2, 1, 0], 4),
    (&[6], 3),
    (&[1, 6, 3], 4),
    (&[0, 1], 4),
];

pub(super) fn check(checks: &mut Checks<'_>, (fast, exact): (&Target, &Target)) {
    let model = TinyLlama { max_positions: 2048, ..TinyLlama::new(11) };
    for (dtype, held) in [
        (Dtype::Float32, KvCacheDtype::Auto),
        (Dtype::Bfloat16, KvCacheDtype::Auto),
        (Dtype::Float16, KvCacheDtype::Auto),
        (Dtype::Bfloat16, KvCacheDtype::Int8),
    ] {
        let name = format!("decode steps replayed and run, exact, {dtype}, KV {held}");
        checks.check_or_skip(name, || replayed_and_run(exact, &model, (dtype, held)));
    }
    checks.check_or_skip("decode steps replayed and run, fast, float32, KV auto", || {
        replayed_and_run(fast, &model, (Dtype::Float32, KvCacheDtype::Auto))
    });
    let model = TinyLlama { experts: Some(8), ..model };
    checks.check_or_skip("decode steps replayed and run, exact, bfloat16, with experts", || {
        replayed_and_run(exact, &model, (Dtype::Bfloat16, KvCacheDtype::Auto))
    });
}

/// A decoder and what its sequences have.
struct Run {
    decoder: Decoder,
    kv: KvPool,
    sequences: Vec<(usize, Vec<BlockId>)>,
    next_block: u32,
    numbers: Numbers,
}

impl Run {
    fn new(files: &ModelFiles, target: &Target, (dtype, held): (Dtype, KvCacheDtype)) -> Checked<Self> {
        let spec = ModelSpec::read(files).map_err(broken)?;
        let of = (&spec, Precision { dtype, quantize: Quantize::AsStored });
        let decoder = Decoder::load_onto((target, Arc::new(Solo)), files, of, Progress::default());
        let decoder = decoder.map_err(broken)?.with_kv_cache(held);
        let kv = decoder.allocate_kv(POOL).map_err(broken)?;
        let sequences = vec![(0, Vec::new()); PROMPTS.len()];
        Ok(Self { decoder, kv, sequences, next_block: 0, numbers: Numbers::new(5) })
    }

    /// The logits of so many rows more of some sequences.
    fn step(&mut self, which: &[usize], rows: usize) -> Checked<Vec<f32>> {
        let mut batch = Batch::default();
        for index in which {
            let (length, blocks) = &mut self.sequences[*index];
            let needed = Tokens::of_len(*length + rows).blocks_ceil(BLOCK_SIZE).len();
            while blocks.len() < needed {
                // Blocks are scattered, and tables grow where they did not when a step was recorded.
                blocks.push(BlockId(self.next_block * 37 % POOL.0));
                self.next_block += 1;
            }
            batch.sequences.push(BatchSequence {
                first_row: batch.token_ids.len(),
                rows,
                first_position: Position(*length as u32),
                blocks: blocks.clone(),
            });
            let vocabulary = self.decoder.spec().vocabulary_size();
            batch.token_ids.extend((0..rows).map(|_| TokenId(self.numbers.below(vocabulary))));
            *length += rows;
        }
        batch.logit_rows = (0..batch.token_ids.len()).collect();
        let hidden = self.decoder.forward(&batch, &mut self.kv).map_err(broken)?;
        let logits = self.decoder.logits(&hidden, 0..hidden.len());
        let logits = logits.and_then(|logits| logits.on_host()).map_err(broken)?;
        Ok(logits.rows().flatten().copied().collect())
    }
}

fn replayed_and_run(
    target: &Target,
    model: &TinyLlama,
    (dtype, held): (Dtype, KvCacheDtype),
) -> Checked<Error> {
    let folder = super::models::Folder::of(model)?;
    let files = folder.files();
    let recording = Target { records: true, ..target.clone() };
    let mut runs = [
        Run::new(&files, &recording, (dtype, held))?,
        Run::new(&files, &Target { records: false, ..target.clone() }, (dtype, held))?,
    ];
    for (index, prompt) in PROMPTS.into_iter().enumerate() {
        for run in &mut runs {
            run.step(&[index], prompt)?;
        }
    }
    let mut error = Error::unless(true);
    for (which, steps) in TURNS {
        for _ in 0..steps {
            let [replayed, run] = &mut runs;
            let (found, expected) = (replayed.step(which, 1)?, run.step(which, 1)?);
            // Steps that are recorded have rows of padding, and fast sums another order with each number of rows.
            error = error.max(if target.exact {
                Error::of_bits(&found, &expected)
            } else {
                Error::of(&found, &expected, 10.0 * F32)
            });
        }
    }
    let [replayed, run] = &runs;
    // Of each size and length of context the first step is run, all others are replayed.
    let is_as_meant = replayed.kv.replays() >= 25 && run.kv.replays() == 0;
    Ok(error.max(Error::unless(is_as_meant)))
}
