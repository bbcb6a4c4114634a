//! Names of things, each its own type so that one cannot stand in for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One sequence of tokens being computed: one choice of one request. Unique for a router's life.
    SequenceId(u64)
);
id!(
    /// An entry of the model's vocabulary.
    TokenId(u32)
);
id!(
    /// One block of the paged KV cache; the same number on every rank.
    BlockId(u32)
);
id!(
    /// A shard's place in its group, from 0.
    Rank(u32)
);
id!(
    /// A replica's place among those of its router, from 0: one group of ranks, whatever its incarnation.
    ReplicaId(u32)
);
id!(
    /// Counts the steps of one `Run` stream.
    StepId(u64)
);
id!(
    /// Counts incarnations of a rank group. An answer of an old epoch is dropped.
    Epoch(u64)
);

impl TokenId {
    /// The id as an index into a row of logits.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl ReplicaId {
    /// The id as an index into a list of replicas.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl BlockId {
    /// The id as an index into a table of blocks.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
