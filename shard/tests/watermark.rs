//! The watermark's place in the sampling chain, and what it does to a text and to nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use lockstep_proto::{LogprobsOf, SamplingParams, TokenId, TokenLogprobs, Tokens, Watermark};
use lockstep_shard::sampling::{Sampler, check};
use proptest::prelude::*;

const VOCABULARY: u32 = 4000;

fn marked(params: SamplingParams) -> SamplingParams {
    SamplingParams { watermark: Some(Watermark::USUAL), ..params }
}

fn sample(params: SamplingParams, context: &[TokenId], logits: &[f32]) -> TokenLogprobs {
    Sampler::new(params, context, Tokens(1)).sample(logits, None, Tokens(1)).unwrap()
}

/// A token after `previous` that is on its green list, or is not.
fn token_after(previous: TokenId, green: bool) -> TokenId {
    let list = Watermark::USUAL.after(previous);
    (0..VOCABULARY).map(TokenId).find(|token| list.holds(*token) == green).unwrap()
}

#[test]
fn the_green_list_is_that_of_the_last_token() {
    let logits = vec![0.0; VOCABULARY as usize];
    let favoured = |previous: TokenId| -> Vec<u32> {
        let params = marked(SamplingParams::seeded(1));
        let params = SamplingParams { logprobs_of: LogprobsOf::Warped, top_logprobs: VOCABULARY, ..params };
        let sampler = Sampler::new(params.clone(), &[TokenId(1), previous], Tokens(1));
        let mut grown = Sampler::new(params, &[TokenId(1)], Tokens(1));
        grown.on_emitted(previous);
        assert_eq!(sampler, grown, "a context given at once and token by token is the same");
        let top = sampler.sample(&logits, None, Tokens(1)).unwrap().top;
        let (most, least) = (top[0].logprob, top[top.len() - 1].logprob);
        assert!((most - least - Watermark::USUAL.delta).abs() < 1e-4, "{most} {least}");
        let mut favoured: Vec<u32> =
            top.iter().filter(|entry| entry.logprob > least + 1.0).map(|entry| entry.token.0).collect();
        favoured.sort_unstable();
        favoured
    };
    for previous in [TokenId(0), TokenId(7), TokenId(3999)] {
        let list = Watermark::USUAL.after(previous);
        let expected: Vec<u32> = (0..VOCABULARY).filter(|token| list.holds(TokenId(*token))).collect();
        assert_eq!(favoured(previous), expected);
    }
}

#[test]
fn the_first_token_follows_the_prompts_last() {
    let prompt = [TokenId(5), TokenId(9)];
    let green = token_after(TokenId(9), true);
    let red = token_after(TokenId(9), false);
    let mut logits = vec![0.0; VOCABULARY as usize];
    (logits[red.index()], logits[green.index()]) = (11.0, 10.0);
    let sampler = Sampler::new(marked(SamplingParams::greedy()), &prompt, Tokens(2));
    assert_eq!(sampler.sample(&logits, None, Tokens(0)).unwrap().token, green);
}

#[test]
fn greedy_takes_a_green_token_within_reach_and_no_other() {
    let previous = TokenId(3);
    let (green, red) = (token_after(previous, true), token_after(previous, false));
    for (lead, expected) in [(1.9, green), (2.1, red)] {
        let mut logits = vec![0.0; VOCABULARY as usize];
        (logits[red.index()], logits[green.index()]) = (10.0 + lead, 10.0);
        let context = [TokenId(1), previous];
        let sampled = sample(marked(SamplingParams::greedy()), &context, &logits);
        assert_eq!(sampled.token, expected, "a lead of {lead}");
        // What is reported is the model's own.
        let plain =
            sample(SamplingParams { top_logprobs: 2, ..SamplingParams::greedy() }, &context, &logits);
        let of_token = plain.top.iter().find(|entry| entry.token == expected).unwrap();
        assert_eq!(sampled.logprob.to_bits(), of_token.logprob.to_bits());
    }
}

#[test]
fn it_comes_before_the_penalties_and_the_mask() {
    let previous = TokenId(3);
    let (green, red) = (token_after(previous, true), token_after(previous, false));
    let context = [TokenId(1), green, previous];
    let mut logits = vec![f32::NEG_INFINITY; VOCABULARY as usize];
    (logits[red.index()], logits[green.index()]) = (0.0, -1.0);
    // (-1 + 2) / 4 is above 0; -1 * 4 + 2 would be below.
    let penalised = SamplingParams { repetition_penalty: 4.0, ..marked(SamplingParams::greedy()) };
    assert_eq!(sample(penalised.clone(), &context, &logits).token, green);
    let mut allowed = vec![0xFF; VOCABULARY as usize / 8];
    allowed[green.index() / 8] &= !(1 << (green.index() % 8));
    let sampler = Sampler::new(penalised, &context, Tokens(1));
    assert_eq!(sampler.sample(&logits, Some(&allowed), Tokens(1)).unwrap().token, red);
}

#[test]
fn numbers_that_mark_nothing_are_refused() {
    for (gamma, delta, name) in
        [(0.0, 2.0, "gamma"), (1.0, 2.0, "gamma"), (f32::NAN, 2.0, "gamma"), (0.5, f32::INFINITY, "delta")]
    {
        let params =
            SamplingParams { watermark: Some(Watermark { gamma, delta }), ..SamplingParams::greedy() };
        let error = check(&params, 8).unwrap_err().to_string();
        assert!(error.contains(&format!("watermark {name}")), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Draws from one set of logits: with a mark most are green, without about half. Both bounds are more than five
    /// deviations of 400 draws away.
    #[test]
    fn drawn_tokens_are_mostly_green(seed: u64) {
        let logits: Vec<f32> = (0..VOCABULARY).map(|token| (token % 97) as f32 / 97.0).collect();
        let share = |params: SamplingParams| {
            let mut context = vec![TokenId(1)];
            let mut green = 0;
            for position in 0..400 {
                let previous = context[context.len() - 1];
                let sampler = Sampler::new(params.clone(), &context, Tokens(1));
                let token = sampler.sample(&logits, None, Tokens(position)).unwrap().token;
                green += usize::from(Watermark::USUAL.after(previous).holds(token));
                context.push(token);
            }
            green
        };
        let plain = share(SamplingParams::seeded(seed));
        let marked = share(marked(SamplingParams::seeded(seed)));
        // e² of the weight of the green half: 0.88 of 400.
        prop_assert!(marked > 310, "{marked}");
        prop_assert!((150..250).contains(&plain), "{plain}");
    }
}
