//! Experts: where rows go, how they are put beside each other, products of all at once, and how outputs come back.

use candle_core::{Device, Result, Tensor};

use super::products::{Held, Reading, Rows};
use super::quantized::quantized;
use super::{Checks, EXACT, Error, F32, Machine, Numbers};
use crate::dtype::Dtype;
use crate::ops::activation::Activation;
use crate::ops::cpu::panels::PanelShape;
use crate::ops::cuda::experts::{
    Bundle, CombineParameters, GroupParameters, RouteParameters, combine, group_rows, most_bundles, route,
};
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::kernels::{ExpertProductParameters, FEW_ROWS, ProductParameters, experts};
use crate::ops::cuda::product::tiles::TileRows;
use crate::ops::cuda::rows::number_of;
use crate::ops::experts::{AddRows, Routing, RoutingWeights, route as twin};
use crate::ops::tiles::TileFormat;

/// What is nowhere.
const NONE: u32 = u32::MAX;

/// How experts' weights are held.
#[derive(Clone, Copy, Debug)]
enum Weights {
    Rows(Dtype),
    Quantized(TileFormat),
}

/// Where rows of the input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inputs {
    Gathered,
    InPlaces,
}

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    for (experts, chosen, weights) in [
        (8, 2, RoutingWeights::SoftmaxOfChosen),
        (128, 8, RoutingWeights::SoftmaxOfChosen),
        (60, 4, RoutingWeights::SoftmaxOfAll),
        (300, 3, RoutingWeights::SoftmaxOfAll),
        (5, 5, RoutingWeights::SoftmaxOfChosen),
    ] {
        let routing = Routing { experts, chosen, weights };
        checks.check(format!("rows to {chosen} of {experts} experts, {weights:?}"), || {
            routed(machine, routing)
        });
        machine.clear();
    }
    checks.check("rows of padding to the first row's experts", || padded(machine));
    machine.clear();
    for (rows, of_a_row, here) in [(1, 2, 0..8), (70, 3, 4..12), (200, 1, 0..2), (9, 4, 33..70)] {
        let name = format!("{rows} rows of {of_a_row} experts each put beside others, experts {here:?}");
        checks.check(name, || grouped(machine, (rows, of_a_row), here.clone()));
        machine.clear();
    }
    for weights in [
        Weights::Rows(Dtype::Bfloat16),
        Weights::Rows(Dtype::Float16),
        Weights::Quantized(TileFormat::Int8),
        Weights::Quantized(TileFormat::Int4),
        Weights::Quantized(TileFormat::Float8),
    ] {
        // As gates and as downs; lengths that no 16 bytes divide.
        for (inputs, inputs_are, function) in [
            (160, Inputs::Gathered, None),
            (160, Inputs::Gathered, Some(Activation::Silu)),
            (160, Inputs::InPlaces, None),
            (33, Inputs::Gathered, Some(Activation::GeluTanh)),
        ] {
            let gate = function.map_or("plain", |_| "gated");
            let name =
                format!("all experts at once and one by one, {inputs} {inputs_are:?}, {gate}, {weights:?}");
            checks.check(name, || at_once(machine, (weights, inputs), (inputs_are, function)));
            machine.clear();
        }
    }
    for (here, groups) in [(0..8, 1), (0..8, 4), (4..8, 2), (8..16, 8)] {
        let name = format!("outputs of experts {here:?} in {groups} groups summed");
        checks.check(name, || summed(machine, here.clone(), groups));
        machine.clear();
    }
}

/// Rows of which some scores are alike, and rows with scores that are no numbers.
fn scores(rows: usize, experts: usize) -> Vec<f32> {
    let mut scores: Vec<f32> = Numbers::new(experts as u64).values(rows * experts);
    let count = scores.len();
    for score in &mut scores[..count / 2] {
        *score = (*score * 4.0).round();
    }
    scores[0] = f32::NAN;
    scores[1] = f32::NEG_INFINITY;
    scores[count - experts..].fill(f32::NAN);
    scores
}

