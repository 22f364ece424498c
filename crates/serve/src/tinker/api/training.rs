//! Learning, and checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use patchwright_core::AdamParams;
use patchwright_wire::json::{self, UntypedFuture, kinds};
use patchwright_wire::{ForwardBackwardRequest, Limits, PROTOBUF, decompress};

use super::super::LoraSpec;
use super::super::futures::Payload;
use super::super::loss::{self, Batch};
use super::super::models::Model;
use super::super::samplers::Source;
use super::super::weights::{Origin, Purpose};
use super::{Answer, State, read, start_model, to_json};
use crate::error::ApiError;

pub(super) async fn forward_backward(
    Shared(state): Shared<State>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<UntypedFuture> {
    let is = |name, value: &str| {
        let given = headers.get(name).and_then(|given: &header::HeaderValue| given.to_str().ok());
        given.is_some_and(|given| given.starts_with(value))
    };
    if !is(header::CONTENT_TYPE, PROTOBUF) {
        let message = format!("the body must be {PROTOBUF}; SDKs before 0.25 are not supported");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "unsupported_media_type", message));
    }
    let limits = Limits::default();
    let is_zstd = is(header::CONTENT_ENCODING, "zstd");
    let wire = |error: patchwright_wire::WireError| ApiError::bad(error.to_string());
    let parse = move |_: &crate::work::Gone| {
        let body =
            if is_zstd { decompress(&body, limits.max_body).map_err(wire)?.into() } else { body };
        let request = ForwardBackwardRequest::decode(&body, &limits).map_err(wire)?;
        let batch = Batch::read(&request);
        Ok((request.model_id, request.seq_id, request.forward_only, batch))
    };
    let (model_id, seq_id, forward_only, batch) = state.0.work.run(parse).await?;
    let metrics = Arc::clone(&state.0.metrics);
    state.job(&model_id, Some(seq_id), move |learner| {
        let batch = batch?;
        let (logprobs, loss) = if forward_only {
            let logprobs = learner.forward(&batch.samples)?;
            let loss = loss::sum(&batch, &logprobs);
            (logprobs, loss)
        } else {
            let done = learner.forward_backward(&batch.samples, &batch.loss)?;
            (done.logprobs, done.loss)
        };
        metrics.trained(batch.num_tokens());
        let named = [("loss:sum".to_owned(), loss)].into();
        Ok(Payload::Proto(loss::output(&logprobs, named).encode()))
    })
}

pub(super) async fn optim_step(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::OptimStep = read(&body)?;
    let given = asked.adam_params;
    let params = AdamParams {
        lr: given.learning_rate as f32,
        beta1: given.beta1 as f32,
        beta2: given.beta2 as f32,
        eps: given.eps as f32,
        weight_decay: given.weight_decay as f32,
        grad_clip: given.grad_clip_norm as f32,
    };
    state.job(&asked.model_id, asked.seq_id, move |learner| {
        let stats = learner.optim_step(&params)?;
        let metrics: BTreeMap<String, f64> =
            [("grad_norm".to_owned(), f64::from(stats.grad_norm))].into();
        to_json(json::OptimStepDone { metrics: Some(metrics) })
    })
}

fn origin(model: &Model) -> Origin {
    Origin {
        base_model: model.base.clone(),
        lora_rank: model.lora.map(|lora| lora.rank),
        train_attn: model.lora.is_none_or(|lora| lora.train_attn),
        train_mlp: model.lora.is_none_or(|lora| lora.train_mlp),
    }
}

pub(super) async fn save_weights(
    Shared(state): Shared<State>,
    body: Bytes,
) -> Answer<UntypedFuture> {
    let asked: json::SaveWeights = read(&body)?;
    let model = state.model(&asked.model_id)?;
    let name = asked.path.unwrap_or_else(|| format!("state-{}", asked.seq_id.unwrap_or(0)));
    let (path, dir) = state.0.store.place(&asked.model_id, Purpose::Training, &name)?;
    let (origin, store) = (origin(&model), Arc::clone(&state.0.store));
    let (overwrite, ttl) = (asked.overwrite, asked.ttl_seconds);
    state.job(&asked.model_id, asked.seq_id, move |learner| {
        store.write(&dir, overwrite, &origin, |dir| Ok(learner.save_state(dir)?))?;
        if let Some(seconds) = ttl {
            store.expire_after(&dir, Duration::from_secs(seconds))?;
        }
        to_json(json::WeightsSaved { path, kind: kinds::SaveWeights })
    })
}

