//! How a model would be split over ranks and what each would hold, told from its config.json alone.

use std::fmt;
use std::ops::Range;

use lockstep_proto::{Bytes, Rank, Tokens};
use serde_json::{Value, json};

use crate::batch::BLOCK_SIZE;
use crate::decoder::split::Slice;
use crate::decoder::{LayerMlp, ModelSpec, Split, SplitError};
use crate::device::DeviceKind;
use crate::kv::KvCacheDtype;
use crate::plan::MemoryPlan;
use crate::precision::Precision;

/// A model split over the ranks of a group.
#[derive(Clone, Debug)]
pub struct Forecast {
    spec: ModelSpec,
    precision: Precision,
    ranks: Vec<RankForecast>,
}

#[derive(Clone, Debug)]
struct RankForecast {
    rank: Rank,
    slice: Slice,
    memory: MemoryPlan,
}

impl Forecast {
    /// Splits the model over `world_size` ranks.
    ///
    /// # Errors
    /// When it cannot be split over so many.
    pub fn new(
        spec: ModelSpec,
        precision: impl Into<Precision>,
        world_size: u32,
    ) -> Result<Self, SplitError> {
        let precision = precision.into();
        let rank = |rank| {
            let split = Split { rank, world_size };
            let (slice, memory) =
                (Slice::of(&spec, split)?, MemoryPlan::of(&spec, (precision, DeviceKind::Cpu), split)?);
            Ok(RankForecast { rank, slice, memory })
        };
        // Zero ranks are refused like any number that does not divide the model.
        let ranks = (0..world_size.max(1)).map(Rank).map(rank).collect::<Result<_, _>>()?;
        Ok(Self { spec, precision, ranks })
    }

    /// The same with keys and values held so.
    #[must_use]
    pub fn with_kv_cache(mut self, held: KvCacheDtype) -> Self {
        for rank in &mut self.ranks {
            rank.memory = rank.memory.with_kv_cache(held);
        }
        self
    }

    /// Bytes of weights over all ranks.
    pub fn weights(&self) -> Bytes {
        self.ranks.iter().fold(Bytes(0), |sum, rank| sum + rank.memory.weights)
    }

    /// Bytes one context of `tokens` takes over all ranks.
    pub fn kv_for(&self, tokens: Tokens) -> Bytes {
        let blocks = tokens.blocks_ceil(BLOCK_SIZE);
        self.ranks.iter().fold(Bytes(0), |sum, rank| sum + rank.memory.kv_for(blocks))
    }
}

impl Forecast {
    /// The same for programs: sizes in bytes, and ranges as their first and the one behind their last.
    pub fn to_json(&self) -> Value {
        let shape = self.spec.shape();
        let context = self.spec.max_positions();
        json!({
            "family": self.spec.family(),
            "layers": shape.layers,
            "hidden_size": shape.hidden,
            "vocabulary": shape.vocabulary,
            "precision": self.precision.to_string(),
            "query_heads": shape.query_heads,
            "kv_heads": shape.kv_heads,
            "head_width": shape.head_width,
            "mlp": self.mlp(),
            "context_tokens": context.0,
            "context_bytes": self.kv_for(context).0,
            "ranks_at_most": self.spec.max_ranks(),
            "ranks": self.ranks.iter().map(RankForecast::to_json).collect::<Vec<_>>(),
            "weights_bytes": self.weights().0,
        })
    }
}

impl RankForecast {
    fn to_json(&self) -> Value {
        let Self { rank, slice, memory } = self;
        let range = |range: &Range<usize>| [range.start, range.end];
        json!({
            "rank": rank.0,
            "query_heads": range(&slice.query_heads),
            "kv_heads": range(&slice.kv_heads),
            "intermediate": range(&slice.intermediate),
            "experts": range(&slice.experts),
            "vocabulary": range(&slice.vocabulary),
            "weights_bytes": memory.weights.0,
            "kv_block_bytes": memory.block.0,
            "kv_block_tokens": BLOCK_SIZE.0,
        })
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = self.spec.shape();
        writeln!(f, "family    {}", self.spec.family())?;
        writeln!(
            f,
            "layers    {} of hidden size {}, vocabulary {}, {}",
            shape.layers, shape.hidden, shape.vocabulary, self.precision
        )?;
        writeln!(
            f,
            "attention {} query heads, {} KV heads of {} elements{}",
            shape.query_heads,
            shape.kv_heads,
            shape.head_width,
            self.windows()
        )?;
        writeln!(f, "MLP       {}", self.mlp())?;
        let context = self.spec.max_positions();
        writeln!(f, "context   {context} tokens, whose KV cache takes {}", self.kv_for(context))?;
        writeln!(f, "ranks     {} of at most {}", self.ranks.len(), self.spec.max_ranks())?;
        for RankForecast { rank, slice, memory } in &self.ranks {
            let mut parts = vec![
                format!("query heads {}", span(&slice.query_heads)),
                format!("KV heads {}", span(&slice.kv_heads)),
            ];
            if self.spec.has_dense_layers() {
                parts.push(format!("MLP {}", span(&slice.intermediate)));
            }
            if shape.experts.is_some() {
                parts.push(format!("experts {}", span(&slice.experts)));
            }
            parts.push(format!("vocabulary {}", span(&slice.vocabulary)));
            writeln!(f, "rank {rank}    {}", parts.join(", "))?;
            writeln!(
                f,
                "          weights {}, {} for a KV block of {BLOCK_SIZE} tokens",
                memory.weights, memory.block
            )?;
        }
        write!(f, "weights   {} over all ranks", self.weights())
    }
}

impl Forecast {
    fn windows(&self) -> String {
        let sliding: Vec<Tokens> = self.spec.layers().iter().filter_map(|layer| layer.window).collect();
        match sliding.first() {
            None => String::new(),
            Some(window) if sliding.len() == self.spec.layers().len() => format!(", a window of {window}"),
            Some(window) => format!(", a window of {window} in {} layers", sliding.len()),
        }
    }

    fn mlp(&self) -> String {
        let shape = self.spec.shape();
        let dense = format!("{} wide", shape.intermediate);
        let Some(experts) = shape.experts else { return dense };
        let with = self.spec.layers().iter().filter(|layer| layer.mlp == LayerMlp::Experts).count();
        let several = format!(
            "{} experts {} wide in {with} layers, {} for each token",
            experts.count, experts.intermediate, experts.chosen
        );
        if self.spec.has_dense_layers() { format!("{several}; {dense} in the others") } else { several }
    }
}

/// A range as people write it, both ends included.
fn span(range: &Range<usize>) -> String {
    match range.len() {
        0 => "none".to_owned(),
        1 => range.start.to_string(),
        _ => format!("{}-{}", range.start, range.end - 1),
    }
}
