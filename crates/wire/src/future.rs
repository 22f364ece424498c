//! What `retrieve_future` answers: a result, "not yet", or a failure.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::PROTOBUF;
use crate::error::WireError;
use crate::json::{RequestFailed, TryAgain};

/// An answer of `retrieve_future` with status 200 (or 408, which some servers send with the body of
/// [`TryAgain`]).
#[derive(Debug, Clone, PartialEq)]
pub enum FutureReply {
    /// The result is not there yet: ask again.
    TryAgain(TryAgain),
    /// The result is there and large: ask again without `allow_metadata_only`.
    MetadataOnly {
        /// Its size in bytes, if told.
        payload_size: Option<u64>,
    },
    /// The request failed.
    Failed(RequestFailed),
    /// The result, protobuf.
    Proto(Vec<u8>),
    /// The result, JSON.
    Json(Value),
}

impl FutureReply {
    /// Reads an answer by its content type.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for a body that is neither protobuf by its type nor a JSON object.
    pub fn parse(content_type: &str, body: Vec<u8>) -> Result<Self, WireError> {
        if content_type.contains(PROTOBUF) {
            return Ok(Self::Proto(body));
        }
        let what = "answer of retrieve_future";
        let value: Value =
            serde_json::from_slice(&body).map_err(|e| WireError::malformed(what, e.to_string()))?;
        let Some(object) = value.as_object() else {
            return Err(WireError::malformed(what, "it is no JSON object"));
        };
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        if text("type") == Some("try_again") {
            return from_value(what, value).map(Self::TryAgain);
        }
        if text("status") == Some("complete_metadata") {
            let payload_size = object.get("response_payload_size").and_then(Value::as_u64);
            return Ok(Self::MetadataOnly { payload_size });
        }
        if object.contains_key("error") {
            return from_value(what, value).map(Self::Failed);
        }
        Ok(Self::Json(value))
    }
}

fn from_value<T: DeserializeOwned>(what: &str, value: Value) -> Result<T, WireError> {
    serde_json::from_value(value).map_err(|e| WireError::malformed(what, e.to_string()))
}
