//! Prints how fast this machine prefills and decodes a model: `speed [FOLDER|demo] [THREADS]
//! [as-stored|none|int8|int4]`. Figures are context for people, not a verdict.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use lockstep_models::ModelFiles;
use lockstep_proto::{BlockId, Blocks, Position, TokenId, Tokens};
use lockstep_shard::batch::{BLOCK_SIZE, Batch, BatchSequence};
use lockstep_shard::comm::Solo;
use lockstep_shard::decoder::{Decoder, Dtype, ModelSpec, Precision, Quantize};
use lockstep_shard::kv::KvPool;

/// Tokens prefilled at once.
const PROMPT: u32 = 512;
/// Steps a figure is taken over.
const STEPS: u32 = 48;
/// Sequences decoded together.
const BATCHES: [u32; 4] = [1, 4, 8, 32];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let files = ModelFiles::from_argument(&arguments.next().unwrap_or_else(|| "demo".to_owned()));
    let threads = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let quantize =
        arguments.next().map_or(Ok(Quantize::default()), |text| Quantize::from_str(&text, true))?;
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let spec = ModelSpec::read(&files)?;
    let dtypes: &[Dtype] = match quantize {
        Quantize::AsStored | Quantize::None => &[Dtype::Bfloat16, Dtype::Float32],
        Quantize::Int8 | Quantize::Int4 => &[Dtype::Bfloat16],
    };
    for dtype in dtypes.iter().copied() {
        let begun = Instant::now();
        let decoder = Decoder::load(&files, &spec, Precision { dtype, quantize }, Arc::new(Solo))?;
        let loaded = begun.elapsed();
        println!("{files}, {}, {threads} threads, loaded in {loaded:.1?}", decoder.arithmetic());
        println!("  weights {}, KV block {}", decoder.weight_bytes(), decoder.block_bytes());
        let blocks = BATCHES[3] * Tokens(PROMPT + STEPS).blocks_ceil(BLOCK_SIZE).0;
        let mut kv = decoder.allocate_kv(Blocks(blocks))?;
        prefill(&decoder, &mut kv)?;
        for sequences in BATCHES {
            decode(&decoder, &mut kv, sequences)?;
        }
    }
    Ok(())
}

fn prefill(decoder: &Decoder, kv: &mut KvPool) -> Result<(), Box<dyn Error>> {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        compute(decoder, kv, &batch(decoder, 1, PROMPT, 0))?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    println!("  prefill {PROMPT}: {:.0} tokens/s", f64::from(PROMPT) / best);
    Ok(())
}

fn decode(decoder: &Decoder, kv: &mut KvPool, sequences: u32) -> Result<(), Box<dyn Error>> {
    compute(decoder, kv, &batch(decoder, sequences, PROMPT, 0))?;
    let mut best = f64::MAX;
    for step in 0..STEPS {
        let begun = Instant::now();
        compute(decoder, kv, &batch(decoder, sequences, 1, PROMPT + step))?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    let each = 1e6 * best;
    println!("  decode {sequences}: {:.0} tokens/s ({each:.0} us a step)", f64::from(sequences) / best);
    Ok(())
}

/// The logits of a batch, slice by slice.
fn compute(decoder: &Decoder, kv: &mut KvPool, batch: &Batch) -> Result<(), Box<dyn Error>> {
    let hidden = decoder.forward(batch, kv)?;
    let at_once = decoder.logit_rows_at_once();
    for first in (0..hidden.len()).step_by(at_once) {
        decoder.logits(&hidden, first..hidden.len().min(first + at_once))?;
    }
    Ok(())
}

/// `rows` tokens of each of `sequences` from `position` on, and the logits of each one's last.
fn batch(decoder: &Decoder, sequences: u32, rows: u32, position: u32) -> Batch {
    let table = Tokens(PROMPT + STEPS).blocks_ceil(BLOCK_SIZE).0;
    let vocabulary = decoder.spec().vocabulary_size();
    let mut batch = Batch::default();
    for sequence in 0..sequences {
        batch.sequences.push(BatchSequence {
            first_row: batch.token_ids.len(),
            rows: Tokens(rows).len(),
            first_position: Position(position),
            blocks: (sequence * table..(sequence + 1) * table).map(BlockId).collect(),
        });
        batch
            .token_ids
            .extend((0..rows).map(|row| TokenId((sequence * 31 + row * 7 + position) % vocabulary)));
        batch.logit_rows.push(batch.token_ids.len() - 1);
    }
    batch
}
