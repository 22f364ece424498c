//! Requests and futures: what every operation of the API is made of.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use patchwright_wire::json::{
    self, ClientConfig, ClientConfigRequest, CreateSession, RetrieveFuture, ServerCapabilities,
    SessionCreated, SessionHeartbeat, SessionHeartbeatDone,
};
use patchwright_wire::{
    FutureReply, Limits, PROTOBUF, SDK_VERSION, UntypedFuture, compress, paths,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, header};

use super::error::TinkerError;
use super::options::{ApiKey, TinkerOptions};
use crate::http::{
    BearerToken, Call, FailureKind, HttpClient, HttpFailure, HttpOptions, Outage, RetryBudget,
    RetryPolicy, retried,
};

/// Shortest and longest pause between two questions for a result that is not there.
const FIRST_POLL_PAUSE: Duration = Duration::from_millis(10);
const LAST_POLL_PAUSE: Duration = Duration::from_secs(1);

/// Speaks to one server; for many threads at once.
///
/// A request is sent again by policy when its failure may pass. That is safe: requests that change
/// a model carry a sequence number, by which the server knows the second for the first.
#[derive(Debug)]
pub struct TinkerClient {
    http: HttpClient,
    api_key: Option<ApiKey>,
    policy: RetryPolicy,
    budget: RetryBudget,
    outage: Outage,
    request_timeout: Duration,
    poll_timeout: Duration,
    limits: Limits,
    /// Seeds the jitter of pauses.
    count: AtomicU64,
}

