//! Which pages of other origins may read answers.

use std::str::FromStr;

use axum::http::{HeaderMap, HeaderValue, Method, header};
use thiserror::Error;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// An origin as browsers send it: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

/// A text is no origin.
#[derive(Debug, Error)]
#[error(
    "accept --cors-allow-origin {found:?}: it must be an origin such as https://example.org, without a path, or *"
)]
pub struct OriginError {
    found: String,
}

/// What stands for every origin.
const ANY: &str = "*";

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let host = text.split_once("://").map(|(_, host)| host);
        let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains('/'));
        let value = HeaderValue::from_str(text).ok().filter(|_| is_origin || text == ANY);
        value.map(Self).ok_or_else(|| OriginError { found: text.to_owned() })
    }
}

/// Answers preflights and tells browsers who may read answers: pages of these origins, of any where there
/// are none. They may send every header, `Authorization` too, which a bare `*` would not allow.
pub(super) fn layer(origins: &[Origin]) -> CorsLayer {
    let any = origins.is_empty() || origins.iter().any(|origin| origin.0 == ANY);
    let allowed = if any {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().map(|origin| origin.0.clone()))
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any)
}

/// Copies what layers have said to an answer that takes another's place.
pub(super) fn keep(from: &HeaderMap, to: &mut HeaderMap) {
    let said = from.iter().filter(|(name, _)| {
        name.as_str().starts_with("access-control-") || **name == header::VARY || name.as_str() == "x-cache"
    });
    for (name, value) in said {
        to.append(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_a_scheme_and_no_path() {
        for text in ["https://example.org", "http://localhost:8080", "*"] {
            assert!(text.parse::<Origin>().is_ok(), "{text}");
        }
        for text in ["", "example.org", "https://example.org/", "https://", "a\nb://c"] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