fn routed(machine: &mut Machine, routing: Routing) -> Result<Error> {
    const ROWS: usize = 7;
    let scores = scores(ROWS, routing.experts);
    let choices = ROWS * routing.chosen;
    let (chosen, weights) = (machine.room::<u32>(choices)?, machine.room::<f32>(choices)?);
    let call =
        RouteParameters { scores: machine.put(&scores)?, chosen, weights, ..RouteParameters::of(routing) };
    machine.run(|on| route(on, &call, ROWS))?;
    let mut expected: Vec<(usize, usize, f32)> = Vec::new();
    for (expert, rows) in twin(routing, &scores).into_iter().enumerate() {
        expected.extend(rows.into_iter().map(|(row, weight)| (row, expert, weight)));
    }
    expected.sort_by_key(|(row, expert, _)| (*row, *expert));
    let experts: Vec<u32> = expected.iter().map(|(_, expert, _)| *expert as u32).collect();
    let is_same = Error::unless(machine.get::<u32>(chosen, choices)? == experts);
    // Of a row without numbers there is no weight either.
    let found = machine.get::<f32>(weights, choices)?;
    let pairs = found.into_iter().zip(expected.into_iter().map(|(_, _, weight)| weight));
    let (no_numbers, numbers): (Vec<_>, Vec<_>) = pairs.partition(|(_, expected)| expected.is_nan());
    let hidden = no_numbers.iter().any(|(found, _)| !found.is_nan());
    let (found, expected): (Vec<f32>, Vec<f32>) = numbers.into_iter().unzip();
    Ok(is_same.max(Error::unless(!hidden)).max(Error::of(&found, &expected, F32)))
}

/// The last two of five rows.
fn padded(machine: &mut Machine) -> Result<Error> {
    let routing = Routing { experts: 40, chosen: 3, weights: RoutingWeights::SoftmaxOfChosen };
    let scores = Numbers::new(4).values(5 * 40);
    let mut route_with = |slots: &[u32]| -> Result<(Vec<u32>, Vec<f32>)> {
        let (chosen, weights) = (machine.room::<u32>(15)?, machine.room::<f32>(15)?);
        let call = RouteParameters {
            scores: machine.put(&scores)?,
            slots: machine.put(slots)?,
            chosen,
            weights,
            padding: 160,
            ..RouteParameters::of(routing)
        };
        machine.run(|on| route(on, &call, 5))?;
        Ok((machine.get(chosen, 15)?, machine.get(weights, 15)?))
    };
    let (plain, weights) = route_with(&[7, 0, 161, 3, 4])?;
    let (padded, padded_weights) = route_with(&[7, 0, 161, 160, 160])?;
    let repeated = |values: &[u32]| [&values[..9], &values[..3], &values[..3]].concat();
    let bits = |weights: &[f32]| weights.iter().map(|weight| weight.to_bits()).collect::<Vec<u32>>();
    let is_right =
        padded == repeated(&plain) && bits(&padded_weights) == repeated(&bits(&weights)) && plain != padded;
    Ok(Error::unless(is_right))
}

/// What rows choose, and where that is put, in a machine's memory.
struct Grouped {
    chosen: Vec<u32>,
    first: usize,
    experts: usize,
    rows: Address,
    places: Address,
    bundles: Address,
    most_bundles: usize,
}

impl Grouped {
    fn new(
        machine: &mut Machine,
        (chosen, of_a_row): (Vec<u32>, usize),
        here: std::ops::Range<usize>,
    ) -> Result<Self> {
        let choices = chosen.len();
        let most_bundles = most_bundles(choices, here.len());
        let grouped = Self {
            first: here.start,
            experts: here.len(),
            rows: machine.room::<u32>(choices)?,
            places: machine.room::<u32>(choices)?,
            bundles: machine.room::<Bundle>(most_bundles)?,
            most_bundles,
            chosen,
        };
        let call = GroupParameters {
            chosen: machine.put(&grouped.chosen)?,
            rows: grouped.rows,
            places: grouped.places,
            bundles: grouped.bundles,
            choices: choices as u32,
            of_a_row: of_a_row as u32,
            first: here.start as u32,
            experts: here.len() as u32,
            bundle_rows: FEW_ROWS as u32,
            most_bundles: most_bundles as u32,
        };
        machine.run(|on| group_rows(on, &call))?;
        Ok(grouped)
    }

