//! Whether a text carries the watermark of the sampling chain: counts its tokens on the green lists of the tokens
//! before them (Kirchenbauer et al. 2023, "A watermark for large language models").

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use lockstep_models::ModelFiles;
use lockstep_proto::{GreenList, TokenId};
use lockstep_router::tokenizer::{SpecialTokens, Tokenizer, TokenizerError};
use serde::Serialize;
use thiserror::Error;

use crate::args::Repeats;

/// Reads after "failed to".
#[derive(Debug, Error)]
pub enum DetectError {
    /// The text cannot be had.
    #[error("read the text from {place}: {source}")]
    Read {
        /// A file or standard input.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// No list favours such a share.
    #[error("look for a watermark of gamma {found}: it must be > 0 and < 1")]
    Gamma {
        /// What was asked for.
        found: f32,
    },
    /// Nothing can be counted.
    #[error("look for a watermark: found {tokens} tokens of text, expected 2 at least")]
    TooShort {
        /// How many there are.
        tokens: usize,
    },
}

/// How a text's tokens fall on green lists.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// Tokens that were counted: each but the first, and each pair with its predecessor once.
    pub tokens: usize,
    /// Those on the green list of the token before.
    pub green: usize,
    /// Their share.
    pub green_share: f64,
    /// The share expected of a text without a watermark.
    pub gamma: f64,
    /// Deviations by which there are more than expected.
    pub z_score: f64,
    /// How likely so many are in a text without a watermark.
    pub p_value: f64,
    /// Whether the score is above the threshold.
    pub watermarked: bool,
}

/// What tells one reading of the same tokens from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Criteria {
    /// The share of the vocabulary that the watermark favours.
    pub gamma: f32,
    /// The least score of a marked text.
    pub threshold: f64,
    /// What becomes of a pair of tokens that comes again.
    pub repeats: Repeats,
}

impl Evidence {
    /// Of the tokens of a text in their order.
    ///
    /// # Errors
    /// When no token has one before it, or `gamma` is no share.
    pub fn of(tokens: &[TokenId], criteria: Criteria) -> Result<Self, DetectError> {
        let Criteria { gamma, threshold, repeats } = criteria;
        if gamma.is_nan() || gamma <= 0.0 || gamma >= 1.0 {
            return Err(DetectError::Gamma { found: gamma });
        }
        let mut seen = BTreeSet::new();
        let pairs = tokens.windows(2).map(|pair| (pair[0], pair[1]));
        let counted: Vec<(TokenId, TokenId)> = match repeats {
            Repeats::Once => pairs.filter(|pair| seen.insert(*pair)).collect(),
            Repeats::Each => pairs.collect(),
        };
        if counted.is_empty() {
            return Err(DetectError::TooShort { tokens: tokens.len() });
        }
        let is_green =
            |(previous, token): &&(TokenId, TokenId)| GreenList::new(gamma, *previous).holds(*token);
        let green = counted.iter().filter(is_green).count();
        let (total, found, gamma) = (counted.len() as f64, green as f64, f64::from(gamma));
        let z_score = (found - gamma * total) / (total * gamma * (1.0 - gamma)).sqrt();
        Ok(Self {
            tokens: counted.len(),
            green,
            green_share: found / total,
            gamma,
            z_score,
            p_value: 0.5 * libm::erfc(z_score / std::f64::consts::SQRT_2),
            watermarked: z_score > threshold,
        })
    }

    /// One line of JSON: the fields by their names.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, green, green_share, gamma, z_score, p_value, watermarked } = self;
        let verdict = if *watermarked { "watermarked" } else { "no watermark found" };
        writeln!(f, "tokens       {tokens}")?;
        writeln!(
            f,
            "green        {green} ({:.1} %; {:.1} % expected)",
            green_share * 100.0,
            gamma * 100.0
        )?;
        writeln!(f, "z-score      {z_score:.2}")?;
        writeln!(f, "p-value      {p_value:.2e}")?;
        write!(f, "verdict      {verdict}")
    }
}

