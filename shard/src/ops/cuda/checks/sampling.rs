//! Tokens and log-probabilities: against the CPU's chain, with every parameter by itself and together.

use candle_core::Result;
use lockstep_proto::{
    LogitBias, LogprobsOf, SamplingParams, Seeded, Selection, TokenId, TokenLogprobs, Tokens,
};

use super::{BF16, Checks, Error, Machine, Numbers};
use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::sampling::{
    Answer, Answers, FED, FeedParameters, Rival, SampleParameters, feed_by, sample_by,
};
use crate::sampling::{MOST_RIVALS, RowAsk, RowFound, Sampler, SamplingError, on_device};

/// Not a multiple of anything.
const VOCABULARY: usize = 1031;

/// Largest difference of two log-probabilities, which are of another order of sums.
const LOGPROB: f32 = 1e-5;

pub(super) fn check(machine: &mut Machine, checks: &mut Checks<'_>) {
    for (name, params) in cases() {
        checks.check(format!("sampling, {name}"), || agrees(machine, &params, None));
        machine.clear();
    }
    let (_, last) = cases().remove(0);
    checks.check("sampling, a grammar's mask", || agrees(machine, &last, Some(&mask())));
    checks.check("sampling, a token that is fed is penalised", || fed(machine));
    checks.check("tokens that are fed", || fed_tokens(machine));
    checks.check("log-probabilities of known tokens", || known(machine));
    checks.check("logits that are no numbers", || not_numbers(machine));
    machine.clear();
}

fn seeded() -> Seeded {
    Seeded {
        seed: 0x1234_5678_9abc,
        choice: 3,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        typical_p: 1.0,
        min_p: 0.0,
    }
}

fn plain(selection: Selection) -> SamplingParams {
    SamplingParams {
        selection,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        top_logprobs: 5,
        logprobs_of: LogprobsOf::Model,
        watermark: None,
    }
}

fn cases() -> Vec<(&'static str, SamplingParams)> {
    let drawn = |seeded| plain(Selection::Seeded(seeded));
    let all = Seeded { temperature: 0.7, top_k: 60, top_p: 0.9, typical_p: 0.95, min_p: 0.01, ..seeded() };
    let bias = |token, bias| LogitBias { token: TokenId(token), bias };
    let penalties = SamplingParams {
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: -0.2,
        ..plain(Selection::Greedy)
    };
    let biased = SamplingParams {
        logit_bias: vec![bias(7, 9.0), bias(1030, -4.0), bias(7, 1.0), bias(12, f32::NEG_INFINITY)],
        ..plain(Selection::Greedy)
    };
    let warped = |params: SamplingParams| SamplingParams { logprobs_of: LogprobsOf::Warped, ..params };
    vec![
        ("drawn", drawn(seeded())),
        ("greedy", plain(Selection::Greedy)),
        ("temperature 0.3", drawn(Seeded { temperature: 0.3, ..seeded() })),
        ("temperature 2", drawn(Seeded { temperature: 2.0, ..seeded() })),
        ("top-k 1", drawn(Seeded { top_k: 1, ..seeded() })),
        ("top-k 40", drawn(Seeded { top_k: 40, ..seeded() })),
        ("top-p 0.5", drawn(Seeded { top_p: 0.5, ..seeded() })),
        ("top-p 0.001", drawn(Seeded { top_p: 0.001, ..seeded() })),
        ("typical-p 0.5", drawn(Seeded { typical_p: 0.5, ..seeded() })),
        ("min-p 0.05", drawn(Seeded { min_p: 0.05, ..seeded() })),
        ("all warpers", drawn(all.clone())),
        ("penalties", penalties.clone()),
        ("biases", biased.clone()),
        (
            "all of it, of what is left",
            warped(SamplingParams { selection: Selection::Seeded(all), ..penalties }),
        ),
        ("biases, of what they make", warped(biased)),
    ]
}

