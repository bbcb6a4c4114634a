//! Any cut of a prompt, any batch and any number of ranks gives the same logits to the bit, on a random tiny
//! model and on the demo.

mod support;

use lockstep_models::ModelFiles;
use lockstep_shard::decoder::{Dtype, Precision, Quantize};
use lockstep_shard::testing::{TinyHead, TinyLlama};
use support::{Runner, Sequence, on_every_rank, tokens, written};

const PRECISIONS: [Precision; 5] = [
    Precision { dtype: Dtype::Bfloat16, quantize: Quantize::None },
    Precision { dtype: Dtype::Float16, quantize: Quantize::None },
    Precision { dtype: Dtype::Float32, quantize: Quantize::None },
    Precision { dtype: Dtype::Bfloat16, quantize: Quantize::Int8 },
    Precision { dtype: Dtype::Bfloat16, quantize: Quantize::Int4 },
];

/// Calls `check` with each model here and the size of its vocabulary.
fn on_each_model(check: impl Fn(&ModelFiles, u32)) {
    for head in [TinyHead::Tied, TinyHead::Separate] {
        let (_folder, files) = written(&TinyLlama { head, ..TinyLlama::new(1) });
        check(&files, 331);
    }
    check(&ModelFiles::EmbeddedDemo, 4096);
}

#[test]
fn any_cut_of_a_prompt_gives_the_same_logits() {
    on_each_model(|files, vocabulary| {
        for precision in PRECISIONS {
            let mut runner = Runner::solo(files, precision);
            let prompt = tokens(150, 5, vocabulary);
            let whole = runner.alone(&prompt, prompt.len());
            for chunk in [1, 7, 64] {
                assert!(runner.alone(&prompt, chunk) == whole, "{files} {precision} in chunks of {chunk}");
            }
        }
    });
}

#[test]
fn a_sequence_beside_31_others_gives_the_same_logits_as_alone() {
    on_each_model(|files, vocabulary| {
        for precision in PRECISIONS {
            let mut runner = Runner::solo(files, precision);
            let prompts: Vec<Vec<u32>> =
                (0..32).map(|at| tokens(1 + 11 * (at % 7) as usize, at + 1, vocabulary)).collect();
            let mut sequences: Vec<Sequence> = prompts.iter().map(|prompt| Sequence::new(prompt)).collect();
            let mut together = vec![Vec::new(); sequences.len()];
            // Some prefill in large chunks, some in small, some decode.
            while sequences.iter().any(|sequence| sequence.left() > 0) {
                let chunk = |at: usize| [1, 3, 17, 64][at % 4];
                let mut work: Vec<(&mut Sequence, usize)> =
                    sequences.iter_mut().enumerate().map(|(at, sequence)| (sequence, chunk(at))).collect();
                for (rows, new) in together.iter_mut().zip(runner.step(&mut work)) {
                    rows.extend(new);
                }
            }
            for (prompt, together) in prompts.iter().zip(&together) {
                assert!(
                    runner.alone(prompt, prompt.len()) == *together,
                    "{files} {precision} {}",
                    prompt.len()
                );
            }
        }
    });
}

#[test]
fn one_two_and_four_ranks_give_the_same_logits() {
    on_each_model(|files, vocabulary| {
        for precision in PRECISIONS {
            let prompt = tokens(90, 9, vocabulary);
            let one = Runner::solo(files, precision).alone(&prompt, 31);
            for world_size in [1, 2, 4] {
                let ranks =
                    on_every_rank(files, precision, world_size, |mut runner| runner.alone(&prompt, 31));
                for (rank, logits) in ranks.iter().enumerate() {
                    assert!(*logits == one, "{files} {precision} rank {rank} of {world_size}");
                }
            }
        }
    });
}

#[test]
fn any_slices_of_the_wanted_rows_give_the_same_logits() {
    on_each_model(|files, vocabulary| {
        let prompt = tokens(50, 13, vocabulary);
        let whole = Runner::solo(files, Dtype::Bfloat16).alone(&prompt, prompt.len());
        for at_once in [1, 7, 49] {
            let ranks = on_every_rank(files, Dtype::Bfloat16, 2, |mut runner| {
                runner.at_once = at_once;
                runner.alone(&prompt, prompt.len())
            });
            for (rank, logits) in ranks.iter().enumerate() {
                assert!(*logits == whole, "{files} rank {rank}, {at_once} rows at once");
            }
        }
    });
}

/// What the last layer leaves out for rows without logits shows in no other row, and its keys and values are
/// there for what follows.
#[test]
fn rows_without_logits_leave_all_others_as_they_are() {
    on_each_model(|files, vocabulary| {
        for precision in PRECISIONS {
            let prompts = [tokens(60, 17, vocabulary), tokens(30, 19, vocabulary)];
            let mut runner = Runner::solo(files, precision);
            let whole = prompts.each_ref().map(|prompt| runner.alone(prompt, prompt.len()));
            let [mut first, mut second] = prompts.each_ref().map(|prompt| Sequence::new(prompt));
            let wanted = [vec![19, 20, 29], vec![], vec![25, 3, 4, 5, 25]];
            for (step, wanted) in wanted.into_iter().enumerate() {
                let mut batch = runner.batch(&mut [(&mut first, 20), (&mut second, 10)]);
                batch.logit_rows = wanted.clone();
                let expected = wanted.iter().map(|row| match row {
                    0..20 => whole[0][step * 20 + row].clone(),
                    _ => whole[1][step * 10 + row - 20].clone(),
                });
                let found = runner.compute(&batch);
                assert!(found == expected.collect::<Vec<_>>(), "{files} {precision} rows {wanted:?}");
            }
        }
    });
}
