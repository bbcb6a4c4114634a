//! Running requests by id, so that they can be cancelled by id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::auth::KeyName;
use super::excerpt::excerpt;
use super::frame::RequestId;
use crate::app::App;
use crate::error::{ApiError, ErrorKind};

/// Running requests by id; clients may choose the same id twice.
#[derive(Default)]
pub struct Registry {
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    next: u64,
    requests: BTreeMap<(RequestId, u64), Cancellable>,
}

struct Cancellable {
    /// The key it came with: nobody else may cancel it.
    owner: Option<KeyName>,
    token: CancellationToken,
}

/// A request's place in the registry; dropping it takes it out.
pub(super) struct Registration {
    app: Arc<App>,
    key: (RequestId, u64),
    pub(super) cancelled: CancellationToken,
}

impl Registration {
    /// Of a request with this id that came with the key `owner`.
    pub(super) fn new(app: Arc<App>, id: RequestId, owner: Option<KeyName>) -> Self {
        let cancelled = CancellationToken::new();
        let mut running = app.requests.running.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (id, running.next);
        running.next += 1;
        running.requests.insert(key.clone(), Cancellable { owner, token: cancelled.clone() });
        drop(running);
        Self { app, key, cancelled }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut running = self.app.requests.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.requests.remove(&self.key);
    }
}

impl Registry {
    /// Cancels every running request of this id that came with the key `asking`; returns how many there were.
    fn cancel(&self, id: &RequestId, asking: Option<&KeyName>) -> usize {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let of_id = running.requests.range((id.clone(), 0)..=(id.clone(), u64::MAX));
        let own = of_id.filter(|(_, request)| request.owner.as_ref() == asking);
        own.map(|(_, request)| request.token.cancel()).count()
    }
}

/// `DELETE /requests/{x-request-id}`: of requests with the same key.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    key: Option<Extension<KeyName>>,
) -> Result<Json<Value>, ApiError> {
    let id = RequestId(id);
    match app.requests.cancel(&id, key.as_deref()) {
        0 => Err(ApiError::new(
            ErrorKind::NotFound,
            format!("No running request has the id {}", excerpt(&id.0)),
        )),
        count => Ok(Json(json!({"id": id.0, "cancelled": count}))),
    }
}