/// The tokens of a text, none added, by a model's tokenizer.
///
/// # Errors
/// When the tokenizer cannot be used.
pub fn tokens(text: &str, files: &ModelFiles) -> Result<Vec<TokenId>, TokenizerError> {
    Tokenizer::load(files)?.encode(text, SpecialTokens::Skip)
}

/// The text that was asked about: a file's, or all there is on standard input.
///
/// # Errors
/// When it cannot be read or is no UTF-8.
pub fn read_text(file: Option<&Path>) -> Result<String, DetectError> {
    let mut text = String::new();
    let (place, read) = match file {
        Some(path) => (path.display().to_string(), fs::read_to_string(path).map(|read| text = read)),
        None => ("standard input".to_owned(), io::stdin().lock().read_to_string(&mut text).map(drop)),
    };
    read.map(|()| text).map_err(|source| DetectError::Read { place, source })
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Watermark;

    use super::*;

    const USUAL: Criteria = Criteria { gamma: 0.5, threshold: 4.0, repeats: Repeats::Once };

    /// A walk over `vocabulary` tokens whose every step is green, or none, or as it comes.
    fn walk(steps: u32, wanted: Option<bool>) -> Vec<TokenId> {
        let mut tokens = vec![TokenId(1)];
        for step in 0..steps {
            let green = Watermark::USUAL.after(tokens[tokens.len() - 1]);
            let candidates = (0..1000).map(|offset| TokenId((step * 7919 + offset * 31) % 100_003));
            let token = candidates
                .into_iter()
                .find(|token| wanted.is_none_or(|wanted| green.holds(*token) == wanted));
            tokens.extend(token);
        }
        tokens
    }

    #[test]
    fn marked_texts_are_told_from_others() {
        let green = Evidence::of(&walk(100, Some(true)), USUAL).expect("it is long enough");
        assert_eq!((green.tokens, green.green, green.watermarked), (100, 100, true));
        assert!((green.z_score - 10.0).abs() < 1e-9 && green.p_value < 1e-22, "{green:?}");
        let red = Evidence::of(&walk(100, Some(false)), USUAL).expect("it is long enough");
        assert_eq!((red.green, red.watermarked), (0, false));
        assert!((red.z_score + 10.0).abs() < 1e-9 && red.p_value > 0.999, "{red:?}");
        let plain = Evidence::of(&walk(100, None), USUAL).expect("it is long enough");
        assert!(plain.z_score.abs() < 4.0 && !plain.watermarked, "{plain:?}");
    }

    #[test]
    fn what_is_said_again_is_no_evidence() {
        let green = walk(8, Some(true));
        let again: Vec<TokenId> = green.iter().copied().cycle().take(900).collect();
        let once = Evidence::of(&again, USUAL).expect("it is long enough");
        assert_eq!((once.tokens, once.watermarked), (9, false));
        let each =
            Evidence::of(&again, Criteria { repeats: Repeats::Each, ..USUAL }).expect("it is long enough");
        assert_eq!((each.tokens, each.watermarked), (899, true));
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        let cases = [
            (vec![], USUAL, "look for a watermark: found 0 tokens of text, expected 2 at least"),
            (
                walk(9, None),
                Criteria { gamma: 1.0, ..USUAL },
                "look for a watermark of gamma 1: it must be > 0 and < 1",
            ),
        ];
        for (tokens, criteria, expected) in cases {
            let error = Evidence::of(&tokens, criteria).expect_err("it cannot be judged");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_verdict_reads_well() {
        let evidence = Evidence::of(&walk(64, Some(true)), USUAL).expect("it is long enough");
        let expected = "tokens       64\ngreen        64 (100.0 %; 50.0 % expected)\nz-score      8.00\n\
                        p-value      6.22e-16\nverdict      watermarked";
        assert_eq!(evidence.to_string(), expected);
        let json: serde_json::Value = serde_json::from_str(&evidence.to_json()).expect("JSON");
        assert_eq!((&json["tokens"], &json["watermarked"]), (&64.into(), &true.into()));
    }
}
