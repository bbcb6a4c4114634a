//! Rules about files as a whole: names, headers, lengths.

use super::Source;

const BANNED_NAMES: &[&str] = &["utils", "util", "helpers", "common", "misc", "types"];

/// Lines of code a file may have without its tests, and with them.
const MAX_CODE_LINES: usize = 400;
const MAX_LINES_WITH_TESTS: usize = 600;

/// Longer files, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

pub(super) fn check(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(check_name(source));
    found.extend(check_header(source));
    found.extend(check_length(source));
    found
}

fn check_name(source: &Source) -> Option<String> {
    let stem = source.path.rsplit('/').next()?.trim_end_matches(".rs");
    BANNED_NAMES.contains(&stem).then(|| format!("{}: name the file by the noun it defines", source.path))
}

fn check_header(source: &Source) -> Option<String> {
    (!source.text.starts_with("//!"))
        .then(|| format!("{}: open with `//!`: what the file is responsible for", source.path))
}

fn check_length(source: &Source) -> Option<String> {
    let code = source.text.lines().filter(|line| is_code(line)).count();
    let has_tests = source.text.contains("#[cfg(test)]\nmod tests {");
    let limit = if has_tests || source.is_test() { MAX_LINES_WITH_TESTS } else { MAX_CODE_LINES };
    let excused = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    (code > limit && !excused)
        .then(|| format!("{}: {code} lines of code, {limit} are the limit: split it", source.path))
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}
