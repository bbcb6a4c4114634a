//! What was typed.

use clap::Args;

use crate::BenchError;

/// What load to drive, and where.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub url: String,
    /// How many requests run at once.
    #[arg(long, default_value_t = 8)]
    pub concurrency: usize,
    /// How many requests are measured.
    #[arg(long, default_value_t = 64)]
    pub requests: usize,
    /// About how long each prompt is: words of this benchmark are a token each for most tokenizers.
    #[arg(long, default_value_t = 128)]
    pub prompt_tokens: usize,
    /// How many tokens each answer may have.
    #[arg(long, default_value_t = 64)]
    pub max_new_tokens: u32,
    /// Start this many requests a second, however many run already, and count each from when it was due
    /// (an open loop; --concurrency is not used).
    #[arg(long)]
    pub rate: Option<f64>,
    /// About how many of the prompt's tokens are the same in every prompt, so that they can be cached.
    #[arg(long, default_value_t = 0)]
    pub shared_prefix: usize,
    /// Requests sent before measuring.
    #[arg(long, default_value_t = 2)]
    pub warm_up: usize,
    /// Which prompts: equal seeds make equal prompts.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The key of a server that wants one.
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub json: bool,
}

impl BenchArgs {
    /// Whether they make a load.
    ///
    /// # Errors
    /// When they ask for nothing.
    pub fn check(&self) -> Result<(), BenchError> {
        let counts = [
            ("concurrency", self.concurrency),
            ("requests", self.requests),
            ("prompt-tokens", self.prompt_tokens),
        ];
        for (name, count) in counts {
            if count == 0 {
                return Err(BenchError::Argument { name, found: count.to_string() });
            }
        }
        match self.rate {
            Some(rate) if !(rate > 0.0 && rate.is_finite()) => {
                Err(BenchError::Argument { name: "rate", found: rate.to_string() })
            }
            Some(_) | None => Ok(()),
        }
    }
}
