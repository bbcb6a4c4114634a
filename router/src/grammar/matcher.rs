//! One answer's place in its grammar.

use std::sync::Arc;

use llguidance::Matcher;
use lockstep_proto::TokenId;

use super::GrammarError;
use super::compile::message_of;

/// The tokens that may come next, one bit an id, least significant bit first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed(Arc<[u8]>);

impl Allowed {
    pub(super) fn by(matcher: &mut Matcher) -> Result<Self, GrammarError> {
        let mask = matcher.compute_mask_or_eos().map_err(|error| stuck(&error.to_string()))?;
        Ok(Self(mask.as_slice().iter().flat_map(|word| word.to_le_bytes()).collect()))
    }

    /// The bits for a model of `vocabulary` tokens; those past the tokenizer's are not allowed.
    pub fn to_bits(&self, vocabulary: u32) -> Vec<u8> {
        let mut bits = self.0.to_vec();
        bits.resize((vocabulary as usize).div_ceil(8), 0);
        bits
    }

    /// Whether `token` may come next.
    pub fn contains(&self, token: TokenId) -> bool {
        self.0.get(token.index() / 8).is_some_and(|byte| byte >> (token.index() % 8) & 1 == 1)
    }
}

/// What comes next in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    /// These tokens, in any case; mostly none.
    pub forced: Vec<TokenId>,
    /// Then one of these.
    pub allowed: Allowed,
}

/// Follows the tokens of one answer. For the CPU pool: a step takes microseconds mostly, a few milliseconds
/// at the very most.
pub struct TokenMatcher(Matcher);

impl TokenMatcher {
    pub(super) fn new(fresh: Matcher) -> Self {
        Self(fresh)
    }

    /// Takes the next token, and says what follows it: the tokens that must, which are taken too, and those that
    /// may then: an end-of-sequence token where the answer may be over, and nothing else where it must be.
    ///
    /// # Errors
    /// When the token does not follow, or it takes more work than is allowed to say what does.
    pub fn advance(&mut self, token: TokenId) -> Result<Following, GrammarError> {
        self.0.consume_token(token.0).map_err(|error| stuck(&error.to_string()))?;
        let forced = forced_by(&mut self.0)?;
        Ok(Following { forced, allowed: Allowed::by(&mut self.0)? })
    }
}

/// The tokens that must come next, whatever the model says. The matcher has taken them.
pub(super) fn forced_by(matcher: &mut Matcher) -> Result<Vec<TokenId>, GrammarError> {
    let mut forced = Vec::new();
    while !matcher.is_stopped() {
        let tokens = matcher.compute_ff_tokens();
        if tokens.is_empty() {
            break;
        }
        matcher.consume_tokens(&tokens).map_err(|error| stuck(&error.to_string()))?;
        forced.extend(tokens.into_iter().map(TokenId));
    }
    Ok(forced)
}

fn stuck(reason: &str) -> GrammarError {
    GrammarError::Stuck(message_of(reason))
}
