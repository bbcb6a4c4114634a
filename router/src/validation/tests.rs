//! One case for each rule, and the order of the rules.

use lockstep_proto::{LogitBias, Selection, Watermark};

use super::*;
use crate::tokenizer::SpecialTokens;

fn limits() -> RequestLimits {
    RequestLimits {
        max_best_of: 2,
        max_stop_sequences: 4,
        max_top_n_tokens: 5,
        max_input_tokens: Tokens(99),
        max_total_tokens: Tokens(100),
        default_max_new_tokens: Tokens(u32::MAX),
        vocabulary_size: 100,
        watermark: Watermark::USUAL,
    }
}

fn request() -> TextRequest {
    TextRequest {
        prompt: PromptSource::Text { text: "a".to_owned(), special: SpecialTokens::Add },
        sampling: SamplingRequest::default(),
        stopping: StoppingRequest {
            stop: Vec::new(),
            stop_text: StopText::Keep,
            max_new_tokens: None,
            least_new_tokens: 1,
            usual_new_tokens: None,
            end_tokens: EndOfSequence::Obey,
        },
        top_n_tokens: None,
        prompt_logprobs: PromptLogprobs::Skip,
        truncate: None,
        choices: 1,
        grammar: None,
        watermark: None,
        cache_salt: None,
    }
}

/// What becomes of a request with a prompt of `tokens` tokens.
fn outcome(request: TextRequest, tokens: u32) -> Result<ValidRequest, String> {
    let run = || {
        let (_, awaiting) = request.check(&limits())?.split();
        let prompt = Prompt { text: String::new(), tokens: (0..tokens).map(TokenId).collect() };
        awaiting.with_prompt(prompt, &limits(), &[TokenId(7)])
    };
    run().map_err(|error| error.message)
}

#[test]
fn each_rule_has_its_message() {
    let with_sampling = |sampling: SamplingRequest| TextRequest { sampling, ..request() };
    let d = SamplingRequest::default;
    let cases = [
        (
            with_sampling(SamplingRequest { temperature: Some(0.0), ..d() }),
            "`temperature` must be strictly positive",
        ),
        (
            with_sampling(SamplingRequest { temperature: Some(f32::NAN), ..d() }),
            "`temperature` must be strictly positive",
        ),
        (
            with_sampling(SamplingRequest { temperature: Some(f32::INFINITY), ..d() }),
            "`temperature` must be finite in 32 bits",
        ),
        (
            with_sampling(SamplingRequest { repetition_penalty: Some(f32::INFINITY), ..d() }),
            "`repetition_penalty` must be finite in 32 bits",
        ),
        (
            with_sampling(SamplingRequest { repetition_penalty: Some(-1.0), ..d() }),
            "`repetition_penalty` must be strictly positive",
        ),
        (
            with_sampling(SamplingRequest { frequency_penalty: Some(2.1), ..d() }),
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
        ),
        (with_sampling(SamplingRequest { top_p: Some(0.0), ..d() }), "`top_p` must be > 0.0 and <= 1.0"),
        (
            with_sampling(SamplingRequest { typical_p: Some(1.1), ..d() }),
            "`typical_p` must be > 0.0 and <= 1.0",
        ),
        (with_sampling(SamplingRequest { top_k: Some(0), ..d() }), "`top_k` must be strictly positive"),
        (with_sampling(SamplingRequest { min_p: Some(-0.1), ..d() }), "`min_p` must be >= 0.0 and <= 1.0"),
        (
            TextRequest { top_n_tokens: Some(6), ..request() },
            "`top_n_tokens` must be >= 0 and <= 5. Given: 6",
        ),
        (
            TextRequest { truncate: Some(0), ..request() },
            "`truncate` must be strictly positive and less than 99. Given: 0",
        ),
        (
            TextRequest {
                prompt: PromptSource::Text { text: String::new(), special: SpecialTokens::Add },
                ..request()
            },
            "`inputs` cannot be empty",
        ),
    ];
    for (request, message) in cases {
        assert_eq!(outcome(request, 1).unwrap_err(), format!("Input validation error: {message}"));
    }
}

#[test]
fn logit_biases_are_small_and_of_tokens_there_are() {
    let cases = [
        (100, 1.0, "`logit_bias` names token 100, ids end before 100"),
        (9, 101.0, "`logit_bias` values must be >= -100 and <= 100"),
    ];
    for (token, bias, message) in cases {
        let logit_bias = vec![LogitBias { token: TokenId(token), bias }];
        let sampling = SamplingRequest { logit_bias, ..SamplingRequest::default() };
        let error = outcome(TextRequest { sampling, ..request() }, 1).unwrap_err();
        assert_eq!(error, format!("Input validation error: {message}"));
    }
}

