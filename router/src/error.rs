//! The one table of what can go wrong for a client: status, types, metric label, log level.

use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tracing::Level;

use crate::http::UploadError;

/// Nothing went wrong: the client has what it asks for.
pub const NOT_MODIFIED: StatusCode = StatusCode::NOT_MODIFIED;

/// What went wrong, by what the client can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request breaks a rule.
    Validation,
    /// One request has more prompts than are allowed.
    BatchSize,
    /// A text is to be completed in its middle.
    Suffix,
    /// The body is not JSON.
    MalformedBody,
    /// The body is not declared as JSON.
    MediaType,
    /// The body is larger than `--payload-limit`.
    TooLarge,
    /// The body does not come within `--client-timeout`.
    SlowBody,
    /// The chat template is missing or refuses the messages.
    Template,
    /// The chat template uses something the messages lack.
    TemplateVariable,
    /// There is no such route, model or request.
    NotFound,
    /// A request names a model that is not served.
    ModelNotFound,
    /// The route is there, with another method.
    MethodNotAllowed,
    /// As many requests as are allowed are under way.
    Overloaded,
    /// Its deadline has come.
    Timeout,
    /// It names no key, or a wrong one.
    Unauthorized,
    /// The shards are not ready.
    Loading,
    /// The shards were lost and did not come back in time.
    GroupLost,
    /// The server is stopping.
    Draining,
    /// A probe's negative answer.
    Unhealthy,
    /// A shard could not go on with this sequence.
    Generation,
    /// The answer ended without an end.
    Incomplete,
    /// The same, in a stream.
    IncompleteStream,
    /// Cancelled through `DELETE /requests/{id}`.
    Cancelled,
    /// A bug on our side.
    Internal,
}

/// All kinds, for tests and documents.
pub const ALL_KINDS: [ErrorKind; 24] = [
    ErrorKind::Validation,
    ErrorKind::BatchSize,
    ErrorKind::Suffix,
    ErrorKind::MalformedBody,
    ErrorKind::MediaType,
    ErrorKind::TooLarge,
    ErrorKind::SlowBody,
    ErrorKind::Template,
    ErrorKind::TemplateVariable,
    ErrorKind::NotFound,
    ErrorKind::ModelNotFound,
    ErrorKind::MethodNotAllowed,
    ErrorKind::Overloaded,
    ErrorKind::Timeout,
    ErrorKind::Unauthorized,
    ErrorKind::Loading,
    ErrorKind::GroupLost,
    ErrorKind::Draining,
    ErrorKind::Unhealthy,
    ErrorKind::Generation,
    ErrorKind::Incomplete,
    ErrorKind::IncompleteStream,
    ErrorKind::Cancelled,
    ErrorKind::Internal,
];

/// OpenAI's type, the metric's label and the log level of what a client did wrong.
const CLIENT: (&str, &str, Level) = ("invalid_request_error", "validation", Level::INFO);
/// OpenAI's type of what may be there later.
const AWAY: &str = "service_unavailable_error";
/// OpenAI's type of what went wrong here.
const SERVER: &str = "server_error";

/// When to send a body again for which there was no room, in seconds.
const RETRY_UPLOAD_AFTER_S: u32 = 1;

/// A row of the table.
struct Row {
    status: StatusCode,
    error_type: &'static str,
    openai_type: &'static str,
    metric: &'static str,
    level: Level,
}

