//! Tensors of GGUF files, row by row, against what the gguf package widens them to.
//! `models/tests/fixtures/gguf/generate.py` makes the files and the values.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Reference {
    rows: Vec<Row>,
}

/// A row of a tensor under its Hugging Face name, or all of a vector.
#[derive(Deserialize)]
struct Row {
    tensor: String,
    row: usize,
    values: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/gguf").join(name)
}

fn on_each_row(check: impl Fn(&StoredTensor, &Row)) {
    for model in ["llama", "llama3", "qwen2", "qwen3"] {
        let checkpoint = Checkpoint::open(&ModelFiles::Gguf(fixture(&format!("{model}.gguf")))).unwrap();
        let text = std::fs::read_to_string(fixture(&format!("{model}.json"))).unwrap();
        let reference: Reference = serde_json::from_str(&text).unwrap();
        // Every tensor is there under its name, and no other.
        let names: Vec<&str> = checkpoint.tensors.keys().map(String::as_str).collect();
        let mut expected: Vec<&str> = reference.rows.iter().map(|row| row.tensor.as_str()).collect();
        expected.sort_unstable();
        assert_eq!(names, expected, "{model}");
        for row in &reference.rows {
            check(&checkpoint.tensor(&row.tensor).unwrap(), row);
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn rows_of_every_type_and_order_are_widened_to_the_bit() {
    on_each_row(|tensor, row| {
        assert_eq!(bits(&tensor.row(row.row)), bits(&row.values), "{}", row.tensor);
    });
}

#[test]
fn columns_may_begin_and_end_within_a_block() {
    on_each_row(|tensor, row| {
        let length = row.values.len();
        for columns in [0..1, 1..length, length / 4..length / 2, length / 3..length - 1, length - 1..length]
        {
            let mut read = vec![f32::NAN; columns.len()];
            tensor.read(row.row, columns.clone(), &mut read);
            assert_eq!(bits(&read), bits(&row.values[columns.clone()]), "{} {columns:?}", row.tensor);
        }
    });
}

#[test]
fn a_gguf_file_that_is_not_there_is_named() {
    let Err(error) = Checkpoint::open(&ModelFiles::Gguf("/nonexistent/a.gguf".into())) else {
        panic!("found a file in /nonexistent");
    };
    assert_eq!(error.to_string(), "read /nonexistent/a.gguf: No such file or directory (os error 2)");
}