#[test]
fn prompts_hold_only_tokens_the_model_knows() {
    let limits = limits().within_vocabulary(8);
    let prompt = |id| Prompt { text: String::new(), tokens: vec![TokenId(0), TokenId(id)] };
    let (_, awaiting) = request().check(&limits).unwrap().split();
    assert!(awaiting.clone().with_prompt(prompt(7), &limits, &[]).is_ok());
    let error = awaiting.with_prompt(prompt(8), &limits, &[]).unwrap_err();
    assert_eq!(
        (error.param, error.message.as_str()),
        (Some("inputs"), "Input validation error: `inputs` has token 8, the model's ids end before 8")
    );
    assert_eq!(limits.within_vocabulary(20).vocabulary_size, 8);
}

#[test]
fn the_first_broken_rule_is_told() {
    let mut broken = request();
    broken.sampling.temperature = Some(-1.0);
    broken.sampling.top_k = Some(-1);
    broken.stopping.max_new_tokens = Some(0);
    broken.stopping.stop = vec!["a".to_owned(); 5];
    let mut order = Vec::new();
    for repair in [
        |request: &mut TextRequest| request.sampling.temperature = None,
        |request: &mut TextRequest| request.sampling.top_k = None,
        |request: &mut TextRequest| request.stopping.max_new_tokens = None,
        |request: &mut TextRequest| request.stopping.stop.clear(),
    ] {
        order.push(broken.clone().check(&limits()).unwrap_err().param.unwrap());
        repair(&mut broken);
    }
    assert_eq!(order, ["temperature", "top_k", "max_new_tokens", "stop"]);
    assert!(broken.check(&limits()).is_ok());
}

#[test]
fn lengths_are_checked_once_for_the_whole_request() {
    let asking = |max_new_tokens| {
        let mut asking = request();
        asking.stopping.max_new_tokens = max_new_tokens;
        asking
    };
    let granted = |asked, tokens| {
        outcome(asking(asked), tokens).map(|valid| valid.assignments[0].submission.max_new_tokens.0)
    };
    assert_eq!(granted(Some(90), 10), Ok(90));
    assert_eq!(granted(None, 10), Ok(90));
    assert_eq!(granted(None, 99), Ok(1));
    assert_eq!(
        granted(Some(91), 10).unwrap_err(),
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 100. Given: 10 `inputs` tokens and 91 \
         `max_new_tokens`"
    );
    assert_eq!(
        granted(None, 100).unwrap_err(),
        "Input validation error: `inputs` must have less than 99 tokens. Given: 100"
    );
    let truncated = TextRequest { truncate: Some(3), ..request() };
    let kept = outcome(truncated, 50).unwrap().prompt_tokens;
    assert_eq!(kept, [TokenId(47), TokenId(48), TokenId(49)]);
}

#[test]
fn sampling_happens_when_something_asks_for_it() {
    let d = SamplingRequest::default;
    let cases = [
        (d(), false),
        (SamplingRequest { do_sample: Some(true), ..d() }, true),
        (SamplingRequest { temperature: Some(0.5), ..d() }, true),
        (SamplingRequest { temperature: Some(1.0), top_p: Some(1.0), typical_p: Some(1.0), ..d() }, false),
        (SamplingRequest { top_k: Some(3), ..d() }, true),
        (SamplingRequest { min_p: Some(0.1), ..d() }, true),
        (SamplingRequest { min_p: Some(0.0), ..d() }, false),
        (SamplingRequest { do_sample: Some(false), temperature: Some(0.5), ..d() }, false),
        (SamplingRequest { seed: Some(3), ..d() }, false),
    ];
    for (sampling, expected) in cases {
        let valid = outcome(TextRequest { sampling, ..request() }, 1).unwrap();
        let seeded = valid.assignments[0].submission.sampling.selection != Selection::Greedy;
        assert_eq!((seeded, valid.seed.is_some()), (expected, expected));
    }
}

#[test]
fn choices_differ_in_nothing_but_their_number() {
    let sampling = SamplingRequest { seed: Some(7), do_sample: Some(true), ..SamplingRequest::default() };
    let several =
        TextRequest { choices: 3, sampling, prompt_logprobs: PromptLogprobs::Return, ..request() };
    let submissions = |request: TextRequest| -> Vec<Submission> {
        let assignments = outcome(request, 5).unwrap().assignments;
        assignments.into_iter().map(|assignment| assignment.submission).collect()
    };
    let alone = submissions(TextRequest { choices: 1, ..several.clone() });
    let several = submissions(several);
    assert_eq!((several.len(), &several[..1]), (3, &alone[..]));
    for (choice, submission) in (0..).zip(several) {
        let sampling = of_choice(&alone[0].sampling, choice);
        let prompt_logprobs = submission.prompt_logprobs;
        assert_eq!(prompt_logprobs == PromptLogprobs::Return, choice == 0);
        assert_eq!(submission, Submission { sampling, prompt_logprobs, ..alone[0].clone() });
    }
}