impl ErrorKind {
    fn row(self) -> Row {
        let (status, error_type) = self.status_and_type();
        let (openai_type, metric, level) = match self {
            Self::Validation | Self::MalformedBody | Self::MediaType | Self::TooLarge => CLIENT,
            Self::SlowBody | Self::NotFound | Self::ModelNotFound | Self::MethodNotAllowed => CLIENT,
            Self::BatchSize | Self::Suffix => CLIENT,
            Self::Template | Self::TemplateVariable => ("invalid_request_error", "template", Level::INFO),
            Self::Cancelled => ("invalid_request_error", "dropped", Level::INFO),
            Self::Overloaded => ("rate_limit_error", "overloaded", Level::WARN),
            Self::Timeout => (SERVER, "timeout", Level::WARN),
            Self::Unauthorized => ("authentication_error", "unauthorized", Level::INFO),
            Self::Loading | Self::Draining => (AWAY, "unavailable", Level::INFO),
            Self::GroupLost => (AWAY, "unavailable", Level::ERROR),
            Self::Unhealthy => (AWAY, "unavailable", Level::DEBUG),
            Self::Generation => (SERVER, "generation", Level::ERROR),
            Self::Incomplete | Self::IncompleteStream => (SERVER, "incomplete", Level::ERROR),
            Self::Internal => (SERVER, "internal", Level::ERROR),
        };
        Row { status, error_type, openai_type, metric, level }
    }

    fn status_and_type(self) -> (StatusCode, &'static str) {
        match self {
            Self::Validation => (StatusCode::UNPROCESSABLE_ENTITY, "validation"),
            Self::BatchSize => (StatusCode::UNPROCESSABLE_ENTITY, "batch size exceeded"),
            Self::Suffix => (StatusCode::UNPROCESSABLE_ENTITY, "suffix not supported"),
            Self::MalformedBody => (StatusCode::BAD_REQUEST, "malformed_json"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Self::SlowBody => (StatusCode::REQUEST_TIMEOUT, "slow_body"),
            Self::Template => (StatusCode::UNPROCESSABLE_ENTITY, "template_error"),
            Self::TemplateVariable => (StatusCode::UNPROCESSABLE_ENTITY, "missing_template_variable"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::ModelNotFound => (StatusCode::NOT_FOUND, "model_not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
            Self::GroupLost => (StatusCode::SERVICE_UNAVAILABLE, "group_lost"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::Unhealthy => (StatusCode::SERVICE_UNAVAILABLE, "healthcheck"),
            Self::Generation => (StatusCode::FAILED_DEPENDENCY, "generation"),
            Self::Incomplete => (StatusCode::INTERNAL_SERVER_ERROR, "incomplete_generation"),
            Self::IncompleteStream => (StatusCode::INTERNAL_SERVER_ERROR, "incomplete_generation_stream"),
            Self::Cancelled => (StatusCode::CONFLICT, "cancelled"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// The status code, as a number.
    pub fn status(self) -> u16 {
        self.row().status.as_u16()
    }

    /// The tag clients tell errors apart by.
    pub fn error_type(self) -> &'static str {
        self.row().error_type
    }

    /// The value of the label `err` of `tgi_request_failure`.
    pub fn metric(self) -> &'static str {
        self.row().metric
    }

    /// How loud it is in the log.
    pub fn level(self) -> Level {
        self.row().level
    }
}

/// Whose conventions a route follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `{"error": text, "error_type"}`.
    Native,
    /// `{"error": {"message", "type", "param", "code"}, "error_type"}`.
    OpenAi,
}

impl Family {
    /// The family of the route at `path`.
    pub fn of_path(path: &str) -> Self {
        if path.starts_with("/v1/") { Self::OpenAi } else { Self::Native }
    }
}

/// An error as a client sees it. Every text in it is meant for clients.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// The field of the request that is to blame.
    pub param: Option<&'static str>,
    /// The field that is to blame where no interface has it, so that its name is the client's own.
    pub unknown_field: Option<String>,
    /// When to try again, in seconds.
    pub retry_after_s: Option<u32>,
    /// When the model should be there, in seconds.
    pub estimated_time_s: Option<f32>,
}

/// Longest text of an `x-error-message` header, in bytes.
const HEADER_MESSAGE_BYTES: usize = 500;

impl ApiError {
    /// An error with nothing but a message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            unknown_field: None,
            retry_after_s: None,
            estimated_time_s: None,
        }
    }

    /// A broken rule about `param`.
    pub fn invalid(param: &'static str, message: impl std::fmt::Display) -> Self {
        let message = format!("Input validation error: {message}");
        Self { param: Some(param), ..Self::new(ErrorKind::Validation, message) }
    }

    /// A field of the interface that this server does not serve.
    pub fn unsupported(param: &'static str) -> Self {
        Self::invalid(param, format_args!("`{param}` is not supported"))
    }

    /// A field that is in no interface of this server, which refuses such.
    pub fn unknown_field(name: String) -> Self {
        let message =
            format!("Input validation error: unknown field `{name}`; this server runs with --strict");
        Self { unknown_field: Some(name), ..Self::new(ErrorKind::Validation, message) }
    }

    /// As many requests as are allowed are under way.
    pub fn overloaded(retry_after_s: u32) -> Self {
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(ErrorKind::Overloaded, "Model is overloaded")
        }
    }

