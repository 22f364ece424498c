//! The fields of a request, taken out one by one, so that what is left over can be refused by its
//! name: no knob is silent.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ApiError;

/// What is left of a request's body.
#[derive(Debug)]
pub(crate) struct Fields(BTreeMap<String, Box<RawValue>>);

impl Fields {
    /// Reads a JSON object.
    pub(crate) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let fields = serde_json::from_slice(body)
            .map_err(|error| ApiError::bad(format!("the body is not a JSON object: {error}")))?;
        Ok(Self(fields))
    }

    /// Takes a field out; `None` where it is missing or null.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        serde_json::from_str(value.get()).map_err(|error| ApiError::param(name, error))
    }

    /// [`Fields::take`] with a value for a missing field.
    pub(crate) fn take_or<T: DeserializeOwned>(
        &mut self,
        name: &str,
        default: T,
    ) -> Result<T, ApiError> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    /// Takes a field out that may only say what holds anyway.
    pub(crate) fn neutral(&mut self, name: &str, accepted: &[Value]) -> Result<(), ApiError> {
        let Some(value) = self.take::<Value>(name)? else { return Ok(()) };
        let same = |accepted: &Value| match (accepted.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() < f64::EPSILON,
            _ => *accepted == value,
        };
        if accepted.iter().any(same) {
            return Ok(());
        }
        let known: Vec<String> = accepted.iter().map(Value::to_string).collect();
        let known = if known.is_empty() { "null".to_owned() } else { known.join(" or ") };
        Err(ApiError::param(name, format!("{value} is not supported here, only {known}")))
    }

    /// Drops fields that change nothing in what is computed: names and notes of the caller.
    pub(crate) fn notes(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Refuses what is left.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.iter().find(|(_, value)| value.get() != "null") {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::param(name, "is not supported here; leave it out")),
        }
    }
}
