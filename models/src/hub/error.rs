//! Why a model cannot be had from the Hub, each with what was found, what was expected and what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::BinaryBytes;
use thiserror::Error;

/// A model cannot be had from the Hub. Reads after "failed to".
#[derive(Debug, Error)]
pub enum HubError {
    /// It cannot be the name of a model.
    #[error("find model {name:?}: it is no folder here and no name on the Hub, which reads org/name")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// It cannot be the name of a version.
    #[error("find revision {revision:?} of {name}: a revision is a branch, a tag or a commit")]
    Revision {
        /// Of which model.
        name: String,
        /// What was asked for.
        revision: String,
    },
    /// It cannot be where a Hub is.
    #[error(
        "use {endpoint:?} as the Hub: an address such as https://huggingface.co is expected; check HF_ENDPOINT"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// There is no such model, or it is hidden.
    #[error("find model {name} on {endpoint}: {}", no_repo(*.token))]
    NoRepo {
        /// What was asked for.
        name: String,
        /// Which Hub.
        endpoint: String,
        /// Whether a token was shown.
        token: TokenShown,
    },
    /// The model is there, this version of it is not.
    #[error(
        "find revision {revision} of {name} on {endpoint}: the model is there, a branch, tag or commit of that \
         name is not; check --revision"
    )]
    NoRevision {
        /// Of which model.
        name: String,
        /// What was asked for.
        revision: String,
        /// Which Hub.
        endpoint: String,
    },
    /// The owners want to know who takes it.
    #[error("download {name}: it is gated, and {}", gated(name, endpoint, *.token))]
    Gated {
        /// What was asked for.
        name: String,
        /// Which Hub.
        endpoint: String,
        /// Whether a token was shown.
        token: TokenShown,
    },
    /// The token itself is not good.
    #[error(
        "log in to {endpoint} with the token from {origin}: {message}; renew it, or go without: public models need none"
    )]
    TokenRefused {
        /// Which Hub.
        endpoint: String,
        /// Where the token came from.
        origin: String,
        /// What the Hub says.
        message: String,
    },
    /// The token is none.
    #[error("use the token from {origin}: it holds characters that no token has; copy it again")]
    TokenMalformed {
        /// Where the token came from.
        origin: String,
    },
    /// No answer at all.
    #[error(
        "reach {host}: {source}; is there a network? What was downloaded before is served with --offline, a \
         folder with --model-id ./folder"
    )]
    Unreachable {
        /// Which host.
        host: String,
        /// What happened instead.
        source: io::Error,
    },
    /// An answer that says to come back later.
    #[error("download {what}: {host} answers {status}; {}", busy(*.status))]
    Busy {
        /// A file or a list.
        what: String,
        /// Which host.
        host: String,
        /// 429 or 5xx.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// An answer that makes no sense here.
    #[error("download {what}: {host} {found}; is {host} a Hub? HF_ENDPOINT says where the Hub is")]
    Unexpected {
        /// A file or a list.
        what: String,
        /// Which host.
        host: String,
        /// "answers 418: I am a teapot"
        found: String,
    },
    /// The connection ended too early.
    #[error(
        "download {file} of {name}: {} of {} came, then {why}; run the same again, it goes on from there",
        BinaryBytes(*.received), BinaryBytes(*.expected)
    )]
    Truncated {
        /// Which file.
        file: String,
        /// Of which model.
        name: String,
        /// Bytes that are here.
        received: u64,
        /// Bytes it has.
        expected: u64,
        /// How it ended.
        why: String,
    },
    /// All of it came, and it is something else.
    #[error(
        "download {file} of {name}: its SHA-256 is {found}, expected is {expected}; what came was deleted; try \
         again, and if it stays so, look for a proxy in between"
    )]
    Corrupt {
        /// Which file.
        file: String,
        /// Of which model.
        name: String,
        /// Hash of what came.
        found: String,
        /// Hash of what should have come.
        expected: String,
    },
    /// Another version of it came into place meanwhile.
    #[error("download {file} of {name}: it changes while it is downloaded; try again")]
    Changed {
        /// Which file.
        file: String,
        /// Of which model.
        name: String,
    },
    /// It is clear from the start that the disk is too small.
    #[error(
        "download {name}: {} are to come, {} are free in {place}; free some, or choose another disk with HF_HOME",
        BinaryBytes(*.needed), BinaryBytes(*.free)
    )]
    NoSpace {
        /// What was asked for.
        name: String,
        /// Bytes that are to come.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        place: PathBuf,
    },
    /// The disk is full.
    #[error(
        "store {file} of {name} in {place}: {source} with {} to come; free some space, or choose another disk \
         with HF_HOME; run the same again, it goes on from there",
        BinaryBytes(*.missing)
    )]
    DiskFull {
        /// Which file.
        file: String,
        /// Of which model.
        name: String,
        /// The folder downloaded models are kept in.
        place: PathBuf,
        /// Bytes that did not fit.
        missing: u64,
        /// What the system says.
        source: io::Error,
    },
    /// The folder downloaded models are kept in cannot be used.
    #[error("write {path}: {source}; HF_HOME says where downloaded models are kept")]
    Cache {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is there is no model of a kind that can be served.
    #[error("use {name}: {problem}")]
    Unusable {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: super::selection::Problem,
    },
    /// The list of weight files is broken.
    #[error("read {file} of {name}: {source}; a file that is whole lists every tensor in weight_map")]
    Index {
        /// Which file.
        file: String,
        /// Of which model.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Something that is needed was not downloaded, and the network is off limits.
    #[error(
        "find {missing} of {name} at revision {revision} in {place}: downloading is forbidden by --offline or \
         HF_HUB_OFFLINE; run lockstep download {name} once with a network"
    )]
    NotCached {
        /// What was asked for.
        name: String,
        /// Which version.
        revision: String,
        /// Names of files.
        missing: String,
        /// The folder downloaded models are kept in.
        place: PathBuf,
    },
}

