//! Loading a checkpoint at one server.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ureq::http::Method;

use crate::http::{Call, FailureKind, HttpClient, HttpFailure};
use crate::sampler::Dialect;

/// What a checkpoint is loaded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadAs {
    /// In place of the server's weights.
    Weights,
    /// As a `LoRA` adapter beside them (vLLM with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and
    /// `--enable-lora`).
    Adapter,
}

/// One server, while a checkpoint is loaded there.
pub(super) struct Loading<'a> {
    pub client: &'a HttpClient,
    pub timeout: Duration,
}

impl Loading<'_> {
    /// Loads `dir` under the name `tag`; gives a fingerprint of the loaded weights, equal for equal
    /// weights, empty where the server makes none.
    pub fn load(
        &self,
        dialect: Dialect,
        how: LoadAs,
        dir: &Path,
        tag: &str,
    ) -> Result<String, HttpFailure> {
        let path = dir.to_str().ok_or_else(|| {
            let reason = "its path is no text, so no server can be told it";
            HttpFailure::new(FailureKind::BadRequest, dir.display().to_string(), reason)
        })?;
        match (dialect, how) {
            (Dialect::VllmGenerate | Dialect::VllmCompletions, LoadAs::Weights) => {
                self.vllm_weights(path, tag)
            }
            (Dialect::VllmGenerate | Dialect::VllmCompletions, LoadAs::Adapter) => {
                self.vllm_adapter(path, tag).map(|()| String::new())
            }
            (Dialect::Sglang, LoadAs::Weights) => self.sglang(path, tag).map(|()| String::new()),
            (Dialect::Sglang | Dialect::LlamaCpp, _) => Err(HttpFailure::new(
                FailureKind::BadRequest,
                self.client.base_url(),
                "such a server cannot be given these weights while it runs",
            )),
        }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Vec<u8>, HttpFailure> {
        let call = Call { timeout: Some(self.timeout), ..Call::default() };
        let bytes = body.to_string();
        self.client
            .send(Method::POST, path, Some(bytes.as_bytes()), &call)
            .map(|answer| answer.body)
            .map_err(|failure| match failure.kind {
                FailureKind::Refused(404) => {
                    let how = if path.starts_with("/v1/") {
                        "start the server with --enable-lora, a --max-lora-rank that is high enough, \
                         and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where it can read the path"
                    } else {
                        "start the server with VLLM_SERVER_DEV_MODE=1"
                    };
                    HttpFailure { reason: format!("{}; {how}", failure.reason), ..failure }
                }
                _ => failure,
            })
    }

    /// After a failure the server stays paused: what its weights are is not known.
    fn vllm_weights(&self, path: &str, tag: &str) -> Result<String, HttpFailure> {
        self.post("/pause?mode=wait", &json!({}))?;
        let reload = json!({"method": "reload_weights", "kwargs": {"weights_path": path}});
        self.post("/collective_rpc", &reload)?;
        self.post("/reset_prefix_cache", &json!({}))?;
        self.post("/update_weight_version", &json!({"new_version": tag}))?;
        let fingerprint = self.vllm_fingerprint()?;
        self.post("/resume", &json!({}))?;
        let version = self.vllm_version()?;
        if version != tag {
            let reason = format!("it says version {version:?} after {tag:?} was loaded");
            return Err(HttpFailure::new(
                FailureKind::WrongWeights,
                self.client.base_url(),
                reason,
            ));
        }
        Ok(fingerprint)
    }

    fn vllm_fingerprint(&self) -> Result<String, HttpFailure> {
        #[derive(Deserialize)]
        struct Checksums {
            checksums: BTreeMap<String, String>,
        }
        let bytes = self.post("/weight_checker", &json!({"action": "checksum"}))?;
        let Checksums { checksums } = serde_json::from_slice(&bytes)
            .map_err(|error| HttpFailure::garbage("/weight_checker", error.to_string()))?;
        let mut hash = Sha256::new();
        for (name, sum) in &checksums {
            hash.update(format!("{name}={sum}\n"));
        }
        Ok(format!("{:x}", hash.finalize()))
    }

    /// The name of the weights that a vLLM server has.
    pub fn vllm_version(&self) -> Result<String, HttpFailure> {
        #[derive(Deserialize)]
        struct Info {
            weight_version: String,
        }
        let call = Call { timeout: Some(self.timeout), ..Call::default() };
        self.client.get_json::<Info>("/weight_info", &call).map(|info| info.weight_version)
    }

    fn vllm_adapter(&self, path: &str, tag: &str) -> Result<(), HttpFailure> {
        let adapter = json!({"lora_name": tag, "lora_path": path, "load_inplace": true});
        self.post("/v1/load_lora_adapter", &adapter).map(|_| ())
    }

    /// Lets an adapter go; one that is not there is no matter.
    pub fn unload_adapter(&self, tag: &str) {
        let _ = self.post("/v1/unload_lora_adapter", &json!({"lora_name": tag}));
    }

    fn sglang(&self, path: &str, tag: &str) -> Result<(), HttpFailure> {
        #[derive(Deserialize)]
        struct Done {
            success: bool,
            #[serde(default)]
            message: String,
        }
        let body = json!({
            "model_path": path,
            "weight_version": tag,
            "flush_cache": true,
            "abort_all_requests": false,
        });
        let what = "/update_weights_from_disk";
        let done: Done = serde_json::from_slice(&self.post(what, &body)?)
            .map_err(|error| HttpFailure::garbage(what, error.to_string()))?;
        if done.success {
            Ok(())
        } else {
            Err(HttpFailure::new(FailureKind::Refused(400), what, done.message))
        }
    }
}
