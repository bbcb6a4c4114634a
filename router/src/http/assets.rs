//! Pages that are part of the binary: their files, what they may load, and how browsers keep them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::App;
use crate::error::NOT_MODIFIED;

/// A page may load and call its own server and nothing else; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of a page.
pub(super) struct Asset {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) text: &'static str,
}

/// What a file is to its page.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Page,
    Style,
    Script,
}

impl Kind {
    fn media_type(self) -> &'static str {
        match self {
            Self::Page => "text/html; charset=utf-8",
            Self::Style => "text/css; charset=utf-8",
            Self::Script => "text/javascript; charset=utf-8",
        }
    }
}

/// A route for each of `assets`.
pub(super) fn serve(assets: &'static [Asset]) -> Router<Arc<App>> {
    assets.iter().fold(Router::new(), |router, asset| {
        let etag = asset.etag();
        let answer = move |headers: HeaderMap| std::future::ready(asset.respond(&etag, &headers));
        router.route(asset.path, get(answer))
    })
}

impl Asset {
    /// Names the content: equal names mean equal files.
    fn etag(&self) -> HeaderValue {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        let quoted = format!("\"{:016x}\"", hasher.finish());
        // Hexadecimal digits in quotes are header text; without a name the file is sent each time.
        HeaderValue::from_str(&quoted).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
    }

    fn respond(&self, etag: &HeaderValue, request: &HeaderMap) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.kind.media_type())),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            // Kept, but asked after: a new release's page is seen at once.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::ETAG, etag.clone()),
        ];
        let known = request.get_all(header::IF_NONE_MATCH).iter().any(|known| names(known, etag));
        if known {
            return (NOT_MODIFIED, headers).into_response();
        }
        (headers, self.text).into_response()
    }
}

/// Whether a value of `if-none-match` is, or lists, this name.
fn names(known: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(known), Ok(etag)) = (known.to_str(), etag.to_str()) else { return false };
    known.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == etag || one == "*")
}
