//! Checks and generators of this repository: `cargo xtask <command>`.

mod codegen;
mod dependencies;
mod tidy;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask codegen [--check] | tidy | dependencies";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["codegen"] => codegen::run(codegen::Mode::Write),
        ["codegen", "--check"] => codegen::run(codegen::Mode::Check),
        ["tidy"] => tidy::run(&workspace_root()),
        ["dependencies"] => dependencies::run(&workspace_root()),
        _ => bail!("{USAGE}"),
    }
}

/// The folder that holds the workspace's `Cargo.toml`.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        tidy::run(&workspace_root()).unwrap();
    }

    #[test]
    fn dependencies_keep_the_rules() {
        dependencies::run(&workspace_root()).unwrap();
    }

    #[test]
    fn generated_code_is_fresh() {
        codegen::run(codegen::Mode::Check).unwrap();
    }
}
