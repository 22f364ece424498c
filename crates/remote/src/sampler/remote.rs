//! The sampler itself.

use std::time::Duration;

use patchwright_core::{
    Completion, FinishReason, SampleRequest, Sampler, SamplerError, derive_seed,
};
use serde_json::Value;
use ureq::http::Method;

use super::contract::{Drawn, check};
use super::dialect::{Dialect, Step};
use crate::http::{
    BearerToken, Call, FailureKind, HttpClient, HttpFailure, HttpOptions, Interrupt, Listener,
    RetryBudget, RetryPolicy, retried,
};
use crate::replicas::{Lease, Replicas, Served};

/// Times that an engine is asked on from where it ended by itself.
const MAX_CONTINUATIONS: usize = 64;
/// Bytes of an answer for each token of it, and beside them, at most.
const BYTES_PER_TOKEN: u64 = 4 << 10;
const BYTES_BESIDE: u64 = 1 << 20;

/// How servers are spoken to.
#[derive(Debug, Clone)]
pub struct SamplerOptions {
    /// Base URLs of the replicas.
    pub urls: Vec<String>,
    /// The model's name; empty means the only one that the servers list.
    pub model: String,
    /// Sent with every request.
    pub token: Option<BearerToken>,
    /// Bound of one request.
    pub timeout: Duration,
    /// When requests are sent again.
    pub retry: RetryPolicy,
    /// Requests in flight at one replica at most.
    pub max_in_flight: usize,
    /// How long [`RemoteSampler::connect`] waits for a first replica that answers.
    pub startup: Duration,
    /// How long requests wait while no replica serves.
    pub max_outage: Duration,
    /// Hears of replicas that go down and come back.
    pub listener: Listener,
    /// Ends all requests when it is set.
    pub interrupt: Interrupt,
}

impl SamplerOptions {
    /// Defaults for some servers.
    pub fn new(urls: Vec<String>) -> Self {
        Self {
            urls,
            model: String::new(),
            token: None,
            timeout: Duration::from_mins(10),
            retry: RetryPolicy::default(),
            max_in_flight: 256,
            startup: Duration::from_secs(30),
            max_outage: Duration::from_mins(2),
            listener: Listener::default(),
            interrupt: Interrupt::new(),
        }
    }
}

/// A [`Sampler`] over replicas of one engine.
pub struct RemoteSampler {
    dialect: Dialect,
    replicas: Replicas,
    options: SamplerOptions,
    budget: RetryBudget,
    max_context: usize,
    engine: String,
}

impl RemoteSampler {
    /// Waits for a replica that answers, and learns the model's name and context from it. Of vLLM,
    /// [`Dialect::VllmGenerate`] becomes [`Dialect::VllmCompletions`] where the server has no
    /// `/inference/v1/generate`.
    ///
    /// # Errors
    /// [`HttpFailure`] when none answers in time, the model is not there, or the options are wrong.
    pub fn connect(dialect: Dialect, options: SamplerOptions) -> Result<Self, HttpFailure> {
        let client = |url: &String| {
            HttpClient::new(HttpOptions {
                token: options.token.clone(),
                timeout: options.timeout,
                max_idle_connections: options.max_in_flight,
                interrupt: options.interrupt.clone(),
                ..HttpOptions::new(url.clone())
            })
        };
        let clients = options.urls.iter().map(client).collect::<Result<Vec<_>, _>>()?;
        let replicas = Replicas::new(clients, options.max_in_flight, Served::default())
            .with_outages(options.startup, Listener::default());
        let lease = replicas.acquire(0, options.startup, &|| options.interrupt.is_set())?;
        let facts = Facts::of(dialect, &lease.client, &options.model)?;
        drop(lease);
        let Facts { dialect, model, max_context, engine } = facts;
        let served = Served { model, ..Served::default() };
        let replicas = {
            let clients = replicas.clients();
            Replicas::new(clients, options.max_in_flight, served)
                .with_outages(options.max_outage, options.listener.clone())
        };
        Ok(Self { dialect, replicas, options, budget: RetryBudget::default(), max_context, engine })
    }

    /// The replicas.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// How the servers are asked.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The engine's name and version, as far as it says.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Retries that may still be made.
    pub fn retries_left(&self) -> u32 {
        self.budget.left()
    }

    /// One completion of one server, without retries or routing: for probes. `served` is what it
    /// is asked for.
    ///
    /// # Errors
    /// [`HttpFailure`].
    pub fn sample_at(
        &self,
        client: &HttpClient,
        served: &Served,
        request: &SampleRequest,
    ) -> Result<Completion, HttpFailure> {
        self.ask(client, served, request)
    }

