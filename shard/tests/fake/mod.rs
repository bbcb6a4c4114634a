//! A model without weights: its logits are a hash of the tokens its KV blocks hold for a sequence, so that a
//! wrong block, a wrong position or a missing token changes what is sampled.

pub(crate) mod device;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_proto::{Blocks, Bytes, Tokens};
use lockstep_shard::batch::{Batch, BatchSequence};
use lockstep_shard::comm::Communicator;
use lockstep_shard::engine::{Model, ModelError, NeverAsked};

pub(crate) const VOCABULARY: u32 = 64;
pub(crate) const BLOCK_SIZE: Tokens = Tokens(4);
/// Logits after a context with this token are not numbers.
pub(crate) const BROKEN_TOKEN: u32 = 62;
/// Computing this token never ends.
pub(crate) const HANG_TOKEN: u32 = 61;
/// Whether a model here has begun to compute [`HANG_TOKEN`].
pub(crate) static HANGS: AtomicBool = AtomicBool::new(false);
/// Computing this token panics.
pub(crate) const PANIC_TOKEN: u32 = 63;

pub(crate) struct FakeModel {
    comm: Arc<dyn Communicator>,
    /// (blocks × block size)
    slots: Vec<u32>,
    /// Whether logits that are no numbers are nobody's fault.
    pub(crate) may_overflow: bool,
}

impl FakeModel {
    pub(crate) fn new(comm: Arc<dyn Communicator>) -> Self {
        Self { comm, slots: Vec::new(), may_overflow: false }
    }

    fn slot(&mut self, sequence: &BatchSequence, position: usize) -> &mut u32 {
        let size = BLOCK_SIZE.len();
        &mut self.slots[sequence.blocks[position / size].index() * size + position % size]
    }

    /// The logits after every row.
    fn compute(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for sequence in &batch.sequences {
            for row in 0..sequence.rows {
                let token = batch.token_ids[sequence.first_row + row].0;
                assert!(token != PANIC_TOKEN, "on purpose");
                if token == HANG_TOKEN {
                    hang();
                }
                let position = sequence.first_position.index() + row;
                *self.slot(sequence, position) = token;
                let context: Vec<u32> =
                    (0..=position).map(|position| *self.slot(sequence, position)).collect();
                rows.push(logits(&context));
            }
        }
        rows
    }
}

impl Model for FakeModel {
    type Hidden = Vec<Vec<f32>>;
    type Logits = Vec<Vec<f32>>;
    type Asked = NeverAsked;

    fn vocabulary_size(&self) -> u32 {
        VOCABULARY
    }

    fn max_positions(&self) -> Tokens {
        Tokens(48)
    }

    fn block_size(&self) -> Tokens {
        BLOCK_SIZE
    }

    fn block_bytes(&self) -> Bytes {
        Bytes(64)
    }

    fn weight_bytes(&self) -> Bytes {
        Bytes(0)
    }

    fn arithmetic(&self) -> String {
        "hash".to_owned()
    }

    fn allocate_kv(&mut self, blocks: Blocks) -> Result<(), ModelError> {
        self.slots = vec![u32::MAX; blocks.len() * BLOCK_SIZE.len()];
        Ok(())
    }

    /// So few that ordinary steps take several slices.
    fn logit_rows_at_once(&self) -> usize {
        2
    }

    fn may_overflow(&self) -> bool {
        self.may_overflow
    }

    fn forward(&mut self, batch: &Batch, _: Option<&NeverAsked>) -> Result<Vec<Vec<f32>>, ModelError> {
        let rows = self.compute(batch);
        Ok(batch.logit_rows.iter().map(|row| rows[*row].clone()).collect())
    }

    fn logits(&self, hidden: &Vec<Vec<f32>>, rows: Range<usize>) -> Result<Vec<Vec<f32>>, ModelError> {
        let wanted = hidden[rows].to_vec();
        let mine = wanted.concat();
        let mut all = vec![0.0; mine.len() * self.comm.world_size() as usize];
        self.comm
            .all_gather(&mine, &mut all)
            .map_err(|error| ModelError::from(Box::from(error.to_string())))?;
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(
            mine.is_empty() || all.chunks(mine.len()).all(|other| bits(other) == bits(&mine)),
            "ranks differ"
        );
        Ok(wanted)
    }
}

/// What follows `context`, greedily.
pub(crate) fn continuation(context: &[u32], tokens: usize) -> Vec<u32> {
    let mut all = context.to_vec();
    for _ in 0..tokens {
        let logits = logits(&all);
        let best = (0..VOCABULARY).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]));
        all.push(best.unwrap());
    }
    all.split_off(context.len())
}

fn hang() -> ! {
    HANGS.store(true, Ordering::Release);
    loop {
        std::thread::park();
    }
}

fn logits(context: &[u32]) -> Vec<f32> {
    if context.contains(&BROKEN_TOKEN) {
        return vec![f32::NAN; VOCABULARY as usize];
    }
    let hash = context.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, token| {
        (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01B3)
    });
    let value =
        |token: u64| (hash ^ token.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    // The tokens that hang, break and panic are never sampled.
    (0..61).map(|token| (value(token) >> 40) as f32 * 1e-6).chain([-1.0; 3]).collect()
}
