//! Checkpoints as the SDK's REST client lists and deletes them.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::super::weights::{Kept, Purpose};
use super::{Answer, State};
use crate::error::ApiError;
use crate::work::Gone;

pub(super) async fn list(Shared(state): Shared<State>, Path(id): Path<String>) -> Answer<Value> {
    let shared = state.clone();
    let list = move |_: &Gone| {
        shared.expire();
        shared.0.store.list(&id)
    };
    let shown: Vec<Value> = state.0.work.run(list).await?.iter().map(show).collect();
    Ok(Json(json!({"checkpoints": shown})))
}

fn show(kept: &Kept) -> Value {
    let (word, kind) = match kept.purpose {
        Purpose::Training => ("weights", "training"),
        Purpose::Sampling => ("sampler_weights", "sampler"),
    };
    json!({
        "checkpoint_id": format!("{word}/{}", kept.name),
        "checkpoint_type": kind,
        "time": kept.saved,
        "tinker_path": kept.path,
        "size_bytes": kept.num_bytes,
        "public": false,
        "expires_at": kept.expires,
    })
}

/// `checkpoint` is `weights/NAME` or `sampler_weights/NAME`.
pub(super) async fn delete(
    Shared(state): Shared<State>,
    Path((id, checkpoint)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let shared = state.clone();
    let delete = move |_: &Gone| {
        let dir = shared.0.store.delete(&format!("tinker://{id}/{checkpoint}"))?;
        // Other weights may come under the same name.
        shared.0.samplers.expire(&[dir], Duration::MAX);
        Ok(StatusCode::NO_CONTENT)
    };
    state.0.work.run(delete).await
}
