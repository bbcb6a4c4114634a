//! Models as their authors publish them, from config.json alone: each has the parameters it is known to
//! have, so no tensor is forgotten or made up, and splits over the ranks its shape allows.

use std::path::Path;

use lockstep_models::ModelFiles;
use lockstep_shard::decoder::{Dtype, ModelSpec};
use lockstep_shard::forecast::Forecast;

/// Name, parameters as the Hub counts them, most ranks.
const PUBLISHED: &[(&str, u64, u32)] = &[
    ("google--gemma-2-2b-it", 2_614_341_888, 4),
    ("meta-llama--Meta-Llama-3.1-8B-Instruct", 8_030_261_248, 8),
    ("microsoft--Phi-3-mini-4k-instruct", 3_821_079_552, 8),
    ("Qwen--Qwen2.5-7B-Instruct", 7_615_616_512, 4),
    ("meta-llama--Llama-3.2-1B-Instruct", 1_235_814_400, 8),
    ("mistralai--Mistral-7B-Instruct-v0.3", 7_248_023_552, 8),
    ("mistralai--Mixtral-8x7B-Instruct-v0.1", 46_702_792_704, 8),
    ("Qwen--Qwen3-30B-A3B", 30_532_122_624, 4),
    ("microsoft--phi-4", 14_659_507_200, 2),
    ("google--gemma-3-1b-it", 999_885_952, 1),
    ("bigcode--starcoder2-3b", 3_030_371_328, 2),
];

fn spec(name: &str) -> ModelSpec {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published").join(name);
    ModelSpec::read(&ModelFiles::Folder(folder)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_model_has_the_parameters_it_is_known_to_have() {
    for (name, parameters, _) in PUBLISHED {
        assert_eq!(spec(name).parameters(), *parameters, "{name}");
    }
}

#[test]
fn every_model_splits_over_the_ranks_its_shape_allows() {
    for (name, _, most) in PUBLISHED {
        for ranks in [1, 2, 4, 8, 16] {
            let split = Forecast::new(spec(name), Dtype::Bfloat16, ranks);
            assert_eq!(split.is_ok(), ranks <= *most, "{name} over {ranks}");
        }
    }
}

#[test]
fn weights_are_shared_out_once() {
    for (name, parameters, most) in PUBLISHED {
        for ranks in [1, *most] {
            let weights = Forecast::new(spec(name), Dtype::Bfloat16, ranks).expect("it splits").weights().0;
            // Two bytes a parameter; a tied embedding is packed as the head, one of its own stays in its
            // file. Norms, biases and the tables of angles are small and on every rank.
            let least = parameters * 2 * 7 / 10;
            let most = parameters * 2 * 11 / 10 + u64::from(ranks) * (100 << 20);
            assert!((least..most).contains(&weights), "{name} over {ranks}: {weights}");
        }
    }
}

#[test]
fn the_forecast_reads_as_a_table() {
    let forecast = |name, ranks| Forecast::new(spec(name), Dtype::Bfloat16, ranks).expect("it splits");
    insta::assert_snapshot!(forecast("google--gemma-2-2b-it", 2));
    insta::assert_snapshot!(forecast("Qwen--Qwen3-30B-A3B", 4));
    insta::assert_snapshot!(forecast("microsoft--Phi-3-mini-4k-instruct", 1));
}
