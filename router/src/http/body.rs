//! JSON bodies whose rejections have our error shape.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde_json::Value;

use super::excerpt::excerpt;
use super::fields::Fields;
use crate::app::App;
use crate::error::{ApiError, ErrorKind};

/// The fields of a JSON object.
pub(super) struct JsonBody(pub(super) Fields);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let declared = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !declared.is_some_and(is_json) {
            let message = "Expected a request with `Content-Type: application/json`";
            return Err(ApiError::new(ErrorKind::MediaType, message));
        }
        if let Some(encoding) = encoding(request.headers()) {
            let message = format!(
                "Expected a body without `Content-Encoding`, as it is. Given: {}",
                excerpt(&encoding)
            );
            return Err(ApiError::new(ErrorKind::MediaType, message));
        }
        let bytes = Bytes::from_request(request, app).await;
        let bytes =
            bytes.map_err(|rejection| ApiError::of_body(&rejection, app.config.payload_limit_bytes))?;
        let parsed = serde_json::from_slice(&bytes);
        let value: Value = parsed.map_err(|error| {
            ApiError::new(
                ErrorKind::MalformedBody,
                format!("Failed to parse the request body as JSON: {error}"),
            )
        })?;
        match value {
            Value::Object(fields) => Ok(Self(Fields::new(fields, app.config.unknown_fields))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                let message = "Failed to parse the request body: expected a JSON object";
                Err(ApiError::new(ErrorKind::MalformedBody, message))
            }
        }
    }
}

/// What a body is encoded with: the first that changes it.
pub(super) fn encoding(headers: &HeaderMap) -> Option<String> {
    let named = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut named =
        named.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase());
    named.find(|encoding| !["", "identity"].contains(&encoding.as_str()))
}

/// `application/json` and anything ending in `+json`, whatever parameters follow.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
