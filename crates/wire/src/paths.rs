//! Paths of the API below a server's base URL, and headers with a meaning of their own.

/// GET: is the server up.
pub const HEALTHZ: &str = "/api/v1/healthz";
/// GET: base models and their context lengths.
pub const GET_SERVER_CAPABILITIES: &str = "/api/v1/get_server_capabilities";
/// POST: flags of the client, once at its start.
pub const CLIENT_CONFIG: &str = "/api/v1/client/config";
/// POST: flags of the client, now and then; a server without it answers 404.
pub const CLIENT_DYNAMIC_CONFIG: &str = "/api/v1/client/dynamic_config";
/// POST: usage reports of the SDK.
pub const TELEMETRY: &str = "/api/v1/telemetry";
/// POST: a session, which must be kept alive.
pub const CREATE_SESSION: &str = "/api/v1/create_session";
/// POST: keeps a session alive.
pub const SESSION_HEARTBEAT: &str = "/api/v1/session_heartbeat";
/// POST, a future: a model to train.
pub const CREATE_MODEL: &str = "/api/v1/create_model";
/// POST: what a model is.
pub const GET_INFO: &str = "/api/v1/get_info";
/// POST, a future: the model is not needed any more.
pub const UNLOAD_MODEL: &str = "/api/v1/unload_model";
/// POST, a future: log-probabilities and, unless forward only, a gradient (protobuf).
pub const FORWARD_BACKWARD: &str = "/api/v1/forward_backward";
/// POST, a future: one optimizer step.
pub const OPTIM_STEP: &str = "/api/v1/optim_step";
/// POST, a future: weights and optimizer state, for training on.
pub const SAVE_WEIGHTS: &str = "/api/v1/save_weights";
/// POST, a future: takes up what `save_weights` kept.
pub const LOAD_WEIGHTS: &str = "/api/v1/load_weights";
/// POST, a future: weights, for sampling.
pub const SAVE_WEIGHTS_FOR_SAMPLER: &str = "/api/v1/save_weights_for_sampler";
/// POST: what a checkpoint needs to be loaded.
pub const WEIGHTS_INFO: &str = "/api/v1/weights_info";
/// POST: a sampling session over saved weights or a base model.
pub const CREATE_SAMPLING_SESSION: &str = "/api/v1/create_sampling_session";
/// POST, a future: draws completions.
pub const ASAMPLE: &str = "/api/v1/asample";
/// POST: waits for a future's result, for a while.
pub const RETRIEVE_FUTURE: &str = "/api/v1/retrieve_future";

/// Header with the caller's key; `Authorization: Bearer` is the other form.
pub const API_KEY_HEADER: &str = "X-API-Key";
/// Header of `retrieve_future`: how often this result was asked for before.
pub const REQUEST_ITERATION_HEADER: &str = "X-Tinker-Request-Iteration";
/// Header of `retrieve_future`: the kind of request, such as `ForwardBackward`.
pub const REQUEST_TYPE_HEADER: &str = "X-Tinker-Request-Type";