/// Whether the Hub was shown a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenShown {
    /// It knows who asks.
    Yes,
    /// It was asked by a stranger.
    No,
}

impl HubError {
    /// What happened, for a line that goes on to say that it is tried again.
    pub(super) fn brief(&self) -> String {
        if let Self::Unreachable { host, source } = self {
            return format!("{host}: {source}");
        }
        if let Self::Busy { what, host, status, .. } = self {
            return format!("{what}: {host} answers {status}");
        }
        if let Self::Truncated { file, received, expected, why, .. } = self {
            return format!("{file}: {why} at {} of {}", BinaryBytes(*received), BinaryBytes(*expected));
        }
        self.to_string()
    }

    /// How long it asks to be left alone.
    pub(super) fn retry_after(&self) -> Duration {
        if let Self::Busy { retry_after: Some(time), .. } = self { *time } else { Duration::ZERO }
    }

    /// Whether the same question may have another answer in a moment.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Busy { .. }
            | Self::Truncated { .. }
            | Self::Corrupt { .. } => true,
            Self::Name { .. }
            | Self::Revision { .. }
            | Self::Endpoint { .. }
            | Self::NoRepo { .. }
            | Self::NoRevision { .. }
            | Self::Gated { .. }
            | Self::TokenRefused { .. }
            | Self::TokenMalformed { .. }
            | Self::Changed { .. }
            | Self::Unexpected { .. }
            | Self::NoSpace { .. }
            | Self::DiskFull { .. }
            | Self::Cache { .. }
            | Self::Unusable { .. }
            | Self::Index { .. }
            | Self::NotCached { .. } => false,
        }
    }
}

fn no_repo(token: TokenShown) -> &'static str {
    match token {
        TokenShown::Yes => {
            "there is none of that name that this token may see; check the name, and whose token HF_TOKEN is"
        }
        TokenShown::No => {
            "there is none of that name that everyone may see; check the name, or set HF_TOKEN if it is private"
        }
    }
}

fn gated(name: &str, endpoint: &str, token: TokenShown) -> String {
    match token {
        TokenShown::Yes => format!(
            "the account of this token has not been let in; ask at {endpoint}/{name} and wait for the answer (a \
             fine-grained token also needs the right to read gated models)"
        ),
        TokenShown::No => format!(
            "no token was given; accept its terms at {endpoint}/{name}, then set HF_TOKEN to a token of that \
             account"
        ),
    }
}

fn busy(status: u16) -> &'static str {
    match status {
        429 => "it limits how often it is asked; wait some minutes (with HF_TOKEN it allows more)",
        _ => "it is down or overloaded; try again later, what came so far is kept",
    }
}
