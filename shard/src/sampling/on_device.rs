//! What rows are asked on a device, in its words, and what it answers.

use lockstep_proto::{LogprobsOf, Seeded, Selection, TokenId, TokenLogprob, TokenLogprobs};

use super::{RowAsk, RowFound, Sampler, SamplingError, penalties};
use crate::ops::cuda::sampling::{Answers, AskParameters, Asks, Bias, Counted, DRAWN, GREEDY, KNOWN};

/// The asks as a device takes them. Of a row that it cannot tell of it is asked something that is told of any row.
pub(crate) fn asks(rows: &[RowAsk<'_>]) -> Asks {
    let mut asks = Asks::default();
    for row in rows {
        let ask = match row {
            row if !row.is_for_devices() => AskParameters::default(),
            RowAsk::Known { token, top } => {
                AskParameters { kind: KNOWN, token: token.0, top: *top as u32, ..AskParameters::default() }
            }
            RowAsk::Sample { sampler, allowed, output_position, fed } => {
                let ask = sample(sampler, (*allowed, *fed), &mut asks);
                AskParameters { position: output_position.0, ..ask }
            }
        };
        asks.rows.push(ask);
    }
    asks
}

fn sample(
    sampler: &Sampler,
    (allowed, fed): (Option<&[u8]>, Option<usize>),
    asks: &mut Asks,
) -> AskParameters {
    let Sampler { params, occurrences, previous: _ } = sampler;
    let ask = AskParameters {
        repetition: params.repetition_penalty,
        frequency: params.frequency_penalty,
        presence: params.presence_penalty,
        top: params.top_logprobs,
        of_warped: match params.logprobs_of {
            LogprobsOf::Model => 0,
            LogprobsOf::Warped => 1,
        },
        biases: added(
            &mut asks.biases,
            params.logit_bias.iter().map(|bias| Bias { token: bias.token.0, bias: bias.bias }),
        ),
        mask: added(&mut asks.masks, allowed.unwrap_or_default().iter().copied()),
        ..selection(&params.selection)
    };
    if !penalties::are_on(params) {
        return ask;
    }
    let counted = occurrences.iter().map(|(token, in_output)| Counted { token: token.0, in_output });
    let fed = fed.map_or(0, |row| row as u32 + 1);
    AskParameters { counted: added(&mut asks.counted, counted), fed, ..ask }
}

/// Where a list begins among all of them, and how long it is.
fn added<T>(all: &mut Vec<T>, list: impl Iterator<Item = T>) -> [u32; 2] {
    let first = all.len();
    all.extend(list);
    [first as u32, (all.len() - first) as u32]
}

fn selection(selection: &Selection) -> AskParameters {
    match selection {
        Selection::Greedy => AskParameters { kind: GREEDY, ..AskParameters::default() },
        Selection::Seeded(seeded) => {
            let Seeded { seed, choice, temperature, top_k, top_p, typical_p, min_p } = *seeded;
            AskParameters {
                kind: DRAWN,
                seed: [(seed & 0xFFFF_FFFF) as u32, (seed >> 32) as u32],
                choice,
                temperature,
                top_k,
                top_p,
                typical_p,
                min_p,
                ..AskParameters::default()
            }
        }
    }
}

/// What the device has found, row by row.
pub(crate) fn found(answers: &Answers) -> Vec<RowFound> {
    let Answers { answers, rivals, most_rivals } = answers;
    let rows = answers.iter().enumerate();
    rows.map(|(row, answer)| {
        let not_finite = |found| Err(SamplingError::NotFinite { found });
        match answer.outcome {
            0 => {}
            1 => return not_finite("NaN"),
            2 => return not_finite("infinity"),
            3 => return not_finite("minus infinity only"),
            _ => return Err(SamplingError::NothingLeft),
        }
        let rivals = rivals.iter().skip(row * most_rivals).take(answer.top as usize);
        let top = rivals.map(|rival| TokenLogprob { token: TokenId(rival.token), logprob: rival.logprob });
        Ok(TokenLogprobs { token: TokenId(answer.token), logprob: answer.logprob, top: top.collect() })
    })
    .collect()
}
