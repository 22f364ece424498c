//! Low-rank adapters (`LoRA`, Hu et al., arXiv 2106.09685), in the files of PEFT.
//!
//! A target matrix is `W + alpha / rank · B A`; only `A` and `B` are trained. The engine computes
//! with the merged matrix, so trainer and sampler need to know nothing of adapters and agree as
//! they do without. The gradients follow from the merged matrix's:
//! `dB = alpha / rank · dW Aᵀ` and `dA = alpha / rank · Bᵀ dW`.

mod files;

use std::collections::BTreeMap;
use std::ops::Range;

use patchwright_core::AdamParams;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backward::Wanted;
use crate::kernels::gemm::{Into, PackedMatrix, matmul};
use crate::optim::{self, Moments};
use crate::params::{ParamLayout, TensorKind, TensorSpec};
use crate::team::Team;

/// Projections that can be adapted, by their names in Hugging Face checkpoints.
const MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Options of an adapter that would change what it computes, and the value that does not.
const PLAIN: [(&str, &[&str]); 9] = [
    ("bias", &["none"]),
    ("fan_in_fan_out", &["false"]),
    ("use_rslora", &["false"]),
    ("use_dora", &["false"]),
    ("lora_bias", &["false"]),
    ("rank_pattern", &["{}"]),
    ("alpha_pattern", &["{}"]),
    ("modules_to_save", &["[]"]),
    ("layers_to_transform", &["[]"]),
];

/// Shape of an adapter. Field names are those of PEFT's `adapter_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the update, at least 1.
    #[serde(rename = "r")]
    pub rank: usize,
    /// The update is multiplied by `lora_alpha / r`.
    pub lora_alpha: f32,
    /// Projections of every layer that are adapted: `q_proj`, `k_proj`, `v_proj`, `o_proj`,
    /// `gate_proj`, `up_proj`, `down_proj`.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Gradients of the matrices that the adapter's follow from.
    fn wanted(&self) -> Wanted {
        let has = |names: &[&str]| self.target_modules.iter().any(|m| names.contains(&m.as_str()));
        Wanted {
            qkv: has(&["q_proj", "k_proj", "v_proj"]),
            output: has(&["o_proj"]),
            gate_up: has(&["gate_proj", "up_proj"]),
            down: has(&["down_proj"]),
            others: false,
        }
    }

    fn scale(&self) -> f32 {
        self.lora_alpha / self.rank as f32
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=1 << 14).contains(&self.rank) {
            return Err(format!("r is {}, expected 1 to {}", self.rank, 1 << 14));
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return Err(format!("lora_alpha is {}, expected a positive number", self.lora_alpha));
        }
        if self.target_modules.is_empty() {
            return Err(format!(
                "target_modules is empty, expected some of {}",
                MODULES.join(", ")
            ));
        }
        match self.target_modules.iter().find(|m| !MODULES.contains(&m.as_str())) {
            Some(unknown) => Err(format!(
                "target_modules has {unknown:?}, expected some of {}",
                MODULES.join(", ")
            )),
            None => Ok(()),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if value["peft_type"] != "LORA" {
            return Err(format!("peft_type is {}, expected \"LORA\"", value["peft_type"]));
        }
        for (name, plain) in PLAIN {
            let found = &value[name];
            let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
            if !found.is_null() && !plain.contains(&text.as_str()) {
                return Err(format!("{name} is {text}, which is not supported ({} is)", plain[0]));
            }
        }
        let config: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn to_json(&self) -> String {
        let json = serde_json::json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": Value::Null,
            "r": self.rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": 0.0,
            "target_modules": self.target_modules,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
        });
        format!("{json:#}\n")
    }
}

/// One adapted matrix, `[rows][columns]`.
#[derive(Debug, Clone)]
struct Target {
    matrix: Range<usize>,
    rows: usize,
    columns: usize,
    /// `[rank][columns]`, in the adapter's flat buffer.
    a: Range<usize>,
    /// `[rows][rank]`.
    b: Range<usize>,
}

