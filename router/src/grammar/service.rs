//! Compiles on its own threads and keeps what it has compiled.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lockstep_proto::TokenId;
use thiserror::Error;

use super::cache::Cache;
use super::compile::{Compiler, Pools};
use super::{CompiledGrammar, Grammar, GrammarError};
use crate::cpu_pool::{CpuPool, PoolError};
use crate::tokenizer::Tokenizer;

/// Threads that compile and check.
const COMPILE_THREADS: usize = 2;
/// Threads that compute masks, if there are as many cores.
const MAX_MASK_THREADS: usize = 4;
/// The library walks schemas recursively: deep ones need room.
const STACK_BYTES: usize = 64 << 20;
/// How long a grammar is waited for. The library's own limits end its work long before, if the machine
/// is not overloaded.
const COMPILE_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no compiled grammar.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CompileError {
    /// The grammar is to blame.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The threads are.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Everything about grammars that lives as long as the server.
pub struct Grammars(Arc<Inner>);

struct Inner {
    tokenizer: Arc<Tokenizer>,
    end_tokens: Vec<TokenId>,
    pools: Pools,
    /// Made when the first grammar comes: it takes a moment that most servers never need.
    compiler: OnceLock<Result<Compiler, GrammarError>>,
    cache: Cache,
}

impl Grammars {
    /// For one tokenizer and at most `max_requests` answers at a time.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn start(
        tokenizer: Arc<Tokenizer>,
        end_tokens: Vec<TokenId>,
        max_requests: usize,
    ) -> std::io::Result<Self> {
        // An answer has one job at a time; the same room again is for those whose clients have left.
        let queue_capacity_jobs = max_requests.saturating_mul(2);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let pools = Pools {
            compile: CpuPool::start_with_stack(COMPILE_THREADS, queue_capacity_jobs, STACK_BYTES)?,
            masks: CpuPool::start(cores.min(MAX_MASK_THREADS), queue_capacity_jobs)?,
        };
        Ok(Self::over(tokenizer, end_tokens, pools))
    }

    /// The same without threads: see [`CpuPool::inline`].
    pub fn inline(tokenizer: Arc<Tokenizer>, end_tokens: Vec<TokenId>) -> Self {
        Self::over(tokenizer, end_tokens, Pools { compile: CpuPool::inline(), masks: CpuPool::inline() })
    }

    fn over(tokenizer: Arc<Tokenizer>, end_tokens: Vec<TokenId>, pools: Pools) -> Self {
        let compiler = OnceLock::new();
        let cache = Cache::default();
        Self(Arc::new(Inner { tokenizer, end_tokens, pools, compiler, cache }))
    }

    /// A grammar, compiled, and how long that took if it was not in the cache.
    ///
    /// # Errors
    /// When the grammar is not served, or there is no room for it.
    pub async fn compile(
        &self,
        grammar: Grammar,
    ) -> Result<(Arc<CompiledGrammar>, Option<Duration>), CompileError> {
        if let Some(compiled) = self.0.cache.get(&grammar) {
            return Ok((compiled, None));
        }
        let inner = Arc::clone(&self.0);
        let compiling = self.0.pools.compile.run(move || inner.compile_now(grammar));
        let too_slow = |_| GrammarError::TooSlow { limit_s: COMPILE_LIMIT.as_secs() };
        Ok(tokio::time::timeout(COMPILE_LIMIT, compiling).await.map_err(too_slow)???)
    }
}

impl Inner {
    fn compile_now(
        &self,
        grammar: Grammar,
    ) -> Result<(Arc<CompiledGrammar>, Option<Duration>), GrammarError> {
        // Another request's job may have been first.
        if let Some(compiled) = self.cache.get(&grammar) {
            return Ok((compiled, None));
        }
        let compiler = self
            .compiler
            .get_or_init(|| {
                Compiler::new(Arc::clone(&self.tokenizer), &self.end_tokens, self.pools.clone())
            })
            .as_ref()
            .map_err(Clone::clone)?;
        let begun = Instant::now();
        let compiled = Arc::new(compiler.compile(&grammar)?);
        self.cache.insert(grammar, Arc::clone(&compiled));
        Ok((compiled, Some(begun.elapsed())))
    }
}
