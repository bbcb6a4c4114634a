//! Rules that hold line by line.

use super::Source;

/// A string that may stand in some files only.
struct Ban {
    word: &'static str,
    /// Paths the rule is about; empty means all.
    within: &'static [&'static str],
    /// Paths it does not hold for.
    except: &'static [&'static str],
    advice: &'static str,
}

const PURE: &[&str] = &["scheduler/src/", "shard/src/sampling/", "launcher/src/supervisor"];

const BANS: &[Ban] = &[
    Ban { word: "async ", within: PURE, except: &[], advice: "a pure module never awaits" },
    Ban { word: "tokio::", within: PURE, except: &[], advice: "a pure module knows no runtime" },
    Ban { word: "Instant::now", within: PURE, except: &["/tests"], advice: "take `now` as an argument" },
    Ban { word: "SystemTime::now", within: PURE, except: &[], advice: "take `now` as an argument" },
    Ban { word: "rand::", within: PURE, except: &["/tests"], advice: "take a seed as an argument" },
    Ban {
        word: "StatusCode::",
        within: &["router/src/"],
        except: &["router/src/error"],
        advice: "status codes stand in the table of router/src/error.rs only",
    },
    Ban {
        word: "tonic::",
        within: &["router/src/"],
        except: &["router/src/shards/"],
        advice: "only router/src/shards/ knows tonic",
    },
    Ban {
        word: "axum::",
        within: &["router/src/"],
        except: &["router/src/http/", "router/src/app", "router/src/error", "router/src/serve"],
        advice: "only router/src/http/ and the composition root know axum",
    },
    Ban {
        word: "LlamaForCausalLM",
        within: &["shard/src/"],
        except: &["/families/", "/testing", "/tests"],
        advice: "family names stand in families/ only",
    },
    Ban { word: "#[ignore", within: &[], except: &["xtask/"], advice: "a test runs or is deleted" },
    Ban { word: "#[should_panic", within: &[], except: &["xtask/"], advice: "assert on an error instead" },
    Ban { word: "#[allow(", within: &[], except: &["xtask/"], advice: "use #[expect(…, reason = …)]" },
];

/// Comment words that tell history instead of a reason.
const HISTORY: &[&str] = &["no longer", "previously", "used to be", "was changed"];

pub(super) fn check(source: &Source) -> Vec<String> {
    let numbered = source.text.lines().enumerate();
    numbered.flat_map(|(index, line)| check_line(source, index + 1, line)).collect()
}

fn check_line(source: &Source, number: usize, line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for ban in BANS {
        let within = ban.within.is_empty() || ban.within.iter().any(|part| source.path.contains(part));
        let except = ban.except.iter().any(|part| source.path.contains(part));
        let comment = line.trim_start().starts_with("//");
        if within && !except && !comment && line.contains(ban.word) {
            found.push(format!("{}:{number}: `{}`: {}", source.path, ban.word, ban.advice));
        }
    }
    if let Some((_, comment)) = line.split_once("// ") {
        let told = HISTORY.iter().find(|word| comment.contains(*word));
        if let Some(word) = told.filter(|_| !source.path.starts_with("xtask/")) {
            found.push(format!("{}:{number}: {word:?} tells history: say why instead", source.path));
        }
    }
    found
}