impl TinkerClient {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`TinkerError::Http`] for a URL or key that cannot be used.
    pub fn new(options: &TinkerOptions) -> Result<Self, TinkerError> {
        let http = HttpClient::new(HttpOptions {
            token: options.api_key.as_ref().map(|key| BearerToken::new(key.secret())),
            timeout: options.request_timeout,
            interrupt: options.interrupt.clone(),
            ..HttpOptions::new(&options.url)
        })
        .map_err(TinkerError::Http)?;
        Ok(Self {
            http,
            api_key: options.api_key.clone(),
            policy: RetryPolicy {
                max_retries: options.max_retries,
                first_pause: options.first_pause,
                total: options.request_timeout,
                ..RetryPolicy::default()
            },
            budget: RetryBudget::default(),
            outage: Outage::new(options.listener.clone()),
            request_timeout: options.request_timeout,
            poll_timeout: options.poll_timeout,
            limits: Limits::default(),
            count: AtomicU64::new(0),
        })
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        self.http.base_url()
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Base models of the server.
    ///
    /// # Errors
    /// [`TinkerError`].
    pub fn capabilities(&self) -> Result<ServerCapabilities, TinkerError> {
        let what = "get_server_capabilities";
        self.retried(what, &never, |call| self.http.get_json(paths::GET_SERVER_CAPABILITIES, call))
    }

    /// Flags that the server sets for clients; the defaults when it has none.
    ///
    /// # Errors
    /// [`TinkerError`].
    pub fn client_config(&self) -> Result<ClientConfig, TinkerError> {
        let body = ClientConfigRequest { sdk_version: SDK_VERSION.to_owned() };
        match self.post("client_config", paths::CLIENT_CONFIG, &body) {
            Err(TinkerError::Lost { .. }) => Ok(ClientConfig::default()),
            answer => answer,
        }
    }

    /// Begins a session; it must be kept alive with [`TinkerClient::heartbeat`].
    ///
    /// # Errors
    /// [`TinkerError`].
    pub fn create_session(&self) -> Result<SessionCreated, TinkerError> {
        let body = CreateSession {
            tags: vec!["patchwright".to_owned()],
            user_metadata: Some(std::collections::BTreeMap::new()),
            sdk_version: SDK_VERSION.to_owned(),
            ..CreateSession::default()
        };
        self.post("create_session", paths::CREATE_SESSION, &body)
    }

    /// Keeps a session alive. Tried once, for at most 10 seconds.
    ///
    /// # Errors
    /// [`TinkerError::Lost`] when the server does not know the session.
    pub fn heartbeat(&self, session_id: &str) -> Result<(), TinkerError> {
        let body = SessionHeartbeat {
            session_id: session_id.to_owned(),
            kind: json::kinds::SessionHeartbeat,
        };
        let headers = self.headers();
        let call =
            Call { timeout: Some(Duration::from_secs(10)), headers: &headers, ..Call::default() };
        let answer: Result<SessionHeartbeatDone, HttpFailure> =
            self.http.post_json(paths::SESSION_HEARTBEAT, &body, &call);
        answer.map(|_| ()).map_err(|failure| TinkerError::from_http("session_heartbeat", failure))
    }

    /// Sends JSON and reads JSON, with retries.
    ///
    /// # Errors
    /// [`TinkerError`].
    pub fn post<T: Serialize, R: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        body: &T,
    ) -> Result<R, TinkerError> {
        self.retried(what, &never, |call| self.http.post_json(path, body, call))
    }

    /// As [`TinkerClient::post`], unless `is_cancelled`.
    pub(super) fn start(
        &self,
        what: &str,
        path: &str,
        body: &impl Serialize,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<UntypedFuture, TinkerError> {
        self.retried(what, is_cancelled, |call| self.http.post_json(path, body, call))
    }

    /// Sends a protobuf body, packed if the server wants that.
    pub(super) fn start_proto(
        &self,
        what: &str,
        path: &str,
        body: &[u8],
        packed: bool,
    ) -> Result<UntypedFuture, TinkerError> {
        let packed_body = if packed { Some(compress(body)?) } else { None };
        let body = packed_body.as_deref().unwrap_or(body);
        self.retried(what, &never, |call| {
            let mut headers = call.headers.to_vec();
            if packed {
                headers.push(("Content-Encoding", "zstd"));
            }
            let call = Call { content_type: Some(PROTOBUF), headers: &headers, ..*call };
            let answer = self.http.send(Method::POST, path, Some(body), &call)?;
            serde_json::from_slice(&answer.body)
                .map_err(|e| HttpFailure::garbage(what, format!("the answer is no future: {e}")))
        })
    }

    /// Waits for a JSON result.
    pub(super) fn wait_json<T: DeserializeOwned>(
        &self,
        what: &str,
        future: &UntypedFuture,
    ) -> Result<T, TinkerError> {
        match self.wait(what, future, &never)? {
            FutureReply::Json(value) => serde_json::from_value(value)
                .map_err(|error| TinkerError::contract(what, error.to_string())),
            _ => Err(TinkerError::contract(what, "protobuf where JSON was expected")),
        }
    }

    /// Waits for a protobuf result.
    pub(super) fn wait_proto(
        &self,
        what: &str,
        future: &UntypedFuture,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, TinkerError> {
        match self.wait(what, future, is_cancelled)? {
            FutureReply::Proto(bytes) => Ok(bytes),
            _ => Err(TinkerError::Protocol {
                what: what.to_owned(),
                reason: "it answers in JSON where protobuf was asked for".to_owned(),
            }),
        }
    }

    /// Asks for a result until it is there, it failed, or the time is over. Waits that end without
    /// an answer are part of the game; answers that are none are counted.
    fn wait(
        &self,
        what: &str,
        future: &UntypedFuture,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<FutureReply, TinkerError> {
        let start = Instant::now();
        let body =
            RetrieveFuture { request_id: future.request_id.clone(), allow_metadata_only: false };
        let body = serde_json::to_vec(&body)
            .map_err(|error| TinkerError::contract(what, error.to_string()))?;
        let (mut num_failures, mut iteration, mut pause) = (0, 0u32, FIRST_POLL_PAUSE);
        loop {
            if is_cancelled() || self.http.interrupt().is_set() {
                return Err(TinkerError::Cancelled);
            }
            let left = self.request_timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(TinkerError::TimedOut {
                    what: what.to_owned(),
                    limit: self.request_timeout,
                });
            }
            match self.ask(what, &body, iteration, left.min(self.poll_timeout)) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => num_failures = 0,
                Err(TinkerError::Http(failure)) if failure.kind.is_passing() => {
                    num_failures += 1;
                    if num_failures > self.policy.max_retries {
                        return Err(TinkerError::Http(failure));
                    }
                    pause = pause.max(self.policy.first_pause);
                }
                Err(error) => return Err(error),
            }
            iteration += 1;
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LAST_POLL_PAUSE);
        }
    }

    /// Asks once; `None` when the result is not there yet.
    fn ask(
        &self,
        what: &str,
        body: &[u8],
        iteration: u32,
        timeout: Duration,
    ) -> Result<Option<FutureReply>, TinkerError> {
        let iteration = iteration.to_string();
        let mut headers = self.headers();
        headers.push((paths::REQUEST_ITERATION_HEADER, &iteration));
        headers.push((paths::REQUEST_TYPE_HEADER, what));
        headers.push(("Accept", PROTOBUF));
        let call = Call { timeout: Some(timeout), headers: &headers, ..Call::default() };
        let answer = self.http.send(Method::POST, paths::RETRIEVE_FUTURE, Some(body), &call);
        self.outage.heard(self.url(), &answer);
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure)
                if matches!(failure.kind, FailureKind::Timeout | FailureKind::Server(408)) =>
            {
                return Ok(None);
            }
            Err(failure) => return Err(TinkerError::from_http(what, failure)),
        };
        let content_type = answer
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let reply = FutureReply::parse(&content_type, answer.body)
            .map_err(|e| TinkerError::Http(HttpFailure::garbage(what, e.to_string())))?;
        match reply {
            FutureReply::TryAgain(_) | FutureReply::MetadataOnly { .. } => Ok(None),
            FutureReply::Failed(failed) => {
                Err(TinkerError::Failed { what: what.to_owned(), reason: failed.error })
            }
            reply => Ok(Some(reply)),
        }
    }

    fn retried<T>(
        &self,
        what: &str,
        is_cancelled: &dyn Fn() -> bool,
        attempt: impl Fn(&Call) -> Result<T, HttpFailure>,
    ) -> Result<T, TinkerError> {
        let seed = self.count.fetch_add(1, Ordering::Relaxed);
        let headers = self.headers();
        let call = Call { headers: &headers, ..Call::default() };
        let is_cancelled = &|| is_cancelled() || self.http.interrupt().is_set();
        let attempt = |_| {
            let result = attempt(&call);
            self.outage.heard(self.url(), &result);
            result
        };
        retried(&self.policy, &self.budget, seed, is_cancelled, attempt)
            .map_err(|failure| TinkerError::from_http(what, failure))
    }

    fn headers(&self) -> Vec<(&str, &str)> {
        self.api_key.iter().map(|key| (paths::API_KEY_HEADER, key.secret())).collect()
    }
}

/// Nobody withdraws the request.
pub(super) fn never() -> bool {
    false
}
