//! Prints how long a checkpoint takes to load against reading and copying its bytes, and how much memory
//! loading takes at its peak: `load [FOLDER] [ROUNDS]`. Without a folder it writes one with random weights
//! in the shape of Llama 3.2 1B, 2.5 GB, and removes it afterwards.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_models::ModelFiles;
use lockstep_shard::comm::Solo;
use lockstep_shard::decoder::{Decoder, Dtype, ModelSpec};
use lockstep_shard::testing::{TinyHead, TinyLlama};

/// The shape of Llama 3.2 1B.
const MODEL: TinyLlama = TinyLlama {
    hidden: 2048,
    layers: 16,
    query_heads: 32,
    kv_heads: 8,
    head_width: 64,
    intermediate: 8192,
    experts: None,
    vocabulary: 128_256,
    max_positions: 131_072,
    head: TinyHead::Tied,
    seed: 1,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let given = arguments.next().filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let written = tempfile::tempdir()?;
    let folder = match given {
        Some(folder) => folder,
        None => {
            MODEL.write(written.path())?;
            written.path().to_owned()
        }
    };
    let files = ModelFiles::Folder(folder.clone());
    let spec = ModelSpec::read(&files)?;
    let (mut copies, mut loads) = (Vec::new(), Vec::new());
    let mut most = 0.0_f64;
    // The first round brings the files into the page cache.
    for round in 0..=rounds {
        let (copy, bytes) = read_and_copy(&folder)?;
        reset_peak_memory();
        let begun = Instant::now();
        let decoder = Decoder::load(&files, &spec, Dtype::Bfloat16, Arc::new(Solo))?;
        let load = begun.elapsed();
        let packed = decoder.weight_bytes().0 as f64;
        most = most.max(peak_memory().unwrap_or(0) as f64 / packed);
        if round == 0 {
            println!("{files}: {:.2} GB in files, {} packed", bytes as f64 / 1e9, decoder.weight_bytes());
            continue;
        }
        println!("  read and copy {copy:.2?}, load {load:.2?}");
        copies.push(copy);
        loads.push(load);
    }
    let (copy, load) = (median(copies), median(loads));
    println!("load / (read and copy), medians of {rounds}: {:.2}", load.as_secs_f64() / copy.as_secs_f64());
    println!("peak memory / packed weights: {most:.2}");
    Ok(())
}

/// Reads the weight files whole, and copies what was read to memory of its own, as loading at the least must.
fn read_and_copy(folder: &Path) -> Result<(Duration, usize), Box<dyn Error>> {
    let begun = Instant::now();
    let (mut read, mut copied) = (vec![0; 16 << 20], Vec::new());
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "safetensors") {
            continue;
        }
        let mut file = File::open(path)?;
        copied.try_reserve_exact(file.metadata()?.len() as usize)?;
        loop {
            let count = file.read(&mut read)?;
            if count == 0 {
                break;
            }
            copied.extend_from_slice(&read[..count]);
        }
    }
    Ok((begun.elapsed(), std::hint::black_box(copied).len()))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Forgets how much memory this process once had.
fn reset_peak_memory() {
    // Only Linux counts it, and a kernel that does not reset it shows a larger figure.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory this process had, pages of files it mapped included.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
