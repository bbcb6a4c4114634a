//! Settings of text-generation-inference that this server does not have: what to do instead.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Error};
use tracing::warn;

/// Where a setting is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// As a flag, and as the variable of the same name.
    Both,
    /// As a flag: its variable is another program's as well.
    Flag,
    /// As a variable.
    Variable,
}

/// A setting by the name of its flag, and what to do instead.
struct Setting {
    name: &'static str,
    known: Known,
    instead: &'static str,
}

const SETTINGS: &[Setting] = &[
    both("disable-custom-kernels", "there are no others; leave it out"),
    both(
        "disable-grammar-support",
        "every request may name a grammar; refuse them in front of this server",
    ),
    both("enable-prefill-logprobs", "decoder_input_details is always honoured; leave it out"),
    both(
        "cuda-memory-fraction",
        "--kv-cache-memory says what the KV cache takes; by default it is what is free",
    ),
    both("lora-adapters", "adapters are not served; merge one into the weights and serve the result"),
    both("master-addr", "ranks of a server find each other; leave it out"),
    both("master-port", "ranks of a server find each other; leave it out"),
    both("max-batch-total-tokens", "the KV cache is the limit; --kv-cache-memory sets its size"),
    both("max-image-fetch-size", "no images are read; leave it out"),
    both(
        "max-waiting-tokens",
        "prompts are computed in chunks beside what runs; --max-batch-prefill-tokens bounds a step",
    ),
    both("ngrok", "no tunnel is opened; lead one to --port"),
    both("ngrok-authtoken", "no tunnel is opened; lead one to --port"),
    both("ngrok-edge", "no tunnel is opened; lead one to --port"),
    both("prometheus-port", "metrics are served on --port as /metrics"),
    both("rope-factor", "rotary scaling is read from the model's config.json, rope_scaling"),
    both("rope-scaling", "rotary scaling is read from the model's config.json, rope_scaling"),
    both("shard-uds-path", "sockets are in a private folder in XDG_RUNTIME_DIR or the temporary folder"),
    both("sharded", "--num-shard alone says over how many processes the model is split"),
    both("speculate", "no tokens are speculated; leave it out"),
    both("tokenizer-config-path", "the chat template is read from the model's folder; put it there"),
    both("trust-remote-code", "code that comes with a model is never run; leave it out"),
    both("usage-stats", "nothing is reported to anyone; leave it out"),
    both(
        "waiting-served-ratio",
        "prompts are computed in chunks beside what runs; --max-batch-prefill-tokens bounds a step",
    ),
    both("weights-cache-override", "--huggingface-hub-cache says where models are kept"),
    setting(Known::Flag, "env", "versions are in the log and at /info"),
    variable("attention", "there is one attention; leave it out"),
    variable("hf-api-token", "HF_TOKEN is the secret that opens gated models"),
    variable("hf-model-id", "MODEL_ID names the model"),
    variable("hf-model-quantize", "QUANTIZE says what weights are quantized to"),
    variable("hf-model-revision", "REVISION names the branch, tag or commit"),
    variable("hf-model-trust-remote-code", "code that comes with a model is never run; leave it out"),
    variable("prefill-chunking", "prompts are always computed in chunks; leave it out"),
    variable("request-logprobs", "decoder_input_details is always honoured; leave it out"),
    variable("sm-num-gpus", "NUM_SHARD says over how many processes the model is split"),
    variable(
        "tgi-wiggle-room",
        "--kv-cache-memory says what the KV cache takes; by default it is what is free",
    ),
    variable("use-flash-attention", "there is one attention; leave it out"),
];

const fn both(name: &'static str, instead: &'static str) -> Setting {
    setting(Known::Both, name, instead)
}

const fn variable(name: &'static str, instead: &'static str) -> Setting {
    setting(Known::Variable, name, instead)
}

const fn setting(known: Known, name: &'static str, instead: &'static str) -> Setting {
    Setting { name, known, instead }
}

impl Setting {
    fn variable(&self) -> Option<String> {
        match self.known {
            Known::Both | Known::Variable => Some(self.name.replace('-', "_").to_uppercase()),
            Known::Flag => None,
        }
    }