    /// The shards are not ready; `estimated_time_s` is a guess.
    pub fn loading(model_id: &str, estimated_time_s: f32) -> Self {
        let message = format!("Model {model_id} is currently loading");
        Self {
            retry_after_s: Some(estimated_time_s.ceil().max(1.0) as u32),
            estimated_time_s: Some(estimated_time_s),
            ..Self::new(ErrorKind::Loading, message)
        }
    }

    /// The server is stopping; another may take its place.
    pub fn draining() -> Self {
        let message = "The server is shutting down and takes no new requests";
        Self { retry_after_s: Some(1), ..Self::new(ErrorKind::Draining, message) }
    }

    /// The body could not be read whole.
    pub fn of_body(rejection: &BytesRejection, limit_bytes: usize) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let message = format!("The request body is larger than {limit_bytes} bytes");
            return Self::new(ErrorKind::TooLarge, message);
        }
        match upload_error(rejection) {
            Some(UploadError::Slow) => {
                Self::new(ErrorKind::SlowBody, "The request body did not come in time")
            }
            Some(UploadError::Full) => Self::overloaded(RETRY_UPLOAD_AFTER_S),
            None => Self::new(ErrorKind::MalformedBody, "The request body could not be read"),
        }
    }

    /// The body of the answer, or the data of an event that ends a stream.
    pub fn body(&self, family: Family) -> Value {
        let row = self.kind.row();
        let mut body = match family {
            Family::Native => json!({"error": self.message, "error_type": row.error_type}),
            Family::OpenAi => json!({
                "error": {
                    "message": self.message,
                    "type": row.openai_type,
                    "param": self.unknown_field.as_deref().or(self.param),
                    "code": row.error_type,
                },
                "error_type": row.error_type,
            }),
        };
        if let (Some(seconds), Some(fields)) = (self.estimated_time_s, body.as_object_mut()) {
            fields.insert("estimated_time".to_owned(), json!(seconds));
        }
        body
    }

    /// The whole answer.
    pub fn render(&self, family: Family) -> Response {
        let mut response = (self.kind.row().status, axum::Json(self.body(family))).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == ErrorKind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if family == Family::OpenAi
            && let Ok(text) = HeaderValue::from_str(&header_text(&self.message))
        {
            headers.insert("x-error-message", text);
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// Carries the error to the layer that knows the route's family.
    fn into_response(self) -> Response {
        let mut response = self.kind.row().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Why a body was not read to its end, where that is ours to say.
fn upload_error(error: &(dyn std::error::Error + 'static)) -> Option<UploadError> {
    error.downcast_ref().copied().or_else(|| error.source().and_then(upload_error))
}

fn header_text(message: &str) -> String {
    let visible =
        |character: char| if character.is_ascii_graphic() || character == ' ' { character } else { '?' };
    message.chars().map(visible).take(HEADER_MESSAGE_BYTES).collect()
}
