//! Which rows of which tensors make up a rank's matrices: what loading packs, and what the memory plan counts.

use std::ops::Range;

use super::choices::{Head, LayerMlp, MlpKind, QkvProjection};
use super::names;
use super::spec::ModelSpec;
use super::split::Slice;
use crate::ops::cpu::panels::PanelShape;
use crate::ops::matrix::Packing;
use crate::plan::Products;
use crate::precision::Precision;

/// Rows of a module's weight, and of its bias.
pub(crate) struct Part {
    pub(crate) module: String,
    pub(crate) rows: Range<usize>,
}

/// Rows of several modules, one below the other, as one product.
pub(crate) struct Stack {
    /// Of the product. Rows after those of the parts are zero.
    pub(crate) shape: PanelShape,
    pub(crate) parts: Vec<Part>,
    /// What this rank has of the rows.
    pub(crate) columns: Range<usize>,
    /// Elements of a whole row.
    row: usize,
    weights: Weights,
}

/// Whether a stack's weights may be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    Any,
    Elements,
}

/// Neighbouring parts of a stack that are held alike.
pub(crate) struct Run {
    pub(crate) packing: Packing,
    pub(crate) shape: PanelShape,
    pub(crate) parts: Range<usize>,
}

/// A rank's stacks.
pub(crate) struct Stacks<'a> {
    spec: &'a ModelSpec,
    slice: &'a Slice,
    products: Products,
}

impl<'a> Stacks<'a> {
    pub(crate) fn new(spec: &'a ModelSpec, slice: &'a Slice) -> Self {
        Self { spec, slice, products: Products::of(spec, slice) }
    }

    /// What every matrix of the rank is held in.
    pub(crate) fn runs(&self, precision: Precision) -> impl Iterator<Item = Run> {
        let layers = self.spec.layers.iter().enumerate();
        let stacks = layers.flat_map(|(layer, choices)| {
            let mut stacks = vec![self.qkv(layer), self.output(layer)];
            match choices.mlp {
                LayerMlp::Dense => stacks.extend([self.inner(layer), self.down(layer)]),
                LayerMlp::Experts => {
                    stacks.push(self.router(layer));
                    stacks.extend(self.slice.experts.clone().flat_map(|expert| self.expert(layer, expert)));
                }
            }
            stacks
        });
        let head = std::iter::once_with(|| self.head());
        stacks.chain(head).flat_map(move |stack| stack.runs(self.spec, precision))
    }

    pub(crate) fn qkv(&self, layer: usize) -> Stack {
        let (shape, slice) = (&self.spec.shape, self.slice);
        let (queries, keys) = (slice.elements(&slice.query_heads), slice.elements(&slice.kv_heads));
        let part = |name: &str, rows| Part { module: names::of_layer(layer, name), rows };
        let parts = match self.spec.choices.attention.qkv {
            QkvProjection::Separate => {
                [part(names::QUERY, queries), part(names::KEY, keys.clone()), part(names::VALUE, keys)]
            }
            QkvProjection::Fused => {
                let (all_queries, all_keys) =
                    (shape.query_heads * shape.head_width, shape.kv_heads * shape.head_width);
                let after = |first: usize| first + keys.start..first + keys.end;
                [queries.clone(), after(all_queries), after(all_queries + all_keys)]
                    .map(|rows| part(names::QKV, rows))
            }
        };
        self.whole(self.products.qkv, parts.into())
    }

    pub(crate) fn output(&self, layer: usize) -> Stack {
        let shape = &self.spec.shape;
        let columns = self.slice.elements(&self.slice.query_heads);
        let row = shape.query_heads * shape.head_width;
        self.summed((layer, names::ATTENTION_OUTPUT), self.products.output, (columns, row))
    }

    /// What comes before the activation.
    pub(crate) fn inner(&self, layer: usize) -> Stack {
        let kind = self.spec.choices.mlp.kind;
        let columns = &self.slice.intermediate;
        let stored = match kind {
            MlpKind::Gated | MlpKind::Plain => [columns.clone(), columns.clone()],
            MlpKind::GatedFused => {
                let up = self.spec.shape.intermediate;
                [columns.clone(), up + columns.start..up + columns.end]
            }
        };
        let names = names::mlp(kind).0.iter().cycle().take(kind.inner_products());
        let part =
            |(name, rows): (&&str, Range<usize>)| Part { module: names::of_layer(layer, name), rows };
        self.whole(self.products.inner, names.zip(stored).map(part).collect())
    }

