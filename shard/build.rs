//! Compiles the CUDA kernels where the feature `cuda` asks for them; does nothing otherwise.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files of kernels, each a module of its own.
const MODULES: [&str; 10] = [
    "norm",
    "rows",
    "product",
    "product_few",
    "quantized_few",
    "product_many",
    "experts",
    "expert_products",
    "attention",
    "sampling",
];

/// Architectures whose code is in the binary: what runs on 8.0 runs on every 8.x.
const ARCHITECTURES: [&str; 2] = ["80", "90"];

const SOURCES: &str = "src/ops/cuda/kernels";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CXX");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to write"));
    for module in MODULES {
        compile(module, &out);
    }
    emulate(&out);
}

/// Machine code of every architecture in one file.
fn compile(module: &str, out: &Path) {
    let mut nvcc = Command::new(tool("NVCC", "nvcc"));
    nvcc.args(["-fatbin", "-O3", "-std=c++17", "-fmad=false", "--extended-lambda"]);
    for architecture in ARCHITECTURES {
        nvcc.arg("-gencode").arg(format!("arch=compute_{architecture},code=sm_{architecture}"));
    }
    nvcc.arg(format!("{SOURCES}/{module}.cu")).arg("-o").arg(out.join(format!("{module}.fatbin")));
    run(nvcc);
}

/// The same kernels for the CPU: what `emulation.rs` runs.
fn emulate(out: &Path) {
    let mut objects = Vec::new();
    for module in MODULES {
        let object = out.join(format!("{module}.o"));
        let mut cxx = Command::new(tool("CXX", "c++"));
        cxx.args([
            "-O2",
            "-std=c++17",
            "-fPIC",
            "-mfma",
            "-ffp-contract=off",
            "-DLOCKSTEP_EMULATED",
            "-x",
            "c++",
        ]);
        cxx.arg("-c").arg(format!("{SOURCES}/{module}.cu")).arg("-o").arg(&object);
        run(cxx);
        objects.push(object);
    }
    let archive = out.join("libemulated_kernels.a");
    // An archive that is there would keep members that are gone.
    let _ = std::fs::remove_file(&archive);
    let mut ar = Command::new(tool("AR", "ar"));
    ar.arg("rcs").arg(&archive).args(&objects);
    run(ar);
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=emulated_kernels");
    println!("cargo::rustc-link-lib=stdc++");
}

fn tool(variable: &str, usual: &str) -> std::ffi::OsString {
    env::var_os(variable).unwrap_or_else(|| usual.into())
}

fn run(mut command: Command) {
    let status = command.status();
    let succeeded = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(
        succeeded,
        "{command:?}: {status:?}; deploy/cuda-toolchain/README.md says what a build with CUDA needs"
    );
}
