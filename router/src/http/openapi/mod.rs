//! `GET /api-doc/openapi.json`: all routes, fields, headers, statuses, errors and events as one document, and
//! `GET /docs`, a page that shows it.
//!
//! Requests are read field by field, so the document has tables of its own. Tests hold them to the parser
//! (every field that is asked for is described, and no other), to the route table, to the table of errors
//! and to what a server answers.

mod answers;
mod chat;
mod requests;
mod routes;
mod schema;

use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::assets::{Asset, Kind, serve};
use crate::app::App;

static ASSETS: [Asset; 3] = [
    Asset { path: "/docs", kind: Kind::Page, text: include_str!("../../../assets/docs/index.html") },
    Asset {
        path: "/docs/style.css",
        kind: Kind::Style,
        text: include_str!("../../../assets/docs/style.css"),
    },
    Asset { path: "/docs/app.js", kind: Kind::Script, text: include_str!("../../../assets/docs/app.js") },
];

const ABOUT: &str = "Text generation over the interfaces of the Hugging Face Inference API, \
                     text-generation-inference and OpenAI. Fields that are described here are honoured or \
                     refused with a message that names them; fields that are not pass, unless the server \
                     runs with --strict.";

/// The routes of the document and its page.
pub(super) fn routes() -> axum::Router<Arc<App>> {
    let text: Arc<str> = document().to_string().into();
    let answer = move || std::future::ready(respond(&text));
    serve(&ASSETS).route("/api-doc/openapi.json", get(answer.clone())).route("/openapi.json", get(answer))
}

fn respond(text: &str) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.to_owned()).into_response()
}

/// The document, OpenAPI 3.1.
pub fn document() -> Value {
    let mut schemas = requests::schemas();
    schemas.extend(answers::schemas());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lockstep",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "native", "description": "The Inference API and text-generation-inference"},
            {"name": "openai", "description": "OpenAI's interface"},
            {"name": "tokens", "description": "What the tokenizer does"},
            {"name": "server", "description": "What is served, and how it fares"},
        ],
        "security": [{"key": []}, {}],
        "paths": routes::paths(),
        "components": {
            "schemas": schemas,
            "parameters": routes::parameters(),
            "headers": routes::headers(),
            "responses": answers::errors(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "One of the keys of --api-key and --api-key-file, where there are any",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
