//! `GET /playground`: a page to try the server with.

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;

use super::assets::{self, Asset, Kind};
use crate::app::App;

static ASSETS: [Asset; 6] = [
    Asset {
        path: "/playground",
        kind: Kind::Page,
        text: include_str!("../../assets/playground/index.html"),
    },
    Asset {
        path: "/playground/style.css",
        kind: Kind::Style,
        text: include_str!("../../assets/playground/style.css"),
    },
    Asset {
        path: "/playground/app.js",
        kind: Kind::Script,
        text: include_str!("../../assets/playground/app.js"),
    },
    Asset {
        path: "/playground/client.js",
        kind: Kind::Script,
        text: include_str!("../../assets/playground/client.js"),
    },
    Asset {
        path: "/playground/parameters.js",
        kind: Kind::Script,
        text: include_str!("../../assets/playground/parameters.js"),
    },
    Asset {
        path: "/playground/tokens.js",
        kind: Kind::Script,
        text: include_str!("../../assets/playground/tokens.js"),
    },
];

/// The routes of the page and its files.
pub(super) fn routes() -> Router<Arc<App>> {
    // The page names its files relative to itself, which works behind a path prefix but not below a slash.
    let page = Router::new().route("/playground/", get(|| async { Redirect::permanent("../playground") }));
    page.merge(assets::serve(&ASSETS))
}
