//! The rules no linter knows. Each message says what to do.

mod files;
mod syntax;
mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A source file, read and parsed once for all rules.
struct Source {
    /// Path from the root of the repository.
    path: String,
    text: String,
    syntax: syn::File,
}

impl Source {
    /// Whether the whole file is test code.
    fn is_test(&self) -> bool {
        let tests = ["/tests/", "/tests.rs", "integration-tests/", "/testing.rs", "/testing/"];
        tests.iter().any(|part| self.path.contains(part))
    }
}

/// Checks every rule and fails with all that are broken.
pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let mut found = Vec::new();
    for source in &sources {
        found.extend(files::check(source));
        found.extend(text::check(source));
        found.extend(syntax::check(source));
    }
    ensure!(found.is_empty(), "{} tidy rules are broken:\n{}", found.len(), found.join("\n"));
    Ok(())
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    walk(root, &mut paths)?;
    paths.sort();
    paths.into_iter().map(|path| read(root, &path)).collect()
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let skipped = name.starts_with('.') || name == "target" || name == "generated";
            if !skipped {
                walk(&path, paths)?;
            }
        } else if name.ends_with(".rs") {
            paths.push(path);
        }
    }
    Ok(())
}

fn read(root: &Path, path: &Path) -> Result<Source> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let syntax = syn::parse_file(&text).with_context(|| format!("parse {}", path.display()))?;
    let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    Ok(Source { path, text, syntax })
}
