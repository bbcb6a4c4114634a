//! From a grammar to what answers are held to: once for the model's tokens, once for plain bytes.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};
use llguidance::{Matcher, ParserFactory};
use lockstep_proto::TokenId;

use super::matcher::{Allowed, Following, forced_by};
use super::spec::MAX_BYTES;
use super::tokens::tokens_of;
use super::{CallGrammar, Grammar, GrammarError, TokenMatcher};
use crate::cpu_pool::CpuPool;
use crate::tokenizer::Tokenizer;

/// Of a message of the library, which repeats what it refuses.
const MAX_MESSAGE_CHARACTERS: usize = 400;

/// Whether an answer must have come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// It must.
    Complete,
    /// It was cut off, by its length or by a stop string.
    Beginning,
}

/// Compiles for one vocabulary.
pub(super) struct Compiler {
    tokens: ParserFactory,
    bytes: ParserFactory,
    pools: Pools,
}

/// Where work on grammars is done. Compiling never takes the threads that masks are computed on.
#[derive(Clone)]
pub(super) struct Pools {
    pub(super) compile: CpuPool,
    pub(super) masks: CpuPool,
}

/// A grammar that answers can be held to.
pub struct CompiledGrammar {
    /// Of the model's tokens, after those an answer must begin with. Never fed: each sequence has its own copy.
    tokens: Mutex<Matcher>,
    /// Of bytes.
    bytes: Mutex<Matcher>,
    first: Following,
    is_json: bool,
    shown: Arc<[TokenId]>,
    pools: Pools,
}

impl Compiler {
    /// Takes the vocabulary in, which takes a while for a large one.
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        end_tokens: &[TokenId],
        pools: Pools,
    ) -> Result<Self, GrammarError> {
        let refused = |error| GrammarError::Refused(format!("{error}"));
        let env = tokens_of(tokenizer, end_tokens)?;
        let mut tokens = ParserFactory::new_simple(&env).map_err(refused)?;
        let byte_env = ApproximateTokEnv::single_byte_env();
        let mut bytes =
            ParserFactory::new(&byte_env, InferenceCapabilities::default(), &[]).map_err(refused)?;
        for factory in [&mut tokens, &mut bytes] {
            factory.quiet();
            *factory.limits_mut() = limits();
        }
        Ok(Self { tokens, bytes, pools })
    }

    /// Takes as long as the limits allow: some tens of milliseconds.
    pub(super) fn compile(&self, grammar: &Grammar) -> Result<CompiledGrammar, GrammarError> {
        let found = grammar.size_bytes();
        if found > MAX_BYTES {
            return Err(GrammarError::TooLarge { found, limit: MAX_BYTES });
        }
        let (of_tokens, of_bytes) = top_levels(grammar)?;
        let mut tokens = matcher(&self.tokens, of_tokens)?;
        let bytes = matcher(&self.bytes, of_bytes)?;
        let nothing = |error| GrammarError::Refused(format!("nothing matches it: {error}"));
        let forced = forced_by(&mut tokens).map_err(nothing)?;
        // Of a copy: what is computed for a mask stays in the matcher.
        let allowed = Allowed::by(&mut tokens.deep_clone()).map_err(nothing)?;
        let first = Following { forced, allowed };
        // Warnings name keywords that would be ignored.
        if let Some(warning) = tokens.grammar_warnings().into_iter().next() {
            return Err(GrammarError::Refused(message_of(&warning)));
        }
        Ok(CompiledGrammar {
            tokens: Mutex::new(tokens),
            bytes: Mutex::new(bytes),
            first,
            is_json: matches!(grammar, Grammar::JsonSchema(_)),
            shown: match grammar {
                Grammar::Calls(calls) => calls.shown.as_slice().into(),
                Grammar::JsonSchema(_) | Grammar::Regex(_) | Grammar::Choice(_) | Grammar::Lark(_) => {
                    Arc::default()
                }
            },
            pools: self.pools.clone(),
        })
    }
}

impl CompiledGrammar {
    /// A matcher that has seen the tokens an answer must begin with.
    pub fn matcher(&self) -> TokenMatcher {
        TokenMatcher::new(copy_of(&self.tokens))
    }

    /// Which tokens an answer must begin with, and which may follow them.
    pub fn first(&self) -> &Following {
        &self.first
    }