    fn flag(&self) -> Option<String> {
        match self.known {
            Known::Both | Known::Flag => Some(format!("--{}", self.name)),
            Known::Variable => None,
        }
    }
}

/// Says of each such variable that is set that it does nothing.
pub(crate) fn warn_of_variables() {
    for (variable, setting) in found(|name| std::env::var_os(name)) {
        let instead = setting.instead;
        warn!(variable, instead, "a setting of text-generation-inference that does nothing here");
    }
}

/// The variables that ask for something, in the order of their table.
fn found(value: impl Fn(&str) -> Option<OsString>) -> impl Iterator<Item = (String, &'static Setting)> {
    // What is turned off asks for nothing.
    let asks = |value: OsString| !["", "0", "false"].iter().any(|off| value.eq_ignore_ascii_case(off));
    let named = SETTINGS.iter().filter_map(|setting| Some((setting.variable()?, setting)));
    named.filter(move |(name, _)| value(name).is_some_and(asks))
}

/// The same error, with what to do where it is about such a flag, and without flags that `command` hides.
pub(crate) fn explained(mut error: Error, command: &Command) -> Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let asked = text_of(&error, ContextKind::InvalidArg);
    if let Some(setting) = SETTINGS.iter().find(|setting| setting.flag() == asked) {
        let flag = format!("--{}", setting.name);
        let text = format!(
            "{flag} is a setting of text-generation-inference that this server does not have: {}\n",
            setting.instead
        );
        return Error::raw(ErrorKind::UnknownArgument, text);
    }
    if text_of(&error, ContextKind::SuggestedArg).is_some_and(|flag| is_hidden(command, &flag)) {
        error.remove(ContextKind::SuggestedArg);
    }
    error
}

fn text_of(error: &Error, kind: ContextKind) -> Option<String> {
    let Some(ContextValue::String(text)) = error.get(kind) else { return None };
    Some(text.clone())
}

fn is_hidden(command: &Command, flag: &str) -> bool {
    let is_it = |arg: &Arg| arg.is_hide_set() && arg.get_long() == flag.strip_prefix("--");
    command.get_arguments().any(is_it) || command.get_subcommands().any(|command| is_hidden(command, flag))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn refusal(words: &[&str]) -> String {
        let mut command = Cli::command();
        let error = command.try_get_matches_from_mut([&["lockstep"], words].concat()).unwrap_err();
        explained(error, &command).to_string()
    }

    #[test]
    fn flags_are_refused_with_what_to_do() {
        let expected = "error: --speculate is a setting of text-generation-inference that this server does not have: \
                        no tokens are speculated; leave it out\n";
        for words in [&["--speculate", "2"][..], &["--speculate=2"], &["serve", "--speculate", "2"]] {
            assert_eq!(refusal(words), expected);
        }
        assert!(refusal(&["--lora-adapters", "a/b"]).contains("merge one into the weights"));
    }

    #[test]
    fn what_is_hidden_is_not_suggested() {
        let misspelt = refusal(&["--num-shards", "2"]);
        assert!(misspelt.contains("'--num-shard'"), "{misspelt}");
        let hidden = refusal(&["--places-taking", "2"]);
        assert!(!hidden.contains("--places-taken"), "{hidden}");
    }

    #[test]
    fn a_setting_of_ours_is_not_called_foreign() {
        let command = Cli::command();
        let args =
            command.get_arguments().chain(command.get_subcommands().flat_map(Command::get_arguments));
        for arg in args {
            let flag = arg.get_long().map(|long| format!("--{long}"));
            let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
            for setting in SETTINGS {
                assert!(flag.is_none() || setting.flag() != flag, "{flag:?} is ours");
                assert!(variable.is_none() || setting.variable() != variable, "{variable:?} is ours");
            }
        }
    }

    #[test]
    fn variables_that_ask_for_nothing_are_left_alone() {
        let set = [
            ("LORA_ADAPTERS", "a/b"),
            ("SPECULATE", "0"),
            ("TRUST_REMOTE_CODE", "False"),
            ("ENV", "production"),
        ];
        let value =
            |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let names: Vec<String> = found(value).map(|(name, _)| name).collect();
        assert_eq!(names, ["LORA_ADAPTERS"]);
    }
}