    /// Asks until the answer is whole; checks it.
    fn ask(
        &self,
        client: &HttpClient,
        served: &Served,
        request: &SampleRequest,
    ) -> Result<Completion, HttpFailure> {
        let what = || format!("POST {}{}", client.base_url(), self.dialect.path());
        let garbage = |reason: String| HttpFailure::garbage(what(), reason);
        let request = &SampleRequest {
            num_top_logprobs: request.num_top_logprobs.min(self.dialect.max_top_logprobs()),
            ..request.clone()
        };
        let mut whole = Drawn::default();
        for n in 0..MAX_CONTINUATIONS {
            let part = rest(request, &whole, n);
            let asked = part.as_ref().unwrap_or(request);
            let num_tokens = (asked.context.len() + asked.max_tokens) as u64;
            let per_token = BYTES_PER_TOKEN + 128 * asked.num_top_logprobs as u64;
            let max_answer_bytes = Some(BYTES_BESIDE + per_token * num_tokens);
            let call = Call { max_answer_bytes, ..Call::default() };
            let body = self.dialect.body(&served.model, asked);
            let answer: Value = client.post_json(self.dialect.path(), &body, &call)?;
            match self.dialect.read(asked, answer).map_err(garbage)? {
                Step::Done(drawn) => {
                    append(&mut whole, drawn);
                    check(request, &whole, self.max_context).map_err(garbage)?;
                    return completion(whole, served).map_err(|reason| {
                        HttpFailure::new(FailureKind::WrongWeights, what(), reason)
                    });
                }
                Step::GoOn(drawn) => append(&mut whole, drawn),
            }
        }
        Err(garbage(format!("it ended by itself {MAX_CONTINUATIONS} times")))
    }

    /// One try, at the replica that the session is routed to.
    fn attempt(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, HttpFailure> {
        let lease: Lease =
            self.replicas.acquire(request.session, self.options.timeout, is_cancelled)?;
        let result = self.ask(&lease.client, &lease.served, request);
        if let Err(failure) = &result {
            lease.failed(failure);
            if failure.kind == FailureKind::WrongWeights {
                self.replicas.fence(lease.index, &failure.reason);
            }
        }
        result
    }
}

fn completion(drawn: Drawn, served: &Served) -> Result<Completion, String> {
    if let Some(tag) = &served.tag
        && let Some(other) = drawn.versions.iter().find(|version| *version != tag)
    {
        return Err(format!("weights {other:?} answered where {tag:?} are served"));
    }
    Ok(Completion {
        policy_versions: vec![served.policy_version; drawn.tokens.len()],
        tokens: drawn.tokens,
        logprobs: drawn.logprobs.into_iter().map(|logprob| logprob.min(0.0)).collect(),
        prompt_logprobs: drawn.prompt_logprobs,
        top_logprobs: drawn.top_logprobs,
        finish_reason: drawn.finish_reason,
        policy_version: served.policy_version,
        ..Completion::default()
    })
}

/// The request for what is missing behind `whole`; `None` for the first.
fn rest(request: &SampleRequest, whole: &Drawn, n: usize) -> Option<SampleRequest> {
    (n > 0).then(|| SampleRequest {
        context: [&request.context[..], &whole.tokens].concat(),
        max_tokens: request.max_tokens - whole.tokens.len(),
        seed: derive_seed(request.seed, &["continuation", &n.to_string()]),
        ..request.clone()
    })
}

fn append(whole: &mut Drawn, part: Drawn) {
    whole.prompt = whole.prompt.take().or(part.prompt);
    whole.tokens.extend(part.tokens);
    whole.logprobs.extend(part.logprobs);
    whole.top_logprobs.extend(part.top_logprobs);
    if whole.prompt_logprobs.is_empty() {
        whole.prompt_logprobs = part.prompt_logprobs;
    }
    whole.finish_reason = part.finish_reason;
    whole.versions.extend(part.versions);
}

impl Sampler for RemoteSampler {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        self.sample_cancellable(request, &|| false)
    }

    fn sample_cancellable(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        self.dialect
            .check(request)
            .map_err(|wants| SamplerError::BadRequest(format!("this engine takes {wants}")))?;
        let (asked, room) =
            (request.max_tokens, self.max_context.saturating_sub(request.context.len()));
        if room == 0 {
            let (num, max) = (request.context.len(), self.max_context);
            let text = format!("a context of {num} tokens leaves no room in {max}");
            return Err(SamplerError::BadRequest(text));
        }
        // Engines refuse what they have no room for.
        let request = SampleRequest { max_tokens: asked.min(room), ..request.clone() };
        let is_cancelled = &|| is_cancelled() || self.options.interrupt.is_set();
        let mut completion = retried(
            &self.options.retry,
            &self.budget,
            derive_seed(request.seed, &["retry"]),
            is_cancelled,
            |_| self.attempt(&request, is_cancelled),
        )
        .map_err(|failure| sampler_error(&failure))?;
        if completion.tokens.len() == request.max_tokens
            && completion.finish_reason != FinishReason::Stop
        {
            completion.finish_reason = FinishReason::Length;
        }
        Ok(completion)
    }