    /// Special tokens whose names are part of the text.
    pub fn shown(&self) -> &Arc<[TokenId]> {
        &self.shown
    }

    /// Where its masks are computed.
    pub(crate) fn mask_pool(&self) -> &CpuPool {
        &self.pools.masks
    }

    /// Where its answers are checked.
    pub(crate) fn check_pool(&self) -> &CpuPool {
        &self.pools.compile
    }

    /// Whether `answer` is what the grammar describes, or can become it. Knows nothing of tokens.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, answer: &[u8], completeness: Completeness) -> Result<(), GrammarError> {
        let broken = |reason: &str| GrammarError::Broken(message_of(reason));
        let mut matcher = copy_of(&self.bytes);
        let ids: Vec<u32> = answer.iter().map(|byte| u32::from(*byte)).collect();
        matcher.consume_tokens(&ids).map_err(|error| broken(&error.to_string()))?;
        if completeness == Completeness::Beginning {
            return Ok(());
        }
        let accepted = (matcher.is_stopped() && matcher.stop_reason().is_ok())
            || matcher.is_accepting().map_err(|error| broken(&error.to_string()))?;
        if !accepted {
            return Err(broken("it is not complete"));
        }
        if self.is_json {
            serde_json::from_slice::<serde::de::IgnoredAny>(answer)
                .map_err(|error| broken(&error.to_string()))?;
        }
        Ok(())
    }
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CompiledGrammar").field("is_json", &self.is_json).finish_non_exhaustive()
    }
}

fn copy_of(matcher: &Mutex<Matcher>) -> Matcher {
    // Apart from the original in everything: one answer's states never fill another's limits.
    matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone()
}

