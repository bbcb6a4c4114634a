//! Experts on a device: where rows go among them, and how what comes of them comes back.
//!
//! Where a layer's experts are held alike they are all computed [at once](grouped), and the host knows of no row where it
//! went. Otherwise the host decides, and has them computed one by one.

pub(crate) mod grouped;
pub(crate) mod one_by_one;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;

use super::kernel::{Address, Executor, Grid, Kernel, Parameters, launch};
use super::product::kernels::FEW_ROWS;
use crate::ops::experts::{Routing, RoutingWeights};

/// Threads of a warp.
const WARP: usize = 32;
/// Threads of a block, at most.
const MOST_THREADS: usize = 256;

/// Rows of one expert that are computed together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// Among those that are here.
    pub(crate) expert: u32,
    /// Place of the first.
    pub(crate) first: u32,
    /// 0 where nothing is to be done.
    pub(crate) rows: u32,
}

// SAFETY: three plain numbers.
unsafe impl DeviceRepr for Bundle {}

#[repr(C)]
pub(crate) struct RouteParameters {
    pub(crate) scores: Address,
    pub(crate) slots: Address,
    pub(crate) chosen: Address,
    pub(crate) weights: Address,
    pub(crate) experts: u32,
    pub(crate) count: u32,
    pub(crate) of_chosen: u32,
    pub(crate) padding: u32,
}

// SAFETY: as in experts.cu.
unsafe impl Parameters for RouteParameters {}

impl RouteParameters {
    /// Without addresses.
    pub(crate) fn of(routing: Routing) -> Self {
        Self {
            scores: Address::NULL,
            slots: Address::NULL,
            chosen: Address::NULL,
            weights: Address::NULL,
            experts: routing.experts as u32,
            count: routing.chosen as u32,
            of_chosen: (routing.weights == RoutingWeights::SoftmaxOfChosen).into(),
            padding: 0,
        }
    }
}

/// Chooses the experts of `rows` rows, and weighs them.
pub(crate) fn route(on: &dyn Executor, parameters: &RouteParameters, rows: usize) -> Result<()> {
    let experts = parameters.experts as usize;
    let threads = experts.next_multiple_of(WARP).clamp(WARP, MOST_THREADS);
    let shared_bytes = (experts * (size_of::<f32>() + size_of::<u32>())) as u32;
    launch(on, Kernel::Route, parameters, Grid { shared_bytes, ..Grid::along_x(rows, threads as u32) })
}

#[repr(C)]
pub(crate) struct GroupParameters {
    pub(crate) chosen: Address,
    pub(crate) rows: Address,
    pub(crate) places: Address,
    pub(crate) bundles: Address,
    pub(crate) choices: u32,
    pub(crate) of_a_row: u32,
    pub(crate) first: u32,
    pub(crate) experts: u32,
    pub(crate) bundle_rows: u32,
    pub(crate) most_bundles: u32,
}

// SAFETY: as in experts.cu.
unsafe impl Parameters for GroupParameters {}

/// Gives every choice of an expert that is here a place beside that expert's others.
pub(crate) fn group_rows(on: &dyn Executor, parameters: &GroupParameters) -> Result<()> {
    let experts = parameters.experts as usize;
    let threads = (parameters.choices as usize).next_multiple_of(WARP).clamp(WARP, MOST_THREADS);
    let shared_bytes = (experts * size_of::<u32>()) as u32;
    launch(
        on,
        Kernel::GroupRows,
        parameters,
        Grid { shared_bytes, ..Grid::along_x(experts, threads as u32) },
    )
}

/// The most bundles that so many choices among so many experts make.
pub(crate) fn most_bundles(choices: usize, experts: usize) -> usize {
    choices.min(experts + choices.div_ceil(FEW_ROWS))
}

#[repr(C)]
pub(crate) struct CombineParameters {
    pub(crate) outputs: Address,
    pub(crate) chosen: Address,
    pub(crate) weights: Address,
    pub(crate) places: Address,
    pub(crate) sums: Address,
    pub(crate) elements: u64,
    pub(crate) width: u32,
    pub(crate) count: u32,
    pub(crate) first: u32,
    pub(crate) together: u32,
    pub(crate) groups: u32,
}

// SAFETY: as in experts.cu.
unsafe impl Parameters for CombineParameters {}

/// Sums the weighted outputs of every row's experts that are here.
pub(crate) fn combine(on: &dyn Executor, parameters: &CombineParameters) -> Result<()> {
    launch(on, Kernel::Combine, parameters, Grid::of_elements(parameters.elements as usize))
}
