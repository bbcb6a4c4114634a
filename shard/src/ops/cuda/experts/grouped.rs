//! All of a layer's experts at once: rows are routed, put beside each other by expert, multiplied and summed without the
//! host, so that a pass can be recorded and another begun behind it.
//!
//! A row's part of it has the bits it has alone, however many rows are there and wherever its expert's others stand.

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CpuStorage, CudaDevice, CustomOp2, Layout, Result, Shape, bail};

use super::{
    Bundle, CombineParameters, GroupParameters, RouteParameters, combine, group_rows, most_bundles, route,
};
use crate::ops::activation::Activation;
use crate::ops::cpu::panels::PanelShape;
use crate::ops::cuda::attention::Padding;
use crate::ops::cuda::gpu::Gpu;
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::DevicePart;
use crate::ops::cuda::product::kernels::{
    Coding, ExpertProductParameters, FEW_ROWS, ProductParameters, experts,
};
use crate::ops::cuda::rows::number_of;
use crate::ops::cuda::storage::{address, copy_of, of_slice, room, wrapped};
use crate::ops::experts::Routing;

/// Most blocks along y.
const MOST_BUNDLES: usize = u16::MAX as usize;

/// Of a layer's experts those that a rank has, and how rows come to them: input (rows, hidden), scores (rows, all experts) →
/// (rows, hidden), to be summed over ranks.
pub(crate) struct GroupedExperts {
    routing: Routing,
    groups: Groups,
    activation: Activation,
    gates: ExpertMatrices,
    downs: ExpertMatrices,
}

/// Which experts are here, and how what comes of them is summed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    /// The first of those that are here, counted over the model's.
    pub(crate) first: usize,
    /// Groups whose experts are summed in order, and whose sums are in a tree: a power of two up to 8.
    pub(crate) count: usize,
}

/// One matrix of every expert, all held alike.
pub(crate) struct ExpertMatrices {
    /// What the addresses are of.
    matrices: Vec<DevicePart>,
    coding: Coding,
    shape: PanelShape,
    /// (experts)
    weights: CudaSlice<u64>,
    /// (experts), where there are scales beside weights.
    scales: Option<CudaSlice<u64>>,
}

/// Where rows go in one pass.
struct Routed {
    /// (rows, chosen)
    chosen: CudaSlice<u32>,
    weights: CudaSlice<f32>,
    places: CudaSlice<u32>,
    /// (places)
    rows: CudaSlice<u32>,
    /// With empty ones.
    bundles: CudaSlice<Bundle>,
}

impl ExpertMatrices {
    /// # Errors
    /// When they are not held alike, or not as tensor cores read them.
    pub(crate) fn new(device: &CudaDevice, matrices: Vec<DevicePart>) -> Result<Self> {
        let how = |matrix: &DevicePart| {
            let coding = matrix.coding().filter(|coding| coding.experts().is_some())?;
            Some((coding, matrix.shape))
        };
        let first = matrices.first().and_then(how);
        let Some((coding, shape)) = first.filter(|_| matrices.iter().all(|matrix| how(matrix) == first))
        else {
            bail!(
                "compute all experts of a layer at once: they are not held alike, or not in bf16, f16, int8, int4 or fp8"
            )
        };
        let addresses: Vec<(Address, Address)> =
            matrices.iter().map(DevicePart::addresses).collect::<Result<_>>()?;
        let has_scales = addresses.iter().any(|(_, scales)| *scales != Address::NULL);
        let table = |of: fn(&(Address, Address)) -> Address| {
            copy_of(device, &addresses.iter().map(|pair| of(pair).0).collect::<Vec<u64>>())
        };
        Ok(Self {
            coding,
            shape,
            weights: table(|(weights, _)| *weights)?,
            scales: has_scales.then(|| table(|(_, scales)| *scales)).transpose()?,
            matrices,
        })
    }

    /// Multiplies the rows of every place, which `gathered` finds where they are not in the order of places.
    fn multiply(
        &self,
        (device, routed): (&CudaDevice, &Routed),
        (input, gathered): (Address, Address),
        gate: Option<Activation>,
    ) -> Result<CudaSlice<f32>> {
        let PanelShape { inputs, outputs, segments } = self.shape;
        let width = if gate.is_some() { outputs / 2 } else { outputs };
        let output = room::<f32>(device, routed.rows.len() * width)?;
        let product = ProductParameters {
            input,
            weights: Address::NULL,
            scales: Address::NULL,
            output: of_slice(&output),
            waiting: Address::NULL,
            rows: 0,
            inputs: inputs as u32,
            outputs: outputs as u32,
            segments: segments as u32,
            stride: width as u32,
            function: gate.map_or(0, |activation| 1 + number_of(activation)),
            parts: 0,
        };
        let call = ExpertProductParameters {
            product,
            bundles: of_slice(&routed.bundles),
            rows: gathered,
            weights: of_slice(&self.weights),
            scales: self.scales.as_ref().map_or(Address::NULL, of_slice),
        };
        experts(&Gpu(device), self.coding, &call, routed.bundles.len())?;
        Ok(output)
    }
}

