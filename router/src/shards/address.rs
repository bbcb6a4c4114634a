//! Where a rank listens: `unix:/path.sock` or `tcp:host:port`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Where a rank listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

/// An address of no known kind.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("read the shard address {0:?}: expected unix:/path.sock or tcp:host:port")]
pub struct AddressError(String);

impl FromStr for ShardAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("tcp", host)) if host.contains(':') => Ok(Self::Tcp(host.to_owned())),
            _ => Err(AddressError(text.to_owned())),
        }
    }
}

impl fmt::Display for ShardAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp:{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:/run/a.sock", "tcp:10.0.0.1:7000"] {
            assert_eq!(text.parse::<ShardAddress>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:host", "/run/a.sock", "http://a:1"] {
            assert!(text.parse::<ShardAddress>().is_err(), "{text}");
        }
    }
}
