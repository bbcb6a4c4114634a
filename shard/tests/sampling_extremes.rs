//! Every parameter that `check` accepts gives a token or a refusal, and no log-probability that is no number,
//! however far it carries the logits.

use lockstep_proto::{
    LogitBias, LogprobsOf, SamplingParams, Seeded, Selection, TokenId, Tokens, Watermark,
};
use lockstep_shard::sampling::{Sampler, SamplingError, check};
use proptest::prelude::*;

const VOCABULARY: usize = 12;

/// Finite numbers of every size, the outermost often.
fn finite() -> impl Strategy<Value = f32> {
    let edges = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, 1e-38, -1e-38, 3e38, 1.0, 0.0, -0.0];
    let any = any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite());
    prop_oneof![proptest::sample::select(edges.to_vec()), any, -3.0_f32..3.0]
}

fn above_zero() -> impl Strategy<Value = f32> {
    finite().prop_map(f32::abs).prop_filter("above 0", |value| *value > 0.0)
}

fn share() -> impl Strategy<Value = f32> {
    prop_oneof![Just(1.0_f32), Just(f32::MIN_POSITIVE), Just(1e-45_f32), 0.01_f32..1.0]
}

fn biases() -> impl Strategy<Value = Vec<LogitBias>> {
    let value = prop_oneof![finite(), Just(f32::NEG_INFINITY)];
    // Few tokens, so that many are biased more than once.
    let bias = (0..4_u32, value).prop_map(|(token, bias)| LogitBias { token: TokenId(token), bias });
    proptest::collection::vec(bias, 0..12)
}

fn selections() -> impl Strategy<Value = Selection> {
    let numbers = (above_zero(), share(), share(), prop_oneof![Just(0.0_f32), share()]);
    let seeded = (any::<u64>(), 0..14_u32, numbers).prop_map(|(seed, top_k, numbers)| {
        let (temperature, top_p, typical_p, min_p) = numbers;
        Selection::Seeded(Seeded { seed, choice: 0, temperature, top_k, top_p, typical_p, min_p })
    });
    prop_oneof![Just(Selection::Greedy), seeded]
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let penalties = (above_zero(), finite(), finite());
    let watermark = proptest::option::of((share().prop_filter("below 1", |gamma| *gamma < 1.0), finite()))
        .prop_map(|mark| mark.map(|(gamma, delta)| Watermark { gamma, delta }));
    let logprobs_of = prop_oneof![Just(LogprobsOf::Model), Just(LogprobsOf::Warped)];
    (selections(), penalties, biases(), logprobs_of, (0..=VOCABULARY as u32, watermark)).prop_map(
        |(selection, penalties, logit_bias, logprobs_of, (top_logprobs, watermark))| SamplingParams {
            selection,
            repetition_penalty: penalties.0,
            frequency_penalty: penalties.1,
            presence_penalty: penalties.2,
            logit_bias,
            logprobs_of,
            top_logprobs,
            watermark,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_accepted_parameter_breaks_a_choice(
        params in params(),
        row in proptest::collection::vec(prop_oneof![finite(), Just(f32::NEG_INFINITY)], VOCABULARY),
        context in proptest::collection::vec((0..VOCABULARY as u32).prop_map(TokenId), 0..30),
        prompt_tokens in 0..30_u32,
    ) {
        prop_assume!(row.iter().any(|logit| *logit > f32::NEG_INFINITY));
        prop_assert_eq!(check(&params, VOCABULARY), Ok(()));
        let sampler = Sampler::new(params.clone(), &context, Tokens(prompt_tokens));
        match sampler.sample(&row, None, Tokens(3)) {
            Err(error) => {
                prop_assert_eq!(error, SamplingError::NothingLeft);
                let ruled_out = |token: u32| params.logit_bias.iter().any(|bias| {
                    bias.token == TokenId(token) && bias.bias == f32::NEG_INFINITY
                });
                let possible = (0..).zip(&row).any(|(token, logit)| *logit > f32::NEG_INFINITY && !ruled_out(token));
                prop_assert!(!possible, "a token was left");
            }
            Ok(chosen) => {
                prop_assert!(row[chosen.token.index()] > f32::NEG_INFINITY, "the model ruled it out");
                prop_assert!(chosen.logprob <= 0.0, "{}", chosen.logprob);
                for rival in &chosen.top {
                    prop_assert!(rival.logprob <= 0.0, "{}", rival.logprob);
                }
            }
        }
    }
}

#[test]
fn a_tiny_repetition_penalty_gives_a_token() {
    let params = SamplingParams { repetition_penalty: 1e-38, ..SamplingParams::seeded(1) };
    let context = [TokenId(0), TokenId(1)];
    let greedy = SamplingParams { selection: Selection::Greedy, ..params.clone() };
    for params in [params, greedy] {
        let sampler = Sampler::new(params, &context, Tokens(2));
        let chosen = sampler.sample(&[20.0, 19.0, 3.0], None, Tokens(0)).map(|chosen| chosen.token);
        assert!(matches!(chosen, Ok(TokenId(0 | 1))), "{chosen:?}");
    }
}