impl GroupedExperts {
    /// `gates` have the gate's rows beside those of what it gates.
    pub(crate) fn new(
        (routing, activation): (Routing, Activation),
        groups: Groups,
        (gates, downs): (ExpertMatrices, ExpertMatrices),
    ) -> Self {
        Self { routing, groups, activation, gates, downs }
    }

    /// It in a pass, whose rows of padding go where the first row goes.
    pub(crate) fn in_pass<'a>(&'a self, padding: Option<Padding>) -> InPass<'a> {
        InPass { experts: self, padding }
    }

    fn routed(
        &self,
        device: &CudaDevice,
        (scores, rows): (Address, usize),
        padding: Option<Padding>,
    ) -> Result<Routed> {
        let here = self.gates.matrices.len();
        let choices = rows * self.routing.chosen;
        let count = most_bundles(choices, here);
        if count > MOST_BUNDLES {
            bail!(
                "compute {rows} rows that go to {} experts each: at most {MOST_BUNDLES} bundles of such rows work",
                self.routing.chosen
            )
        }
        let routed = Routed {
            chosen: room(device, choices)?,
            weights: room(device, choices)?,
            places: room(device, choices)?,
            rows: room(device, choices)?,
            bundles: room(device, count)?,
        };
        let (chosen, weights) = (of_slice(&routed.chosen), of_slice(&routed.weights));
        let (slots, padding) = padding.map_or((Address::NULL, 0), |rows| (rows.slots, rows.slot));
        let call = RouteParameters {
            scores,
            slots,
            chosen,
            weights,
            padding,
            ..RouteParameters::of(self.routing)
        };
        route(&Gpu(device), &call, rows)?;
        let call = GroupParameters {
            chosen,
            rows: of_slice(&routed.rows),
            places: of_slice(&routed.places),
            bundles: of_slice(&routed.bundles),
            choices: choices as u32,
            of_a_row: self.routing.chosen as u32,
            first: self.groups.first as u32,
            experts: here as u32,
            bundle_rows: FEW_ROWS as u32,
            most_bundles: count as u32,
        };
        group_rows(&Gpu(device), &call)?;
        Ok(routed)
    }
}

/// Experts and what they are to know of the pass.
pub(crate) struct InPass<'a> {
    experts: &'a GroupedExperts,
    padding: Option<Padding>,
}

impl CustomOp2 for InPass<'_> {
    fn name(&self) -> &'static str {
        "grouped_experts"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("multiply rows in main memory: the experts are on a device")
    }

    fn cuda_fwd(
        &self,
        input: &CudaStorage,
        input_layout: &Layout,
        scores: &CudaStorage,
        scores_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let experts = self.experts;
        let (rows, hidden) = input_layout.shape().dims2()?;
        let (width, of_experts) = (experts.downs.shape.outputs, (rows, experts.routing.experts));
        if hidden != experts.gates.shape.inputs || scores_layout.shape().dims2()? != of_experts {
            let (input, scores) = (input_layout.shape(), scores_layout.shape());
            bail!(
                "compute experts of {hidden} elements: rows are of shape {input:?}, their scores of {scores:?}"
            )
        }
        let device = &input.device;
        let scores = (address::<f32>(scores, scores_layout)?, rows);
        let routed = experts.routed(device, scores, self.padding)?;
        let on = (device, &routed);
        let from = (address::<f32>(input, input_layout)?, of_slice(&routed.rows));
        let inner = experts.gates.multiply(on, from, Some(experts.activation))?;
        let outputs = experts.downs.multiply(on, (of_slice(&inner), Address::NULL), None)?;
        let sums = room::<f32>(device, rows * width)?;
        let call = CombineParameters {
            outputs: of_slice(&outputs),
            chosen: of_slice(&routed.chosen),
            weights: of_slice(&routed.weights),
            places: of_slice(&routed.places),
            sums: of_slice(&sums),
            elements: (rows * width) as u64,
            width: width as u32,
            count: experts.routing.chosen as u32,
            first: experts.groups.first as u32,
            together: (experts.gates.matrices.len() / experts.groups.count.max(1)) as u32,
            groups: experts.groups.count as u32,
        };
        combine(&Gpu(device), &call)?;
        Ok((wrapped(sums, device), Shape::from((rows, width))))
    }
}
