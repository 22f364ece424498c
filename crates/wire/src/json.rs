//! The JSON messages. Fields that only some senders write are optional; a request's `type` field,
//! which repeats the path, is written and not read.
//!
//! Requests hold the fields of SDK 0.38 that change what is asked for, so that a server can refuse
//! what it does not do; fields that are unknown are passed over.

mod sampling;
mod service;
mod training;

pub use sampling::{
    Chunk, CreateSamplingSession, ModelInput, SampleRequest, SamplingParams,
    SamplingSessionCreated, Stop,
};
pub use service::{
    ApiError, ClientConfig, ClientConfigRequest, CreateSession, ErrorCategory, Health,
    RequestFailed, RetrieveFuture, ServerCapabilities, SessionCreated, SessionHeartbeat,
    SessionHeartbeatDone, SupportedModel, TryAgain, UntypedFuture,
};
pub use training::{
    AdamParams, CreateModel, GetInfo, LoadWeights, LoraConfig, ModelCreated, ModelData, ModelInfo,
    ModelUnloaded, OptimStep, OptimStepDone, SaveWeights, SaveWeightsForSampler, UnloadModel,
    WeightsInfo, WeightsInfoRequest, WeightsLoaded, WeightsSaved, WeightsSavedForSampler,
};

/// The `type` field of a message: written as a fixed word, passed over when read.
macro_rules! message_type {
    ($name:ident, $word:literal) => {
        #[doc = concat!("The word `", $word, "`.")]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name;

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str($word)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                serde::de::IgnoredAny::deserialize(d).map(|_| Self)
            }
        }
    };
}
pub(crate) use message_type;

/// The names of message kinds, as `type` fields have them.
pub mod kinds {
    super::message_type!(CreateSession, "create_session");
    super::message_type!(SessionHeartbeat, "session_heartbeat");
    super::message_type!(CreateModel, "create_model");
    super::message_type!(GetInfo, "get_info");
    super::message_type!(UnloadModel, "unload_model");
    super::message_type!(OptimStep, "optim_step");
    super::message_type!(SaveWeights, "save_weights");
    super::message_type!(LoadWeights, "load_weights");
    super::message_type!(SaveWeightsForSampler, "save_weights_for_sampler");
    super::message_type!(CreateSamplingSession, "create_sampling_session");
    super::message_type!(Sample, "sample");
    super::message_type!(TryAgain, "try_again");
}
