//! `POST /invocations`: SageMaker's one route for all kinds of requests.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::body::JsonBody;
use super::intake::Arrival;
use super::{chat, completions, generate};
use crate::app::App;
use crate::error::{ApiError, Family};

/// A native request, a chat or a completion, told apart by the field that each must have, in this order.
pub(super) async fn invocations(state: State<Arc<App>>, arrival: Arrival, body: JsonBody) -> Response {
    if body.0.has("inputs") {
        return generate::compatible(state, arrival, body).await.into_response();
    }
    if body.0.has("messages") {
        return in_openais_shape(chat::completions(state, arrival, body).await);
    }
    if body.0.has("prompt") {
        return in_openais_shape(completions::completions(state, arrival, body).await);
    }
    let message = "one of the fields `inputs`, `messages` and `prompt` is needed";
    ApiError::invalid("inputs", message).into_response()
}

/// An error has the shape of the request's family, which the path does not tell.
fn in_openais_shape(answer: Result<Response, ApiError>) -> Response {
    answer.unwrap_or_else(|error| {
        let mut response = error.into_response();
        response.extensions_mut().insert(Family::OpenAi);
        response
    })
}