    /// Of each expert here, its choices in order.
    fn plainly(&self) -> Vec<Vec<usize>> {
        let expert = |choice: &usize| self.chosen[*choice] as usize;
        let of =
            |at: usize| (0..self.chosen.len()).filter(|choice| expert(choice) == self.first + at).collect();
        (0..self.experts).map(of).collect()
    }
}

/// Distinct experts, ascending, of every row.
fn choices((rows, of_a_row): (usize, usize), experts: usize) -> Vec<u32> {
    let mut numbers = Numbers::new((rows * of_a_row) as u64);
    let mut chosen = Vec::new();
    for _ in 0..rows {
        let mut of_row = std::collections::BTreeSet::new();
        while of_row.len() < of_a_row {
            of_row.insert(numbers.below(experts as u32));
        }
        chosen.extend(of_row);
    }
    chosen
}

fn grouped(
    machine: &mut Machine,
    (rows, of_a_row): (usize, usize),
    here: std::ops::Range<usize>,
) -> Result<Error> {
    let chosen = choices((rows, of_a_row), here.end + 3);
    let grouped = Grouped::new(machine, (chosen, of_a_row), here)?;
    let (mut of_places, mut places, mut bundles) =
        (Vec::new(), vec![NONE; grouped.chosen.len()], Vec::new());
    for (expert, choices) in grouped.plainly().into_iter().enumerate() {
        for bundle in choices.chunks(FEW_ROWS) {
            bundles.push(Bundle {
                expert: expert as u32,
                first: of_places.len() as u32,
                rows: bundle.len() as u32,
            });
            for choice in bundle {
                places[*choice] = of_places.len() as u32;
                of_places.push((choice / of_a_row) as u32);
            }
        }
    }
    bundles.resize(grouped.most_bundles, Bundle::default());
    let found = machine.get::<u32>(grouped.places, places.len())?;
    let is_right = machine.get::<u32>(grouped.rows, of_places.len())? == of_places
        && found.iter().zip(&places).all(|(found, place)| found == place || *place == NONE)
        && machine.get::<Bundle>(grouped.bundles, grouped.most_bundles)? == bundles;
    Ok(Error::unless(is_right))
}

/// The weights of some experts, no two alike.
fn held(
    machine: &mut Machine,
    (weights, shape): (Weights, PanelShape),
    (experts, function): (usize, Option<Activation>),
) -> Result<Vec<Held>> {
    let rows = if function.is_some() { TileRows::GateBesideUp } else { TileRows::InOrder };
    let of_expert = |expert: u64| {
        let values = Numbers::new(expert + 40).values(shape.outputs * shape.inputs);
        match weights {
            Weights::Rows(dtype) => Held::rows(machine, (&values, dtype), shape),
            Weights::Quantized(format) => quantized(machine, (&values, rows), (shape, format)),
        }
    };
    (0..experts as u64).map(of_expert).collect()
}

