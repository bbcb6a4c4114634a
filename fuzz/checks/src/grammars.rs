//! Grammars that clients send. The first byte chooses the kind, the rest is the grammar.

use lockstep_proto::TokenId;
use lockstep_router::grammar::{Allowed, CompiledGrammar, Completeness, Grammar, Grammars};
use lockstep_router::testing::{VOCABULARY_SIZE, ids};
use lockstep_router::tokenizer::Vocabulary;
use tokio::runtime::Runtime;

use crate::server::tokenizer;

/// Tokens of an answer at most.
const LONGEST_ANSWER: usize = 24;

struct Place {
    runtime: Runtime,
    grammars: Grammars,
    vocabulary: std::sync::Arc<Vocabulary>,
}

thread_local! {
    static PLACE: Place = Place::new();
}

impl Place {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let tokenizer = std::sync::Arc::new(tokenizer());
        let vocabulary = std::sync::Arc::clone(tokenizer.vocabulary());
        Self {
            runtime: runtime.expect("a runtime needs no more than memory"),
            grammars: Grammars::inline(tokenizer, vec![TokenId(ids::IM_END)]),
            vocabulary,
        }
    }
}

/// A grammar is refused, or each answer it allows token by token is one that it describes byte by byte.
pub fn check(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(text).into_owned();
    let grammar = match kind % 4 {
        0 => Grammar::JsonSchema(text),
        1 => Grammar::Regex(text),
        2 => Grammar::Lark(text),
        _ => Grammar::Choice(text.lines().map(str::to_owned).collect()),
    };
    PLACE.with(|place| {
        let compiled = place.runtime.block_on(place.grammars.compile(grammar));
        if let Ok((grammar, _)) = compiled {
            let seed = data.iter().fold(7_u64, |seed, byte| scattered(seed ^ u64::from(*byte)));
            check_answer(&grammar, &place.vocabulary, seed);
        }
    });
}

fn check_answer(grammar: &CompiledGrammar, vocabulary: &Vocabulary, mut seed: u64) {
    let mut matcher = grammar.matcher();
    let mut following = grammar.first().clone();
    let mut tokens = Vec::new();
    let mut completeness = Completeness::Beginning;
    while tokens.len() < LONGEST_ANSWER {
        tokens.extend(&following.forced);
        seed = scattered(seed);
        let Some(token) = drawn(&following.allowed, seed) else { panic!("nothing follows {tokens:?}") };
        if token.0 == ids::IM_END {
            completeness = Completeness::Complete;
            break;
        }
        tokens.push(token);
        match matcher.advance(token) {
            Ok(next) => following = next,
            // It takes more work than is allowed to say what follows.
            Err(_) => break,
        }
    }
    if tokens.iter().any(|token| vocabulary.is_special(*token)) {
        return;
    }
    let text: Vec<u8> = tokens.iter().flat_map(|token| vocabulary.bytes(*token)).copied().collect();
    if let Err(error) = grammar.check(&text, completeness) {
        panic!("{:?}, {completeness:?}: {error}", String::from_utf8_lossy(&text));
    }
}

/// One of those that are allowed.
fn drawn(allowed: &Allowed, seed: u64) -> Option<TokenId> {
    let first = (seed % u64::from(VOCABULARY_SIZE)) as u32;
    let mut ids = (first..VOCABULARY_SIZE).chain(0..first).map(TokenId);
    ids.find(|token| allowed.contains(*token))
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn scattered(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
