//! The JSON files of a model's folder: `config.json`, `generation_config.json` and `tokenizer_config.json`, with a zero
//! byte between them.

use std::cell::LazyCell;

use lockstep_router::chat::{ChatTemplate, Clock, TemplateTokens, template_sources};
use lockstep_router::validation::SamplingDefaults;
use lockstep_shard::decoder::{Dtype, ModelSpec};
use lockstep_shard::forecast::Forecast;
use serde_json::Value;

use crate::folder::Folder;

thread_local! {
    static FOLDER: LazyCell<Folder> = const { LazyCell::new(Folder::new) };
}

/// The model is one that can be served, split over ranks or not at all, or it is said what is wrong with it.
pub fn check(data: &[u8]) {
    let mut files = data.splitn(3, |byte| *byte == 0);
    let mut next = || files.next().unwrap_or_default();
    let (config, generation, tokenizer) = (next(), next(), next());
    FOLDER.with(|folder| {
        folder.write("config.json", config);
        match ModelSpec::read(&folder.files()) {
            Ok(spec) => check_split(&spec),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        let json = |bytes| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let _ = SamplingDefaults::from_generation_config(&json(generation));
        let tokenizer = json(tokenizer);
        let tokens = TemplateTokens::from_files(&tokenizer, &json(generation));
        let sources = template_sources(&folder.files(), &tokenizer);
        let _ = sources.map(|sources| ChatTemplate::of_several(&sources, tokens, Clock::System));
    });
}

fn check_split(spec: &ModelSpec) {
    for world_size in [1, 2, 3] {
        match Forecast::new(spec.clone(), Dtype::Bfloat16, world_size) {
            Ok(forecast) => assert!(!forecast.to_string().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