    fn end_session(&self, _session: u64) {}

    fn max_context(&self) -> usize {
        self.max_context
    }
}

/// A failed request as a sampler's failure.
pub(crate) fn sampler_error(failure: &HttpFailure) -> SamplerError {
    match failure.kind {
        FailureKind::Cancelled => SamplerError::Cancelled,
        FailureKind::BadRequest | FailureKind::Refused(400 | 413 | 422) => {
            SamplerError::BadRequest(failure.to_string())
        }
        _ => SamplerError::Engine(failure.to_string()),
    }
}

/// What a server says of itself.
struct Facts {
    dialect: Dialect,
    model: String,
    max_context: usize,
    engine: String,
}

impl Facts {
    fn of(dialect: Dialect, client: &HttpClient, model: &str) -> Result<Self, HttpFailure> {
        let call = Call { timeout: Some(Duration::from_secs(30)), ..Call::default() };
        let models: Value = client.get_json("/v1/models", &call)?;
        let mut models = models["data"].as_array().cloned().unwrap_or_default();
        if model.is_empty() {
            // Adapters, also those that an earlier run left, name the model that they belong to.
            models.retain(|entry| entry["parent"].is_null());
        }
        let named = |name: &str| models.iter().find(|m| m["id"].as_str() == Some(name)).cloned();
        let names: Vec<&str> = models.iter().filter_map(|m| m["id"].as_str()).collect();
        let wrong = |reason: String| {
            HttpFailure::new(
                FailureKind::BadRequest,
                format!("server {}", client.base_url()),
                reason,
            )
        };
        let known = names.join(", ");
        let entry = match (model, models.as_slice()) {
            ("", [only]) => only.clone(),
            ("", _) => {
                return Err(wrong(format!(
                    "it lists the models {known}; name one (servers.model)"
                )));
            }
            (name, _) => named(name)
                .ok_or_else(|| wrong(format!("it has no model {name:?}; it lists {known}")))?,
        };
        let mut facts = Self {
            dialect,
            model: entry["id"].as_str().unwrap_or_default().to_owned(),
            max_context: 0,
            engine: String::new(),
        };
        let number = |value: &Value| value.as_u64().unwrap_or(0) as usize;
        match dialect {
            Dialect::VllmGenerate | Dialect::VllmCompletions => {
                facts.max_context = number(&entry["max_model_len"]);
                let version: Value = client.get_json("/version", &call).unwrap_or_default();
                facts.engine = format!("vLLM {}", version["version"].as_str().unwrap_or("?"));
                if dialect == Dialect::VllmGenerate && !has_generate(client, &call) {
                    facts.dialect = Dialect::VllmCompletions;
                }
            }
            Dialect::Sglang => {
                let info = sglang_info(client, &call)?;
                let context = number(&info["context_length"]);
                let by_model = number(&entry["max_model_len"]);
                facts.max_context = if context > 0 { context } else { by_model };
                facts.engine = format!("SGLang {}", info["version"].as_str().unwrap_or("?"));
            }
            Dialect::LlamaCpp => {
                let props: Value = client.get_json("/props", &call)?;
                facts.max_context = number(&props["default_generation_settings"]["n_ctx"]);
                let build = props["build_info"].as_str().unwrap_or("?").to_owned();
                facts.engine = format!("llama.cpp {build}");
            }
        }
        if facts.max_context == 0 {
            return Err(wrong("it does not say how long a context it takes".to_owned()));
        }
        Ok(facts)
    }
}

/// What a server of `SGLang` says of itself; older ones know the path by another name only.
fn sglang_info(client: &HttpClient, call: &Call) -> Result<Value, HttpFailure> {
    match client.get_json("/server_info", call) {
        Err(failure) if failure.kind == FailureKind::Refused(404) => {
            client.get_json("/get_server_info", call)
        }
        info => info,
    }
}

/// Whether `/inference/v1/generate` is there: it refuses an empty request then.
fn has_generate(client: &HttpClient, call: &Call) -> bool {
    let path = Dialect::VllmGenerate.path();
    match client.send(Method::POST, path, Some(b"{}"), call) {
        Ok(_) => true,
        Err(failure) => matches!(failure.kind, FailureKind::Refused(400 | 422)),
    }
}

impl std::fmt::Debug for RemoteSampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = self.replicas.served().policy_version;
        write!(f, "RemoteSampler({:?}, version {version}, {})", self.dialect, self.engine)
    }
}
