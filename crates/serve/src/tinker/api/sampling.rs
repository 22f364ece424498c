//! Sampling sessions and completions.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use patchwright_wire::json::{self, kinds};
use serde_json::{Value, json};

use super::super::futures::Payload;
use super::super::samplers::Source;
use super::super::sampling::Plan;
use super::{Answer, State, read, unique};
use crate::error::ApiError;

fn source(state: &State, base: Option<&str>, path: Option<&str>) -> Result<Source, ApiError> {
    match (path, base) {
        (Some(path), _) => {
            let (dir, origin) = state.0.store.find(path)?;
            let path = Some(path.to_owned());
            Ok(Source { base: origin.base_model, dir: Some(dir), path })
        }
        (None, Some(base)) => {
            state.is_base(base)?;
            Ok(Source { base: base.to_owned(), dir: None, path: None })
        }
        (None, None) => Err(ApiError::param("base_model", "is missing, as is model_path")),
    }
}

pub(super) async fn create_sampling_session(
    Shared(state): Shared<State>,
    body: Bytes,
) -> Answer<json::SamplingSessionCreated> {
    let asked: json::CreateSamplingSession = read(&body)?;
    state.is_session(&asked.session_id)?;
    let source = source(&state, asked.base_model.as_deref(), asked.model_path.as_deref())?;
    let id = format!("{}:sample:{}", asked.session_id, asked.sampling_session_seq_id);
    let mut tables = state.tables();
    if tables.samplers.len() >= state.0.options.max_futures {
        return Err(ApiError::busy("too many sampling sessions are open"));
    }
    tables.samplers.insert(id.clone(), source);
    Ok(Json(json::SamplingSessionCreated {
        sampling_session_id: id,
        kind: kinds::CreateSamplingSession,
    }))
}

fn find_sampler(state: &State, id: &str) -> Result<Source, ApiError> {
    let known = state.tables().samplers.get(id).cloned();
    known.ok_or_else(|| ApiError::not_found(format!("sampling session {id:?} is not known")))
}

pub(super) async fn show_sampler(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Answer<Value> {
    let Source { base, path, .. } = find_sampler(&state, &id)?;
    Ok(Json(json!({"sampler_id": id, "base_model": base, "model_path": path})))
}

/// Besides the future, its completions have names from the beginning: SDK 0.38 asks for them.
pub(super) async fn asample(Shared(state): Shared<State>, body: Bytes) -> Answer<Value> {
    let asked: json::SampleRequest = read(&body)?;
    let num_samples = asked.num_samples;
    let source = match &asked.sampling_session_id {
        Some(id) => find_sampler(&state, id)?,
        None => source(&state, asked.base_model.as_deref(), asked.model_path.as_deref())?,
    };
    let key = match (&asked.sampling_session_id, asked.seq_id) {
        (Some(session), Some(seq)) => format!("sample {session} {seq}"),
        _ => unique("sample"),
    };
    let text = state.0.samplers.text(&source.base);
    let plan = Plan::read(asked, text.as_deref())?;
    let shared = state.clone();
    let Json(future) = state.future(key, None, move |reply| {
        tokio::spawn(async move {
            let inner = &shared.0;
            let samplers = Arc::clone(&inner.samplers);
            let result = plan.run(samplers, source, &inner.work, &inner.metrics).await;
            reply.answer(result.map(Payload::Proto));
        });
        Ok(())
    })?;
    let id = &future.request_id;
    let names: Vec<String> = (0..num_samples).map(|index| format!("sample-{id}-{index}")).collect();
    Ok(Json(json!({"request_id": id, "sample_sequence_ids": names})))
}
