//! The blocks of every sequence, as the steps that were sent have it: none is written by one sequence while another
//! that is being computed has it.

use std::collections::{BTreeMap, VecDeque};

use lockstep_proto::{BlockId, SequenceId, Step, Tokens, Work};

pub(super) struct Tables {
    block_size: Tokens,
    blocks: BTreeMap<SequenceId, Vec<BlockId>>,
}

impl Tables {
    /// Of a group that has no sequence yet.
    pub(super) fn new(block_size: Tokens) -> Self {
        Self { block_size, blocks: BTreeMap::new() }
    }

    /// A step is sent, while the shards have others.
    pub(super) fn on_step(&mut self, step: &Step, in_flight: &VecDeque<Step>) {
        // What is released with this step the others still have.
        let held: Vec<_> = in_flight
            .iter()
            .flat_map(|step| &step.work)
            .filter_map(|work| Some((work.sequence, self.blocks.get(&work.sequence)?.clone())))
            .collect();
        for released in &step.releases {
            self.blocks.remove(released);
        }
        for work in &step.work {
            self.blocks.entry(work.sequence).or_default().extend(&work.new_blocks);
            for block in self.written(work) {
                let other = held.iter().find(|(id, blocks)| *id != work.sequence && blocks.contains(block));
                assert_eq!(other, None, "block {block} is given to {} while it is computed", work.sequence);
            }
        }
    }

    fn written(&self, work: &Work) -> &[BlockId] {
        let first = work.first_position.0 / self.block_size.0;
        let end = Tokens(work.first_position.0 + work.tokens.count().0).blocks_ceil(self.block_size);
        &self.blocks[&work.sequence][first as usize..end.len()]
    }
}