/// An adapter in training.
#[derive(Debug)]
pub(crate) struct Lora {
    pub config: LoraConfig,
    targets: Vec<Target>,
    tensors: Vec<TensorSpec>,
    /// The model's parameters without the adapter.
    base: Vec<f32>,
    params: Vec<f32>,
    gradient: Vec<f32>,
    moments: Moments,
}

impl Lora {
    /// Around `base`; `A` is drawn from `seed` as PEFT does, `B` is 0, so that nothing changes yet.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub(crate) fn new(
        config: LoraConfig,
        layout: &ParamLayout,
        base: Vec<f32>,
        seed: u64,
    ) -> Result<Self, String> {
        config.check()?;
        let (mut targets, mut tensors, mut total) = (Vec::new(), Vec::new(), 0);
        for tensor in &layout.tensors {
            let Some(module) = tensor.name.strip_suffix(".weight") else { continue };
            if !config.target_modules.iter().any(|name| module.ends_with(&format!(".{name}"))) {
                continue;
            }
            let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
            let mut place = |side: &str, shape: [usize; 2]| {
                let range = total..total + shape[0] * shape[1];
                total = range.end;
                let name = format!("base_model.model.{module}.lora_{side}.weight");
                let (shape, range) = (shape.to_vec(), range.clone());
                tensors.push(TensorSpec {
                    name,
                    shape,
                    range: range.clone(),
                    kind: TensorKind::Matrix,
                });
                range
            };
            let a = place("A", [config.rank, columns]);
            let b = place("B", [rows, config.rank]);
            targets.push(Target { matrix: tensor.range.clone(), rows, columns, a, b });
        }
        let mut params = vec![0.0; total];
        for (target, tensor) in targets.iter().zip(tensors.iter().step_by(2)) {
            let seed = patchwright_core::derive_seed(seed, &["lora", &tensor.name]);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let bound = 1.0 / (target.columns as f32).sqrt();
            params[target.a.clone()].fill_with(|| rng.random_range(-bound..bound));
        }
        let (gradient, moments) = (vec![0.0; total], Moments::default());
        Ok(Self { config, targets, tensors, base, params, gradient, moments })
    }

    /// Gradients that are needed.
    pub(crate) fn wanted(&self) -> Wanted {
        self.config.wanted()
    }

    /// Writes `base + scale · B A` into the model's parameters.
    pub(crate) fn merge(&self, params: &mut [f32], team: &Team) {
        params.copy_from_slice(&self.base);
        let scale = self.config.scale();
        let mut rest = params;
        let mut start = 0;
        let mut parts = Vec::new();
        for target in &self.targets {
            let (own, after) = std::mem::take(&mut rest)[target.matrix.start - start..]
                .split_at_mut(target.matrix.len());
            (rest, start) = (after, target.matrix.end);
            parts.push((target, own));
        }
        team.each(&mut vec![(); team.size()], parts, |(), (target, matrix)| {
            let mut a = PackedMatrix::default();
            a.pack(&self.params[target.a.clone()], self.config.rank, target.columns);
            let mut update = vec![0.0; matrix.len()];
            matmul(&self.params[target.b.clone()], &a, &mut update, Into::Set);
            for (x, update) in matrix.iter_mut().zip(update) {
                *x += scale * update;
            }
        });
    }

    /// The adapter's gradient from the merged matrices'.
    fn project(&mut self, gradient: &[f32], team: &Team) {
        let Self { config, targets, params, gradient: own, .. } = self;
        let (rank, scale) = (config.rank, config.scale());
        let mut parts = Vec::new();
        let mut rest = &mut own[..];
        for target in &*targets {
            let (d_a, after) = std::mem::take(&mut rest).split_at_mut(target.a.len());
            let (d_b, after) = after.split_at_mut(target.b.len());
            rest = after;
            parts.push((target, d_a, d_b));
        }
        team.each(&mut vec![(); team.size()], parts, |(), (target, d_a, d_b)| {
            let d_matrix = &gradient[target.matrix.clone()];
            let (a, b) = (&params[target.a.clone()], &params[target.b.clone()]);
            let mut packed = PackedMatrix::default();
            packed.pack_transposed(a, rank, target.columns);
            matmul(d_matrix, &packed, d_b, Into::Set);
            packed.pack(d_matrix, target.rows, target.columns);
            let transposed: Vec<f32> =
                (0..b.len()).map(|i| b[i % target.rows * rank + i / target.rows]).collect();
            matmul(&transposed, &packed, d_a, Into::Set);
            for x in d_a.iter_mut().chain(d_b) {
                *x *= scale;
            }
        });
    }

    /// Gradient norm of the adapter, given the merged matrices' gradient.
    pub(crate) fn norm(&mut self, gradient: &[f32], team: &Team) -> f64 {
        self.project(gradient, team);
        optim::norm(&self.gradient, team)
    }

    /// One optimizer step with what [`Lora::norm`] projected, times `scale`.
    pub(crate) fn step(&mut self, scale: f32, adam: &AdamParams, team: &Team) {
        let Self { tensors, params, gradient, moments, .. } = self;
        optim::adamw(tensors, params, gradient, scale, moments, adam, team);
    }

    /// Steps since the moments were last reset.
    pub(crate) fn optimizer_step(&self) -> u64 {
        self.moments.step
    }

    pub(crate) fn reset_optimizer(&mut self) {
        self.moments = Moments::default();
    }

    /// Tensors by their PEFT names, row-major.
    pub(crate) fn parameters(&self) -> BTreeMap<String, Vec<f32>> {
        self.by_name(&self.params)
    }

    /// Gradients by their PEFT names, row-major.
    pub(crate) fn gradients(
        &mut self,
        gradient: &[f32],
        team: &Team,
    ) -> BTreeMap<String, Vec<f32>> {
        self.project(gradient, team);
        self.by_name(&self.gradient)
    }

    fn by_name(&self, flat: &[f32]) -> BTreeMap<String, Vec<f32>> {
        let tensors = self.tensors.iter();
        tensors.map(|t| (t.name.clone(), flat[t.range.clone()].to_vec())).collect()
    }

    /// Overwrites one tensor.
    ///
    /// # Errors
    /// What is wrong with the name or the values.
    pub(crate) fn set(&mut self, name: &str, values: &[f32]) -> Result<(), String> {
        let spec = self.tensors.iter().find(|t| t.name == name);
        let spec = spec.ok_or_else(|| format!("tensor {name} is not of this adapter"))?;
        if values.len() != spec.range.len() {
            return Err(format!(
                "tensor {name} has {} numbers, expected {:?}",
                values.len(),
                spec.shape
            ));
        }
        if values.iter().any(|x| !x.is_finite()) {
            return Err(format!("tensor {name} has numbers that are not finite"));
        }
        self.params[spec.range.clone()].copy_from_slice(values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_ignored_is_refused() {
        let config = LoraConfig {
            rank: 4,
            lora_alpha: 8.0,
            target_modules: vec!["q_proj".to_owned(), "down_proj".to_owned()],
        };
        assert_eq!(LoraConfig::parse(&config.to_json()).unwrap(), config);
        let edit = |key: &str, value: Value| {
            let mut json: Value = serde_json::from_str(&config.to_json()).unwrap();
            json[key] = value;
            LoraConfig::parse(&json.to_string())
        };
        assert!(edit("modules_to_save", Value::Null).is_ok());
        assert!(edit("use_dora", true.into()).unwrap_err().contains("use_dora"));
        assert!(edit("bias", "all".into()).unwrap_err().contains("bias is all"));
        assert!(edit("rank_pattern", serde_json::json!({"q_proj": 2})).is_err());
        assert!(edit("peft_type", "IA3".into()).unwrap_err().contains("IA3"));
        assert!(edit("r", 0.into()).unwrap_err().contains("r is 0"));
        assert!(edit("lora_alpha", (-1).into()).unwrap_err().contains("positive"));
        let unknown = edit("target_modules", serde_json::json!(["lm_head"])).unwrap_err();
        assert!(unknown.contains("lm_head") && unknown.contains("q_proj"), "{unknown}");
        assert!(edit("target_modules", serde_json::json!([])).unwrap_err().contains("empty"));
    }
}
