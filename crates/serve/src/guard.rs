//! What every request passes: its id, the bearer token, the bound on requests, time for its body,
//! the counts. And the two pages without a token: health and, with one, metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::Semaphore;

use crate::auth::BearerToken;
use crate::error::ApiError;
use crate::limits::ServerLimits;
use crate::metrics::Metrics;

/// The name under which a request's id is taken and given.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters of a client's own request id at most.
const MAX_ID_CHARS: usize = 128;

/// Guards the routes of a server.
#[derive(Debug, Clone)]
pub struct Guard {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    token: Option<BearerToken>,
    keys: Keys,
    limits: ServerLimits,
    requests: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    num_requests: AtomicU64,
}

/// Knows the keys that are as good as the token.
struct Keys(Box<dyn Fn(&str) -> bool + Send + Sync>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    /// Whether an `Authorization` header, or a bare key, is one of them.
    fn admit(&self, header: &str) -> bool {
        (self.0)(header.split_once(' ').map_or(header, |(_, key)| key.trim()))
    }
}

impl Guard {
    /// A guard that asks for `token`, if there is one, and keeps `limits`.
    pub fn new(token: Option<BearerToken>, limits: ServerLimits, metrics: Arc<Metrics>) -> Self {
        Self::with_keys(token, limits, metrics, |_| false)
    }

    /// [`Guard::new`] that lets whoever bears one of other `keys` through as well; what each may do
    /// is the routes' affair.
    pub fn with_keys(
        token: Option<BearerToken>,
        limits: ServerLimits,
        metrics: Arc<Metrics>,
        keys: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let keys = Keys(Box::new(keys));
        let requests = Arc::new(Semaphore::new(limits.max_requests.max(1)));
        let num_requests = AtomicU64::new(0);
        Self { inner: Arc::new(Inner { token, keys, limits, requests, metrics, num_requests }) }
    }

    /// The routes behind the guard, with `/health` (open to all) and `/metrics`.
    pub fn protect(&self, routes: Router) -> Router {
        let metrics = Arc::clone(&self.inner.metrics);
        let health = get(|| async { Json(serde_json::json!({"status": "ok"})) });
        routes
            .route("/metrics", get(move || async move { metrics_page(&metrics) }))
            .fallback(|request: Request| async move {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                ApiError::not_found(format!("there is no {method} {path} here"))
            })
            .layer(DefaultBodyLimit::max(self.inner.limits.max_body_bytes))
            .layer(from_fn_with_state(self.clone(), authorize))
            .route("/health", health)
            .layer(from_fn_with_state(self.clone(), observe))
    }
}

fn metrics_page(metrics: &Metrics) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}

/// Asks for the token, and bounds requests. A body that comes too slowly ends the request.
async fn authorize(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let inner = &guard.inner;
    if let Some(token) = &inner.token {
        let headers = request.headers();
        let given = [header::AUTHORIZATION, HeaderName::from_static("x-api-key")]
            .iter()
            .find_map(|name| headers.get(name)?.to_str().ok());
        if !given.is_some_and(|given| token.matches(given) || inner.keys.admit(given)) {
            let message = "the bearer token is missing or wrong (Authorization: Bearer TOKEN)";
            return ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
                .into_response();
        }
    }
    let Ok(permit) = Arc::clone(&inner.requests).try_acquire_owned() else {
        let most = inner.limits.max_requests;
        return ApiError::busy(format!("{most} requests are in work; try again soon"))
            .into_response();
    };
    let request = match read_body(request, &inner.limits).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let response = next.run(request).await;
    drop(permit);
    response
}

/// Takes the whole body in, within the bounds on its size and time.
async fn read_body(request: Request, limits: &ServerLimits) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let read = axum::body::to_bytes(body, limits.max_body_bytes);
    let bytes = match tokio::time::timeout(limits.body_timeout, read).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let most = limits.max_body_bytes;
            let length = std::error::Error::source(&error).map(ToString::to_string);
            let reason = length.unwrap_or_else(|| error.to_string());
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body was not taken ({reason}); at most {most} bytes are"),
            ));
        }
        Err(_) => {
            let seconds = limits.body_timeout.as_secs();
            return Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                format!("the body did not come within {seconds} s"),
            ));
        }
    };
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Gives the request an id and counts it.
async fn observe(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let metrics = Arc::clone(&guard.inner.metrics);
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "(none)".to_owned(), |path| path.as_str().to_owned());
    let id = request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| id.len() <= MAX_ID_CHARS)
        .cloned()
        .unwrap_or_else(|| {
            let number = guard.inner.num_requests.fetch_add(1, Ordering::Relaxed);
            HeaderValue::from_str(&format!("req-{number:x}"))
                .unwrap_or(HeaderValue::from_static("req"))
        });
    let mut counted = Counted { metrics, route, started, status: 499 };
    counted.metrics.begin();
    let mut response = next.run(request).await;
    counted.status = response.status().as_u16();
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Counts a request when it ends, also when its client goes away (status 499, as nginx has it).
struct Counted {
    metrics: Arc<Metrics>,
    route: String,
    started: Instant,
    status: u16,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.end(&self.route, self.status, self.started.elapsed());
    }
}