/// Rows of every kind: far apart, close together, half of them equal, some ruled out.
fn rows() -> Vec<Vec<f32>> {
    let mut numbers = Numbers::new(2024);
    let mut row = |scale: f32| numbers.values(VOCABULARY).iter().map(|x| x * scale).collect::<Vec<_>>();
    let mut coarse = row(8.0);
    coarse.iter_mut().for_each(|logit| *logit = logit.round());
    let mut ruled_out = row(10.0);
    ruled_out.iter_mut().step_by(3).for_each(|logit| *logit = f32::NEG_INFINITY);
    let mut only = vec![f32::NEG_INFINITY; VOCABULARY];
    only[500] = -3.0;
    vec![row(20.0), row(3.0), row(0.05), coarse, ruled_out, vec![0.0; VOCABULARY], only, row(200.0)]
}

fn mask() -> Vec<u8> {
    let mut numbers = Numbers::new(5);
    (0..VOCABULARY.div_ceil(8)).map(|_| numbers.bits() as u8).collect()
}

fn agrees(machine: &mut Machine, params: &SamplingParams, allowed: Option<&[u8]>) -> Result<Error> {
    let mut numbers = Numbers::new(31);
    let context: Vec<TokenId> = (0..60).map(|_| TokenId(numbers.below(VOCABULARY as u32))).collect();
    let sampler = Sampler::new(params.clone(), &context, Tokens(40));
    let ask = |position| RowAsk::Sample {
        sampler: &sampler,
        allowed,
        output_position: Tokens(position),
        fed: None,
    };
    let rows = rows();
    let asks: Vec<RowAsk<'_>> = (20..).take(rows.len()).map(ask).collect();
    compare(machine, &rows, &asks)
}

/// The last token is known to the device alone: one that stands in the context, in the prompt, or nowhere else.
fn fed(machine: &mut Machine) -> Result<Error> {
    let mut numbers = Numbers::new(31);
    let context: Vec<TokenId> = (0..60).map(|_| TokenId(numbers.below(VOCABULARY as u32 / 2))).collect();
    let (_, penalties) = cases().remove(11);
    let params = SamplingParams { logprobs_of: LogprobsOf::Warped, ..penalties };
    let sampler = Sampler::new(params, &context, Tokens(40));
    let rows = rows();
    let mut error = Error::unless(true);
    for last in [context[50], context[3], TokenId(VOCABULARY as u32 - 1)] {
        let mut knows = sampler.clone();
        knows.on_emitted(last);
        let ask =
            |sampler, fed| RowAsk::Sample { sampler, allowed: None, output_position: Tokens(21), fed };
        let asks = vec![ask(&sampler, Some(1)); rows.len()];
        let chosen = [0, last.0].map(|token| Answer { token, ..Answer::default() });
        let found = on_machine(machine, (&rows, &asks), &chosen)?;
        let expected = rows.iter().map(|row| ask(&knows, None).answer(row));
        error = error.max(compared(found, expected)?);
    }
    Ok(error)
}

fn fed_tokens(machine: &mut Machine) -> Result<Error> {
    let chosen = [7, 1030, 12].map(|token| Answer { token, ..Answer::default() });
    let before = machine.put(&chosen)?;
    let words: Vec<u32> = (0..300).map(|at| if at % 3 == 0 { FED | (at / 3 % 3) } else { at }).collect();
    let tokens = machine.put(&words)?;
    let call = FeedParameters { tokens, before, count: 299 };
    machine.run(|on| feed_by(on, &call))?;
    let expected: Vec<u32> = words
        .iter()
        .enumerate()
        .map(|(at, word)| if at % 3 == 0 { chosen[at / 3 % 3].token } else { *word })
        .collect();
    Ok(Error::unless(machine.get::<u32>(tokens, 300)? == expected))
}

fn known(machine: &mut Machine) -> Result<Error> {
    let rows = rows();
    let ask = |(row, _)| RowAsk::Known { token: TokenId(row as u32 * 70), top: row * 4 };
    let asks: Vec<RowAsk<'_>> = rows.iter().enumerate().map(ask).collect();
    compare(machine, &rows, &asks)
}