/// Below the library's own: a mask takes a few milliseconds at the very most, and a grammar's states a few
/// tens of megabytes.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// For tokens, and for bytes.
fn top_levels(grammar: &Grammar) -> Result<(TopLevelGrammar, TopLevelGrammar), GrammarError> {
    let same = match grammar {
        Grammar::JsonSchema(text) => TopLevelGrammar::from_json_schema(Grammar::schema_of(text)?),
        Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Grammar::Choice(texts) => {
            let quoted: Vec<String> =
                texts.iter().map(|text| serde_json::Value::from(text.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
        }
        Grammar::Lark(text) => {
            Grammar::check_lark(text)?;
            TopLevelGrammar::from_lark(text.clone())
        }
        Grammar::Calls(calls) => return of_calls(calls),
    };
    Ok((same.clone(), same))
}

fn of_calls(calls: &CallGrammar) -> Result<(TopLevelGrammar, TopLevelGrammar), GrammarError> {
    let mut schemas = Vec::with_capacity(calls.schemas.len());
    for (at, schema) in calls.schemas.iter().enumerate() {
        let json_schema = Some(Grammar::schema_of(schema)?);
        schemas.push(GrammarWithLexer { name: Some(format!("f{at}")), json_schema, lark_grammar: None });
    }
    let with = |lark: &str| {
        let mut top = TopLevelGrammar::from_lark(lark.to_owned());
        top.grammars.extend_from_slice(&schemas);
        top
    };
    Ok((with(&calls.tokens), with(&calls.bytes)))
}

fn matcher(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Matcher, GrammarError> {
    let matcher = Matcher::new(factory.create_parser(grammar));
    match matcher.get_error() {
        None => Ok(matcher),
        Some(reason) => Err(GrammarError::Refused(message_of(&reason))),
    }
}

/// The library's message without the state it adds for its own authors, cut where a client stops reading.
pub(super) fn message_of(reason: &str) -> String {
    let end = reason.find("\n<").unwrap_or(reason.len());
    let message = reason[..end].trim();
    match message.char_indices().nth(MAX_MESSAGE_CHARACTERS) {
        None => message.to_owned(),
        Some((end, _)) => format!("{} …", &message[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{byte_level_tokenizer, ids};

    fn compiled(grammar: &Grammar) -> CompiledGrammar {
        let tokenizer = Arc::new(Tokenizer::from_bytes(byte_level_tokenizer().as_bytes()).unwrap());
        let pool = CpuPool::start(1, 1).unwrap();
        let pools = Pools { compile: pool.clone(), masks: pool };
        let compiler = Compiler::new(tokenizer, &[TokenId(ids::IM_END)], pools).unwrap();
        compiler.compile(grammar).unwrap()
    }

    #[test]
    fn an_answer_is_judged_by_its_bytes() {
        let object = compiled(&Grammar::of_schema(&json!({"type": "object", "maxProperties": 0})));
        let regex = compiled(&Grammar::Regex("é[0-9]+".to_owned()));
        let cases: [(&CompiledGrammar, &[u8], bool, bool); 9] = [
            (&object, b"{}", true, true),
            (&object, b"{ }", true, true),
            (&object, b"{", false, true),
            (&object, b"", false, true),
            (&object, b"{}}", false, false),
            (&object, b"[]", false, false),
            (&regex, "é12".as_bytes(), true, true),
            (&regex, &"é".as_bytes()[..1], false, true),
            (&regex, b"e1", false, false),
        ];
        for (grammar, answer, complete, beginning) in cases {
            let shown = String::from_utf8_lossy(answer);
            assert_eq!(grammar.check(answer, Completeness::Complete).is_ok(), complete, "{shown}");
            assert_eq!(grammar.check(answer, Completeness::Beginning).is_ok(), beginning, "{shown}");
        }
    }

    #[test]
    fn what_may_follow_depends_on_the_tokens_alone() {
        let grammar = compiled(&Grammar::Regex("(ab|ba)+[.]\\n\\n".to_owned()));
        // After "b" an "a" must come, which may be part of "ab" just as well: the model chooses.
        let tokens =
            [u32::from(b'a'), ids::AB, u32::from(b'b'), ids::AB, u32::from(b'a'), ids::FULL_STOP_BREAK];
        let tokens = tokens.map(TokenId);
        let forced: [&[u8]; 6] = [b"b", b"", b"", b"", b"", b""];
        let mut one = grammar.matcher();
        let mut following = grammar.first().clone();
        assert_eq!(following.forced, []);
        for (index, token) in tokens.into_iter().enumerate() {
            let allowed = &following.allowed;
            assert!(allowed.contains(token) && !allowed.contains(TokenId(ids::IM_END)), "{index}");
            following = one.advance(token).unwrap();
            assert_eq!(following.forced, bytes(forced[index]), "{index}");
            // Another matcher that is fed the same from its beginning.
            let mut other = grammar.matcher();
            let again = tokens[..=index].iter().map(|token| other.advance(*token).unwrap()).last();
            assert_eq!(again.as_ref(), Some(&following));
        }
        let allowed = following.allowed;
        let only_the_end: Vec<u32> = (0..300).filter(|id| allowed.contains(TokenId(*id))).collect();
        assert_eq!(only_the_end, [ids::IM_END]);
        assert!(grammar.matcher().advance(TokenId(u32::from(b'x'))).is_err());
        assert_eq!(allowed.to_bits(4000).len(), 500);
    }

    #[test]
    fn text_without_a_choice_is_forced_as_the_tokenizer_cuts_it() {
        let schema = json!({"type": "object", "properties": {"é": {"enum": ["left", "lest"]}, "b": {"const": 1}},
            "required": ["é", "b"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}});
        let grammar = compiled(&Grammar::of_schema(&schema));
        assert_eq!(grammar.first().forced, bytes("{\"é\":\"le".as_bytes()));
        let mut matcher = grammar.matcher();
        let following = matcher.advance(TokenId(u32::from(b's'))).unwrap();
        assert_eq!(following.forced, bytes(b"t\",\"b\":1}"));
        assert!(following.allowed.contains(TokenId(ids::IM_END)));
        // A token that says more than the grammar asks for leaves less to force.
        let regex = compiled(&Grammar::Regex("[0-9]ok[.]\\n\\n!".to_owned()));
        let mut matcher = regex.matcher();
        assert_eq!(matcher.advance(TokenId(u32::from(b'7'))).unwrap().forced, bytes(b"ok.\n\n!"));
        // Nothing is forced where the answer may be over.
        let open = compiled(&Grammar::Regex("ab(cd)*".to_owned()));
        let (first, mut matcher) = (open.first(), open.matcher());
        assert!(first.allowed.contains(TokenId(ids::IM_END)), "{first:?}");
        assert_eq!(matcher.advance(TokenId(u32::from(b'c'))).unwrap().forced, bytes(b"d"));
    }

    /// The tokens of single bytes.
    fn bytes(text: &[u8]) -> Vec<TokenId> {
        text.iter().map(|byte| TokenId(u32::from(*byte))).collect()
    }
}
