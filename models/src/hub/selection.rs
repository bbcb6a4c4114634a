//! Which files of a repository a model is served from. Pure: names in, names out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use thiserror::Error;

/// Names the weight files where there are several.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Holds all weights where they are not many.
pub(super) const WHOLE: &str = "model.safetensors";

/// Says what the model is made of.
pub(super) const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// Files a model is served from, beside its weights.
const FILES: &[&str] = &[
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];

/// Templates beside the default one, such as the one for tools.
const TEMPLATES: &str = "additional_chat_templates/";

/// Weights that can run code when they are read.
const PICKLES: &[&str] = &[".bin", ".pt", ".pth", ".ckpt"];

/// What tokenizers that come without tokenizer.json are made of.
const SLOW_TOKENIZERS: &[&str] =
    &["tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt"];

/// How many names an error shows.
const NAMES_SHOWN: usize = 3;

/// What to fetch, and in which order: a mistake shows before the long download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Configuration, tokenizer, templates and the index.
    pub(super) small: Vec<String>,
    /// The rest.
    pub(super) weights: Weights,
}

/// Where the tensors are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// In these files.
    Files(Vec<String>),
    /// In those that [`INDEX`] names.
    Indexed,
}

/// What is there is no model of a kind that can be served.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Nothing says what the model is made of.
    #[error("expected config.json, found {found}; is it a text model, and whole (no adapter)?")]
    NoConfig {
        /// What is there instead.
        found: String,
    },
    /// The tokenizer is in a format that is not read.
    #[error(
        "expected tokenizer.json, found {found}, which is not read; with transformers, \
         AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes tokenizer.json; serve a folder that \
         holds it"
    )]
    NoFastTokenizer {
        /// What is there instead.
        found: String,
    },
    /// The weights are pickles.
    #[error(
        "expected *.safetensors, found {found}; such files can run code when they are read; convert them with \
         https://huggingface.co/spaces/safetensors/convert, or with transformers' save_pretrained, and serve \
         that folder"
    )]
    PickleOnly {
        /// The pickles.
        found: String,
    },
    /// The weights are GGUF files, of which one has to be chosen.
    #[error("expected *.safetensors, found {found}; choose one of them with --gguf-file {first}")]
    GgufOnly {
        /// The GGUF files.
        found: String,
        /// The first of them.
        first: String,
    },
    /// No weights at all.
    #[error("expected model.safetensors, or parts with {INDEX}, found {found}")]
    NoWeights {
        /// What is there instead.
        found: String,
    },
    /// The file that was chosen is not there.
    #[error("expected {asked}, found {found}; check --gguf-file")]
    NoSuchGguf {
        /// The chosen one.
        asked: String,
        /// The GGUF files that are there.
        found: String,
    },
    /// The index names a file that is not there.
    #[error(
        "its {INDEX} names {shard}, which is not there; its owners may mend it, or another revision be whole"
    )]
    NoShard {
        /// The file.
        shard: String,
    },
}

/// What no model goes without, beside its weights.
pub(super) fn always_needed() -> Vec<String> {
    vec![CONFIG.to_owned(), TOKENIZER.to_owned()]
}

/// What to fetch of `there`.
pub(super) fn select(there: &[String]) -> Result<Selection, Problem> {
    let weights = weights_of(there)?;
    select_config(there)?;
    if !there.iter().any(|file| file == TOKENIZER) {
        let slow = there.iter().filter(|file| SLOW_TOKENIZERS.contains(&file.as_str()));
        return Err(Problem::NoFastTokenizer { found: list(slow) });
    }
    let small = there.iter().filter(|file| FILES.contains(&file.as_str()) || is_template(file));
    Ok(Selection { small: small.cloned().collect(), weights })
}

/// The configuration alone.
pub(super) fn select_config(there: &[String]) -> Result<Selection, Problem> {
    if !there.iter().any(|file| file == CONFIG) {
        return Err(Problem::NoConfig { found: list(there.iter()) });
    }
    Ok(Selection { small: vec![CONFIG.to_owned()], weights: Weights::Files(Vec::new()) })
}

/// The one GGUF file that was chosen.
pub(super) fn select_gguf(there: &[String], asked: &str) -> Result<Selection, Problem> {
    let ggufs: Vec<&String> = there.iter().filter(|file| file.ends_with(".gguf")).collect();
    if !ggufs.iter().any(|file| *file == asked) || !is_plain(asked) {
        return Err(Problem::NoSuchGguf { asked: asked.to_owned(), found: list(ggufs.into_iter()) });
    }
    Ok(Selection { small: Vec::new(), weights: Weights::Files(vec![asked.to_owned()]) })
}

/// The weight files that an index names, each once.
pub(super) fn shards(index: &[u8]) -> Result<BTreeSet<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index)?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_plain(shard)) {
        None => Ok(shards),
        Some(shard) => {
            Err(serde::de::Error::custom(format!("{shard:?} is no name of a file in the model")))
        }
    }
}

