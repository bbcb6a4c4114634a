//! What the environment says, as the command line takes it: a variable that is set to nothing is not set.

use std::ffi::OsStr;

use clap::{Arg, Command};

/// A secret that a template renders as nothing does not open the server to everyone: these are refused.
const REFUSED_EMPTY: &[&str] = &["API_KEY", "API_KEY_FILE"];

/// The same command and its subcommands, for which variables without a value are not there.
pub(crate) fn without_empty(command: Command) -> Command {
    command.mut_args(heeding_what_is_set).mut_subcommands(without_empty)
}

fn heeding_what_is_set(arg: Arg) -> Arg {
    let name =
        arg.get_env().filter(|name| !REFUSED_EMPTY.iter().any(|refused| OsStr::new(refused) == *name));
    let is_empty = name.and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    if is_empty { arg.env(None::<&'static str>) } else { arg }
}