fn not_numbers(machine: &mut Machine) -> Result<Error> {
    let row = |at: usize, value: f32| {
        let mut row = vec![0.25; VOCABULARY];
        row[at] = value;
        row
    };
    let rows = vec![
        row(1030, f32::NAN),
        row(0, f32::INFINITY),
        vec![f32::NEG_INFINITY; VOCABULARY],
        row(9, f32::NEG_INFINITY),
    ];
    let sampler = Sampler::new(plain(Selection::Seeded(seeded())), &[TokenId(1)], Tokens(1));
    let nothing = vec![0; VOCABULARY.div_ceil(8)];
    let ask =
        |allowed| RowAsk::Sample { sampler: &sampler, allowed, output_position: Tokens(0), fed: None };
    let asks = [ask(None), ask(None), ask(None), ask(Some(nothing.as_slice()))];
    let found = on_machine(machine, (&rows, &asks), &[])?;
    let not_finite = |found| Err(SamplingError::NotFinite { found });
    let expected: [RowFound; 4] = [
        not_finite("NaN"),
        not_finite("infinity"),
        not_finite("minus infinity only"),
        Err(SamplingError::NothingLeft),
    ];
    Ok(Error::unless(found == expected))
}

fn compare(machine: &mut Machine, rows: &[Vec<f32>], asks: &[RowAsk<'_>]) -> Result<Error> {
    let found = on_machine(machine, (rows, asks), &[])?;
    compared(found, rows.iter().zip(asks).map(|(row, ask)| ask.answer(row)))
}

fn compared(found: Vec<RowFound>, expected: impl Iterator<Item = RowFound>) -> Result<Error> {
    let mut error = Error { found: 0.0, allowed: LOGPROB };
    for (index, (expected, found)) in expected.zip(found).enumerate() {
        let difference = match (&found, &expected) {
            (Ok(found), Ok(expected)) => difference(found, expected),
            _ if found == expected => 0.0,
            _ => f32::INFINITY,
        };
        if difference > BF16 {
            candle_core::bail!("row {index}: found {found:?}, expected {expected:?}");
        }
        error.found = error.found.max(difference);
    }
    Ok(error)
}

/// Infinite where a token differs; else the largest difference of a log-probability, relative to its size.
fn difference(found: &TokenLogprobs, expected: &TokenLogprobs) -> f32 {
    let all = |of: &TokenLogprobs| {
        let top = of.top.iter().map(|rival| (rival.token, rival.logprob));
        std::iter::once((of.token, of.logprob)).chain(top).collect::<Vec<_>>()
    };
    let (found, expected) = (all(found), all(expected));
    let same = found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| a.0 == b.0);
    if !same {
        return f32::INFINITY;
    }
    let of = |(a, b): (&(TokenId, f32), &(TokenId, f32))| {
        if a.1 == b.1 { 0.0 } else { (a.1 - b.1).abs() / b.1.abs().max(1.0) }
    };
    found.iter().zip(&expected).map(of).fold(0.0, f32::max)
}

fn on_machine(
    machine: &mut Machine,
    (rows, asks): (&[Vec<f32>], &[RowAsk<'_>]),
    before: &[Answer],
) -> Result<Vec<RowFound>> {
    let asked = on_device::asks(asks);
    let count = rows.len();
    let (answers, rivals): (Address, Address) =
        (machine.room::<Answer>(count)?, machine.room::<Rival>(count * MOST_RIVALS)?);
    let call = SampleParameters {
        logits: machine.put(&rows.concat())?,
        work: machine.room::<f32>(count * VOCABULARY)?,
        asks: machine.put(&asked.rows)?,
        counted: machine.put(&asked.counted)?,
        biases: machine.put(&asked.biases)?,
        masks: machine.put(&asked.masks)?,
        answers,
        rivals,
        before: machine.put(before)?,
        vocabulary: VOCABULARY as u32,
        most_rivals: MOST_RIVALS as u32,
    };
    let threads = machine.sampling_threads();
    machine.run(|on| sample_by(on, &call, (count, threads)))?;
    let answers = machine.get::<Answer>(answers, count)?;
    let rivals = machine.get::<Rival>(rivals, count * MOST_RIVALS)?;
    Ok(on_device::found(&Answers { answers, rivals, most_rivals: MOST_RIVALS }))
}
