//! Licences, duplicate versions and sources of every package the lock file names.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Licences that may be combined into an Apache-2.0 binary without asking anyone.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that may stand in the lock file in more than one version, each with the reason.
const DUPLICATES: &[(&str, &str)] = &[
    ("base64", "spm_precompiled, under tokenizers, is two releases behind the rest"),
    ("foldhash", "follows hashbrown"),
    ("getrandom", "follows rand"),
    ("hashbrown", "petgraph, safetensors and indexmap are each on their own release"),
    ("itertools", "tokenizers is one release behind prost"),
    ("rand", "candle and tokenizers are on 0.9, proptest is on 0.10"),
    ("rand_core", "follows rand"),
    ("unicode-width", "the errors of protox are printed by a crate one release behind"),
    ("syn", "derive macros are half way from 2 to 3"),
];

/// Checks every package of the workspace's dependency graph and fails with all that break a rule.
pub(crate) fn run(root: &Path) -> Result<()> {
    let packages = packages(root)?;
    let mut found = Vec::new();
    for package in &packages {
        found.extend(check_source(package));
        found.extend(check_licence(package));
    }
    found.extend(check_duplicates(&packages));
    ensure!(found.is_empty(), "{} dependency rules are broken:\n{}", found.len(), found.join("\n"));
    Ok(())
}

struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    source: Option<String>,
}

fn packages(root: &Path) -> Result<Vec<Package>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("parse cargo metadata")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    Ok(list
        .iter()
        .map(|package| Package {
            name: text(&package["name"]).unwrap_or_default(),
            version: text(&package["version"]).unwrap_or_default(),
            licence: text(&package["license"]),
            source: text(&package["source"]),
        })
        .collect())
}

fn check_source(package: &Package) -> Option<String> {
    let source = package.source.as_deref()?;
    let foreign = !source.starts_with("registry+") && !source.starts_with("sparse+");
    foreign.then(|| format!("{} comes from {source}: take it from the crate registry", package.name))
}

fn check_licence(package: &Package) -> Option<String> {
    let Some(licence) = &package.licence else {
        return Some(format!("{} {} names no licence", package.name, package.version));
    };
    let expression = match spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => return Some(format!("{}: licence {licence:?}: {}", package.name, error.reason)),
    };
    let allowed = expression
        .evaluate(|requirement| requirement.license.id().is_some_and(|id| LICENCES.contains(&id.name)));
    (!allowed).then(|| format!("{} {} is {licence}: not on the list", package.name, package.version))
}

fn check_duplicates(packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    let known = |name: &str| DUPLICATES.iter().any(|(candidate, _)| *candidate == name);
    let new = versions.iter().filter(|(name, list)| list.len() > 1 && !known(name));
    let mut found: Vec<String> = new
        .map(|(name, list)| format!("{name} stands in {} versions: {}", list.len(), list.join(", ")))
        .collect();
    let stale = DUPLICATES.iter().filter(|(name, _)| versions.get(name).is_none_or(|list| list.len() < 2));
    found.extend(
        stale.map(|(name, _)| format!("{name} has one version: take it off the list of duplicates")),
    );
    found
}