pub(super) async fn load_weights(
    Shared(state): Shared<State>,
    body: Bytes,
) -> Answer<UntypedFuture> {
    let asked: json::LoadWeights = read(&body)?;
    let (dir, origin) = state.0.store.find(&asked.path)?;
    if let (None, Some(session), Some(seq)) =
        (&asked.model_id, &asked.session_id, asked.model_seq_id)
    {
        let lora = origin.lora_rank.map(|rank| LoraSpec {
            rank,
            seed: 0,
            train_attn: origin.train_attn,
            train_mlp: origin.train_mlp,
            // Whoever made it was told.
            train_unembed: false,
        });
        let model_id = format!("{session}:train:{seq}");
        let from = Some((asked.path, dir, asked.optimizer));
        return start_model(&state, session, model_id, origin.base_model, lora, from);
    }
    let Some(model_id) = asked.model_id else {
        return Err(ApiError::param("model_id", "is missing"));
    };
    let model = state.model(&model_id)?;
    if model.base != origin.base_model || model.lora.map(|lora| lora.rank) != origin.lora_rank {
        let rank = origin.lora_rank.map_or("none".to_owned(), |rank| rank.to_string());
        return Err(ApiError::param(
            "path",
            format!("is of {} with an adapter of rank {rank}, the model is not", origin.base_model),
        ));
    }
    let id = model_id.clone();
    state.job(&model_id, asked.seq_id, move |learner| {
        learner.load_state(&dir, asked.optimizer)?;
        to_json(json::WeightsLoaded {
            path: Some(asked.path),
            model_id: Some(id),
            ..json::WeightsLoaded::default()
        })
    })
}

pub(super) async fn save_for_sampler(
    Shared(state): Shared<State>,
    body: Bytes,
) -> Answer<UntypedFuture> {
    let asked: json::SaveWeightsForSampler = read(&body)?;
    if let Some(kind) = asked.client_kind.as_deref().filter(|kind| *kind != "snapshot") {
        return Err(ApiError::param("kind", format!("{kind:?} is not supported, only snapshot")));
    }
    let model = state.model(&asked.model_id)?;
    let session = asked.sampling_session_seq_id;
    let name = match (&asked.path, session) {
        (Some(name), _) => name.clone(),
        (None, Some(session)) => format!("session-{session}"),
        (None, None) => return Err(ApiError::param("path", "is missing")),
    };
    let (path, dir) = state.0.store.place(&asked.model_id, Purpose::Sampling, &name)?;
    let (origin, shared) = (origin(&model), state.clone());
    let (model_id, session_id) = (asked.model_id.clone(), model.session.clone());
    state.job(&asked.model_id, asked.seq_id, move |learner| {
        // A snapshot's name is this server's own.
        let store = &shared.0.store;
        store.write(&dir, asked.path.is_none(), &origin, |dir| Ok(learner.export(dir)?))?;
        if let Some(seconds) = asked.ttl_seconds {
            store.expire_after(&dir, Duration::from_secs(seconds))?;
        }
        let mut answer = json::WeightsSavedForSampler::default();
        if asked.path.is_some() {
            answer.path = Some(path);
        } else if let Some(session) = session {
            store.keep_snapshot(&model_id, &dir)?;
            let id = format!("{session_id}:sample:{session}");
            let source = Source { base: origin.base_model, dir: Some(dir), path: Some(path) };
            shared.tables().samplers.insert(id.clone(), source);
            answer.sampling_session_id = Some(id);
        }
        to_json(answer)
    })
}

pub(super) async fn weights_info(
    Shared(state): Shared<State>,
    body: Bytes,
) -> Answer<json::WeightsInfo> {
    let asked: json::WeightsInfoRequest = read(&body)?;
    let (_, origin) = state.0.store.find(&asked.tinker_path)?;
    let is_lora = origin.lora_rank.is_some();
    Ok(Json(json::WeightsInfo {
        base_model: origin.base_model,
        is_lora,
        lora_rank: origin.lora_rank.map(|rank| rank as u32),
        train_unembed: is_lora.then_some(false),
        train_mlp: is_lora.then_some(origin.train_mlp),
        train_attn: is_lora.then_some(origin.train_attn),
    }))
}