    pub(crate) fn down(&self, layer: usize) -> Stack {
        let after = names::mlp(self.spec.choices.mlp.kind).1;
        let columns = self.slice.intermediate.clone();
        self.summed((layer, after), self.products.down, (columns, self.spec.shape.intermediate))
    }

    pub(crate) fn router(&self, layer: usize) -> Stack {
        let module = names::of_layer(layer, names::router(self.spec.choices.mlp.experts.names));
        let rows = 0..self.products.router.outputs;
        let router = self.whole(self.products.router, vec![Part { module, rows }]);
        Stack { weights: Weights::Elements, ..router }
    }

    /// Gate and up of an expert, and down.
    pub(crate) fn expert(&self, layer: usize, expert: usize) -> [Stack; 2] {
        let [gate, up, down] = names::expert(self.spec.choices.mlp.experts.names, expert)
            .map(|name| names::of_layer(layer, &name));
        let (gate_up, product) = (self.products.expert_gate_up, self.products.expert_down);
        let parts = [gate, up].map(|module| Part { module, rows: 0..product.inputs });
        let down = vec![Part { module: down, rows: 0..product.outputs }];
        let columns = 0..product.inputs;
        let (row, weights) = (product.inputs, Weights::Any);
        [self.whole(gate_up, parts.into()), Stack { shape: product, parts: down, columns, row, weights }]
    }

    pub(crate) fn head(&self) -> Stack {
        let module = match self.spec.choices.head {
            Head::Tied => names::EMBEDDING,
            Head::Separate => names::HEAD,
        };
        let parts = vec![Part { module: module.to_owned(), rows: self.slice.vocabulary.clone() }];
        self.whole(self.products.head, parts)
    }

    /// Whether the head's rows are the embedding table: they are the same, all here and not quantized.
    pub(crate) fn head_is_table(&self, precision: Precision) -> bool {
        let is_here = self.slice.vocabulary.len() == self.spec.shape.vocabulary;
        let is_plain = |run: &Run| matches!(run.packing, Packing::Elements(_));
        self.spec.choices.head == Head::Tied
            && is_here
            && self.head().runs(self.spec, precision).iter().all(is_plain)
    }

    /// Rows of this rank, all of them of the whole hidden size.
    fn whole(&self, shape: PanelShape, parts: Vec<Part>) -> Stack {
        let row = self.spec.shape.hidden;
        Stack { shape, parts, columns: 0..row, row, weights: Weights::Any }
    }

    /// All rows, some columns of each: to be summed over ranks.
    fn summed(
        &self,
        (layer, name): (usize, &str),
        shape: PanelShape,
        (columns, row): (Range<usize>, usize),
    ) -> Stack {
        let part = Part { module: names::of_layer(layer, name), rows: 0..self.spec.shape.hidden };
        Stack { shape, parts: vec![part], columns, row, weights: Weights::Any }
    }
}

impl Stack {
    /// How the stack is held, front to back. It does not depend on how many ranks there are.
    pub(crate) fn runs(&self, spec: &ModelSpec, precision: Precision) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            let packing = self.packing(part, spec, precision);
            match runs.last_mut() {
                Some(run) if run.packing == packing => {
                    run.parts.end += 1;
                    run.shape.outputs += part.rows.len();
                }
                Some(_) | None => runs.push(Run {
                    packing,
                    shape: PanelShape { outputs: part.rows.len(), ..self.shape },
                    parts: index..index + 1,
                }),
            }
        }
        let outputs: usize = runs.iter().map(|run| run.shape.outputs).sum();
        if let Some(last) = runs.last_mut() {
            last.shape.outputs += self.shape.outputs - outputs;
        }
        runs
    }

    fn packing(&self, part: &Part, spec: &ModelSpec, precision: Precision) -> Packing {
        match self.weights {
            Weights::Elements => Packing::Elements(precision.dtype),
            Weights::Any => {
                let stored = spec.stored.get(&names::weight(&part.module)).copied();
                precision.packing((self.shape, self.row), stored)
            }
        }
    }
}
