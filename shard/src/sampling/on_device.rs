//! What rows are asked on a device, in its words, and what it answers.

use lockstep_proto::{LogprobsOf, Seeded, Selection, TokenId, TokenLogprob, TokenLogprobs};

use super::{RowAsk, RowFound, Sampler, SamplingError, penalties};
use crate::ops::cuda::sampling::{
    Answers, AskParameters, Asks, Bias, Counted, DRAWN, GREEDY, KNOWN, MOST_RIVALS,
};

/// The asks as a device takes them; nothing where it cannot answer one of them: watermarks, and more rivals than it
/// tells.
pub(crate) fn asks(rows: &[RowAsk<'_>]) -> Option<Asks> {
    let mut asks = Asks::default();
    for row in rows {
        let ask = match row {
            RowAsk::Known { token, top } => {
                AskParameters { kind: KNOWN, token: token.0, top: told(*top)?, ..AskParameters::default() }
            }
            RowAsk::Sample { sampler, allowed, output_position } => {
                let ask = sample(sampler, *allowed, &mut asks)?;
                AskParameters { position: output_position.0, ..ask }
            }
        };
        asks.rows.push(ask);
    }
    Some(asks)
}

fn told(top: usize) -> Option<u32> {
    u32::try_from(top).ok().filter(|_| top <= MOST_RIVALS)
}

fn sample(sampler: &Sampler, allowed: Option<&[u8]>, asks: &mut Asks) -> Option<AskParameters> {
    let Sampler { params, occurrences, previous: _ } = sampler;
    if params.watermark.is_some() {
        return None;
    }
    let ask = AskParameters {
        repetition: params.repetition_penalty,
        frequency: params.frequency_penalty,
        presence: params.presence_penalty,
        top: told(params.top_logprobs as usize)?,
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
        return Some(ask);
    }
    let counted = occurrences.iter().map(|(token, in_output)| Counted { token: token.0, in_output });
    Some(AskParameters { counted: added(&mut asks.counted, counted), ..ask })
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
    let rows = answers.answers.iter().zip(answers.rivals.chunks(MOST_RIVALS));
    rows.map(|(answer, rivals)| {
        let not_finite = |found| Err(SamplingError::NotFinite { found });
        match answer.outcome {
            0 => {}
            1 => return not_finite("NaN"),
            2 => return not_finite("infinity"),
            3 => return not_finite("minus infinity only"),
            _ => return Err(SamplingError::NothingLeft),
        }
        let rivals = rivals.iter().take(answer.top as usize);
        let top = rivals.map(|rival| TokenLogprob { token: TokenId(rival.token), logprob: rival.logprob });
        Ok(TokenLogprobs { token: TokenId(answer.token), logprob: answer.logprob, top: top.collect() })
    })
    .collect()
}