/// Experts with no rows, one, some, a part's, one more, and several parts'.
fn at_once(
    machine: &mut Machine,
    (weights, inputs): (Weights, usize),
    (inputs_are, function): (Inputs, Option<Activation>),
) -> Result<Error> {
    const ROWS_OF: [usize; 7] = [1, 0, 9, 64, 65, 20, 130];
    let shape = PanelShape { outputs: 42, inputs, segments: 1 };
    let chosen: Vec<u32> =
        ROWS_OF.iter().enumerate().flat_map(|(at, rows)| vec![at as u32; *rows]).collect();
    // So that an expert's rows stand among others'.
    let chosen: Vec<u32> = (0..chosen.len()).map(|at| chosen[at * 101 % chosen.len()]).collect();
    let rows = chosen.len();
    let input = Numbers::new(31).values(rows * shape.inputs);
    let grouped = Grouped::new(machine, (chosen, 1), 0..ROWS_OF.len())?;
    let held = held(machine, (weights, shape), (ROWS_OF.len(), function))?;
    let Some(Reading::TensorCores(coding)) = held.first().map(|held| held.reading) else {
        candle_core::bail!("check experts: their weights are not for tensor cores")
    };
    let width = if function.is_some() { shape.outputs / 2 } else { shape.outputs };
    let output = machine.room::<f32>(rows * width)?;
    let scales: Vec<u64> = held.iter().map(|held| held.scales.0).collect();
    let call = ExpertProductParameters {
        product: ProductParameters {
            input: machine.put(&input)?,
            weights: Address::NULL,
            scales: Address::NULL,
            output,
            waiting: Address::NULL,
            rows: 0,
            inputs: shape.inputs as u32,
            outputs: shape.outputs as u32,
            segments: 1,
            stride: width as u32,
            function: function.map_or(0, |function| 1 + number_of(function)),
            parts: 0,
        },
        bundles: grouped.bundles,
        rows: if inputs_are == Inputs::Gathered { grouped.rows } else { Address::NULL },
        weights: machine.put(&held.iter().map(|held| held.weights.0).collect::<Vec<u64>>())?,
        scales: if scales.contains(&0) { Address::NULL } else { machine.put(&scales)? },
    };
    machine.run(|on| experts(on, coding, &call, grouped.most_bundles))?;
    let found = machine.get::<f32>(output, rows * width)?;
    let choices = grouped.plainly();
    let mut place = 0;
    let mut expected = Vec::new();
    for (held, choices) in held.iter().zip(choices) {
        let rows: Vec<usize> = match inputs_are {
            Inputs::Gathered => choices,
            Inputs::InPlaces => (place..place + choices.len()).collect(),
        };
        place += rows.len();
        let row = |row: &usize| &input[row * shape.inputs..][..shape.inputs];
        let gathered: Vec<f32> = rows.iter().flat_map(row).copied().collect();
        if !gathered.is_empty() {
            expected.extend(held.multiply(machine, (&gathered, Rows::of(rows.len())), function)?);
        }
    }
    Ok(Error::of(&found, &expected, EXACT))
}

/// Against what the CPU adds up, expert by expert, and then in a tree.
fn summed(machine: &mut Machine, here: std::ops::Range<usize>, groups: usize) -> Result<Error> {
    const ROWS: usize = 11;
    const OF_A_ROW: usize = 3;
    const WIDTH: usize = 37;
    let chosen = choices((ROWS, OF_A_ROW), here.end + 2);
    let mut numbers = Numbers::new(21);
    let weights = numbers.values(chosen.len());
    let outputs = numbers.values(chosen.len() * WIDTH);
    let grouped = Grouped::new(machine, (chosen, OF_A_ROW), here.clone())?;
    let sums = machine.room::<f32>(ROWS * WIDTH)?;
    let call = CombineParameters {
        outputs: machine.put(&outputs)?,
        chosen: machine.put(&grouped.chosen)?,
        weights: machine.put(&weights)?,
        places: grouped.places,
        sums,
        elements: (ROWS * WIDTH) as u64,
        width: WIDTH as u32,
        count: OF_A_ROW as u32,
        first: here.start as u32,
        together: (here.len() / groups) as u32,
        groups: groups as u32,
    };
    machine.run(|on| combine(on, &call))?;
    let mut place = 0;
    let mut parts = Vec::new();
    for group in grouped.plainly().chunks(here.len() / groups) {
        let sum = Tensor::zeros((ROWS, WIDTH), candle_core::DType::F32, &Device::Cpu)?;
        for choices in group {
            let rows: Vec<(usize, f32)> =
                choices.iter().map(|choice| (choice / OF_A_ROW, weights[*choice])).collect();
            let output = outputs[place * WIDTH..][..rows.len() * WIDTH].to_vec();
            place += rows.len();
            if !rows.is_empty() {
                let output = Tensor::from_vec(output, (rows.len(), WIDTH), &Device::Cpu)?;
                sum.inplace_op2(&output, &AddRows { rows: &rows })?;
            }
        }
        parts.push(sum);
    }
    while parts.len() > 1 {
        parts = parts.chunks(2).map(|pair| &pair[0] + &pair[1]).collect::<Result<_>>()?;
    }
    Ok(Error::of(&machine.get(sums, ROWS * WIDTH)?, &parts[0].flatten_all()?.to_vec1()?, EXACT))
}