/// Whether it names a file inside the folder it is relative to.
pub(super) fn is_plain(file: &str) -> bool {
    let legal = |part: &str| !part.is_empty() && part != "." && part != "..";
    file.split('/').all(legal) && !file.contains(['\\', '\0'])
}

/// The first few names, and how many more there are.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    let shown = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "nothing of the kind".to_owned(),
        count if count > NAMES_SHOWN => format!("{shown} and {} more", count - NAMES_SHOWN),
        _ => shown,
    }
}

/// Where the tensors are in `there`.
pub(super) fn weights_of(there: &[String]) -> Result<Weights, Problem> {
    if there.iter().any(|file| file == INDEX) {
        return Ok(Weights::Indexed);
    }
    let is_weights = |file: &&String| {
        file.ends_with(".safetensors") && !file.contains('/') && !file.starts_with("adapter_")
    };
    let all: Vec<String> = there.iter().filter(is_weights).cloned().collect();
    if let Some(whole) = all.iter().find(|file| *file == WHOLE) {
        return Ok(Weights::Files(vec![whole.clone()]));
    }
    if !all.is_empty() {
        return Ok(Weights::Files(all));
    }
    let ending = |endings: &[&str]| -> Vec<&String> {
        there.iter().filter(|file| endings.iter().any(|ending| file.ends_with(ending))).collect()
    };
    let ggufs = ending(&[".gguf"]);
    if let Some(first) = ggufs.first() {
        return Err(Problem::GgufOnly { first: (*first).clone(), found: list(ggufs.into_iter()) });
    }
    let pickles = ending(PICKLES);
    if !pickles.is_empty() {
        return Err(Problem::PickleOnly { found: list(pickles.into_iter()) });
    }
    Err(Problem::NoWeights { found: list(there.iter()) })
}

fn is_template(file: &str) -> bool {
    let name = file.strip_prefix(TEMPLATES).and_then(|name| name.strip_suffix(".jinja"));
    name.is_some_and(|name| !name.contains('/') && is_plain(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_is_served_from_is_selected() {
        let mut there = names(&[
            ".gitattributes",
            "README.md",
            "additional_chat_templates/deep/er.jinja",
            "additional_chat_templates/tool_use.jinja",
            "config.json",
            "consolidated.safetensors",
            "model.safetensors",
            "onnx/model.safetensors",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
        ]);
        let small = names(&["additional_chat_templates/tool_use.jinja", "config.json", "tokenizer.json"]);
        let whole = Weights::Files(names(&["model.safetensors"]));
        assert_eq!(select(&there), Ok(Selection { small, weights: whole }));
        there.push(INDEX.to_owned());
        assert!(select(&there).is_ok_and(|selection| selection.weights == Weights::Indexed));
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let found = |text: &str| text.to_owned();
        let cases = [
            (
                names(&["config.json", "tokenizer.json", "pytorch_model.bin"]),
                Problem::PickleOnly { found: found("pytorch_model.bin") },
            ),
            (
                names(&["a.Q4_K_M.gguf", "b.gguf", "c.gguf", "d.gguf"]),
                Problem::GgufOnly {
                    found: found("a.Q4_K_M.gguf, b.gguf, c.gguf and 1 more"),
                    first: found("a.Q4_K_M.gguf"),
                },
            ),
            (
                names(&["config.json", "model.safetensors", "tokenizer.model"]),
                Problem::NoFastTokenizer { found: found("tokenizer.model") },
            ),
            (
                names(&["model.safetensors", "params.json"]),
                Problem::NoConfig { found: found("model.safetensors, params.json") },
            ),
            (
                names(&["adapter_model.safetensors", "config.json"]),
                Problem::NoWeights { found: found("adapter_model.safetensors, config.json") },
            ),
        ];
        for (there, problem) in cases {
            assert_eq!(select(&there), Err(problem));
        }
    }

    #[test]
    fn an_index_names_each_part_once_and_none_outside() {
        let index = br#"{"metadata":{},"weight_map":{"a":"2.safetensors","b":"1.safetensors","c":"1.safetensors"}}"#;
        let shards_named = shards(index).expect("it is an index");
        assert_eq!(shards_named.into_iter().collect::<Vec<_>>(), ["1.safetensors", "2.safetensors"]);
        for outside in ["../x.safetensors", "/x.safetensors", ""] {
            let index = format!(r#"{{"weight_map":{{"a":"{outside}"}}}}"#);
            assert!(shards(index.as_bytes()).is_err(), "{outside}");
        }
    }

    #[test]
    fn a_gguf_file_has_to_be_there() {
        let there = names(&["a.gguf", "README.md"]);
        let weights = Weights::Files(names(&["a.gguf"]));
        assert_eq!(select_gguf(&there, "a.gguf"), Ok(Selection { small: vec![], weights }));
        let problem = Problem::NoSuchGguf { asked: "b.gguf".to_owned(), found: "a.gguf".to_owned() };
        assert_eq!(select_gguf(&there, "b.gguf"), Err(problem));
    }
}
