//! Losses of the API as objectives of a trainer, and data in both directions.
//!
//! A datum has inputs `x[0..n]` and targets `y[0..n]`, where `y[i]` is predicted from `x[0..=i]`.
//! A [`TrainingSample`] is one sequence whose token `t` is predicted from those before it: it is
//! `x` with the last target behind it, and what a datum says at `i` is said at `t = i + 1`.

use std::collections::BTreeMap;

use patchwright_algo::dapo::Dapo;
use patchwright_algo::supervised::CrossEntropy;
use patchwright_core::{Objective, TokenLoss, TrainingSample};
use patchwright_wire::{Datum, ForwardBackwardOutput, ForwardBackwardRequest, LossFn, Tensor};

use crate::error::ApiError;

/// Ratios of the clips unless the request says otherwise: the API's own defaults.
const CLIP: (f64, f64) = (0.8, 1.2);

/// `beta` of `dro` unless the request says otherwise.
const DRO_BETA: f64 = 0.05;

/// Log-ratios are cut to this, as in [`Dapo`].
const MAX_LOG_RATIO: f32 = 20.0;

/// A loss of the API, summed over tokens.
#[derive(Debug, Clone, Copy)]
pub(super) enum Loss {
    /// `-w lp`.
    CrossEntropy(CrossEntropy),
    /// `-w min(r A, clip(r) A)`; importance sampling is the one without a clip.
    Surrogate(Dapo),
    /// `-w clip(r) A lp`, no gradient through `clip(r)` (arXiv 2506.13585, section 3.1).
    Cispo { low: f32, high: f32 },
    /// `-w (A lp - beta/2 (lp - q)^2)`, with `q` the sampler's log-probability (arXiv 2405.19107).
    Dro { beta: f32 },
}

impl Loss {
    fn new(kind: LossFn, config: &BTreeMap<String, f64>) -> Result<Self, ApiError> {
        let known: &[&str] = match kind {
            LossFn::CrossEntropy | LossFn::ImportanceSampling => &[],
            LossFn::Ppo | LossFn::Cispo => &["clip_low_threshold", "clip_high_threshold"],
            LossFn::Dro => &["beta"],
        };
        if let Some(name) = config.keys().find(|name| !known.contains(&name.as_str())) {
            let kind = kind.name();
            return Err(ApiError::param(
                "loss_fn_config",
                format!("{kind} has no setting {name:?}"),
            ));
        }
        let get = |name: &str, default: f64| config.get(name).copied().unwrap_or(default) as f32;
        let low = get("clip_low_threshold", CLIP.0);
        let high = get("clip_high_threshold", CLIP.1);
        if !(0.0 <= low && low <= high && high.is_finite()) {
            let message = format!("clip thresholds are ratios, got {low} to {high}");
            return Err(ApiError::param("loss_fn_config", message));
        }
        Ok(match kind {
            LossFn::CrossEntropy => Self::CrossEntropy(CrossEntropy::new(1.0)),
            LossFn::ImportanceSampling => Self::Surrogate(Dapo::new(f32::MAX, f32::MAX, 1)),
            LossFn::Ppo => Self::Surrogate(Dapo::new(1.0 - low, high - 1.0, 1)),
            LossFn::Cispo => Self::Cispo { low, high },
            LossFn::Dro => Self::Dro { beta: get("beta", DRO_BETA) },
        })
    }
}

impl Objective for Loss {
    fn token_loss(&self, sample: &TrainingSample, t: usize, trainer_logprob: f32) -> TokenLoss {
        let (weight, advantage) = (sample.loss_mask[t], sample.advantages[t]);
        let log_ratio = trainer_logprob - sample.sampler_logprobs[t];
        match *self {
            Self::CrossEntropy(loss) => loss.token_loss(sample, t, trainer_logprob),
            Self::Surrogate(loss) => loss.token_loss(sample, t, trainer_logprob),
            Self::Cispo { low, high } => {
                let ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp();
                let bounded = ratio.clamp(low, high);
                let slope = -weight * bounded * advantage;
                let clipped = bounded.to_bits() != ratio.to_bits();
                TokenLoss { loss: slope * trainer_logprob, d_logprob: slope, clipped }
            }
            Self::Dro { beta } => {
                let square = 0.5 * beta * log_ratio * log_ratio;
                let loss = -weight * (advantage * trainer_logprob - square);
                let d_logprob = -weight * (advantage - beta * log_ratio);
                TokenLoss { loss, d_logprob, clipped: false }
            }
        }
    }
}

/// A request as samples and objective.
pub(super) struct Batch {
    pub samples: Vec<TrainingSample>,
    pub loss: Loss,
}

impl Batch {
    pub(super) fn read(request: &ForwardBackwardRequest) -> Result<Self, ApiError> {
        if request.data.is_empty() {
            return Err(ApiError::param("data", "is empty"));
        }
        let loss = Loss::new(request.loss_fn, &request.loss_fn_config)?;
        let sample = |(index, datum): (usize, &Datum)| {
            sample(datum, request.loss_fn)
                .map_err(|reason| ApiError::param("data", format!("datum {index}: {reason}")))
        };
        let samples = request.data.iter().enumerate().map(sample).collect::<Result<_, _>>()?;
        Ok(Self { samples, loss })
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.samples.iter().map(|sample| sample.tokens.len()).sum()
    }
}

fn sample(datum: &Datum, kind: LossFn) -> Result<TrainingSample, String> {
    let n = datum.tokens.len();
    let targets = datum.input("target_tokens").map_err(|e| e.to_string())?;
    let targets = targets.as_i64("target_tokens").map_err(|e| e.to_string())?;
    if n == 0 || targets.len() != n {
        return Err(format!("{n} input tokens but {} target_tokens", targets.len()));
    }
    // One sequence has room for one token at each place.
    let shifted = datum.tokens[1..].iter().zip(targets).position(|(x, y)| i64::from(*x) != *y);
    if let Some(at) = shifted {
        return Err(format!(
            "target_tokens[{at}] is {}, the input goes on with {}; targets other than the next \
             input token are not supported",
            targets[at],
            datum.tokens[at + 1]
        ));
    }
    let last = u32::try_from(targets[n - 1]).map_err(|_| "a target is no token".to_owned())?;
    let tokens = datum.tokens.iter().copied().chain([last]).collect();
    let input = |name: &str, needed: bool, default: f32| match datum.loss_fn_inputs.get(name) {
        Some(tensor) => shift(name, tensor, n, default),
        None if needed => Err(format!("loss_fn_inputs has no {name}, which {} needs", kind.name())),
        None => Ok(vec![default; n + 1]),
    };
    let policy = kind != LossFn::CrossEntropy;
    let known: &[&str] = if policy {
        &["target_tokens", "weights", "mask", "logprobs", "advantages"]
    } else {
        &["target_tokens", "weights"]
    };
    if let Some(name) = datum.loss_fn_inputs.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("loss_fn_inputs has {name:?}, which {} does not read", kind.name()));
    }
    let weights = if datum.loss_fn_inputs.contains_key("mask") { "mask" } else { "weights" };
    let mut loss_mask = input(weights, false, 1.0)?;
    loss_mask[0] = 0.0;
    Ok(TrainingSample {
        tokens,
        loss_mask,
        advantages: input("advantages", policy, 0.0)?,
        sampler_logprobs: input("logprobs", policy, 0.0)?,
    })
}

/// Numbers of a datum, one place later.
fn shift(name: &str, tensor: &Tensor, n: usize, first: f32) -> Result<Vec<f32>, String> {
    let values = tensor.as_f32(name).map_err(|e| e.to_string())?;
    if values.len() != n {
        return Err(format!("{n} input tokens but {} {name}", values.len()));
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(format!("{name}[{at}] is {}", values[at]));
    }
    Ok([&[first][..], values].concat())
}

/// The answer: log-probabilities of the targets, and the sum of the loss.
pub(super) fn output(
    logprobs: &[Vec<f32>],
    metrics: BTreeMap<String, f64>,
) -> ForwardBackwardOutput {
    let outputs = logprobs.iter().map(|values| {
        let targets = values.get(1..).unwrap_or_default().to_vec();
        [("logprobs".to_owned(), Tensor::f32(targets))].into()
    });
    ForwardBackwardOutput {
        loss_fn_output_type: "ArrayRecord".to_owned(),
        loss_fn_outputs: outputs.collect(),
        metrics,
    }
}

/// Sum of an objective over samples whose log-probabilities are known.
pub(super) fn sum(batch: &Batch, logprobs: &[Vec<f32>]) -> f64 {
    let each = |(sample, values): (&TrainingSample, &Vec<f32>)| -> f64 {
        let places = (1..sample.tokens.len()).filter(|t| sample.loss_mask[*t] != 0.0);
        places.map(|t| f64::from(batch.loss.token_loss(sample, t, values[t]).loss)).sum()
    };
    batch.samples.iter().zip(logprobs).map(each).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use patchwright_core::Objective;
    use patchwright_wire::{Datum, LossFn, Tensor};
    use proptest::prelude::*;

    use super::{Loss, sample};

    fn datum(inputs: &[(&str, f32)]) -> Datum {
        let mut loss_fn_inputs: BTreeMap<String, Tensor> =
            [("target_tokens".to_owned(), Tensor::i64(vec![5, 6]))].into();
        for (name, value) in inputs {
            loss_fn_inputs.insert((*name).to_owned(), Tensor::f32(vec![*value; 2]));
        }
        Datum { tokens: vec![4, 5], loss_fn_inputs }
    }

    #[test]
    fn data_is_shifted_by_one() {
        let plain = sample(&datum(&[("weights", 0.5)]), LossFn::CrossEntropy).unwrap();
        assert_eq!(plain.tokens, [4, 5, 6]);
        assert_eq!(plain.loss_mask, [0.0, 0.5, 0.5]);
        let policy = datum(&[("logprobs", -1.0), ("advantages", 2.0)]);
        let policy = sample(&policy, LossFn::Ppo).unwrap();
        assert_eq!(policy.loss_mask, [0.0, 1.0, 1.0]);
        assert_eq!(policy.sampler_logprobs, [0.0, -1.0, -1.0]);
        let mut other = datum(&[]);
        other.tokens = vec![4, 9];
        for (bad, kind, word) in [
            (datum(&[]), LossFn::Ppo, "advantages"),
            (datum(&[("weights", f32::NAN)]), LossFn::CrossEntropy, "NaN"),
            (datum(&[("colour", 1.0)]), LossFn::CrossEntropy, "colour"),
            (other, LossFn::CrossEntropy, "next"),
        ] {
            let error = sample(&bad, kind).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let config = [("colour".to_owned(), 1.0)].into();
        assert!(Loss::new(LossFn::Ppo, &config).unwrap_err().message.contains("colour"));
    }

    /// Goldens of this reference (Python), the losses of the API summed over one token:
    /// ```python
    /// def importance_sampling(lp, q, a): return -math.exp(lp - q) * a
    /// def ppo(lp, q, a): r = math.exp(lp - q); return -min(r * a, min(max(r, 0.8), 1.2) * a)
    /// def cispo(lp, q, a): r = math.exp(lp - q); return -min(max(r, 0.8), 1.2) * a * lp
    /// def dro(lp, q, a): return -(a * lp - 0.5 * 0.05 * (lp - q) ** 2)
    /// ```
    #[test]
    fn goldens() {
        let sample =
            sample(&datum(&[("logprobs", -1.0), ("advantages", 2.0)]), LossFn::Ppo).unwrap();
        for (kind, expected) in [
            (LossFn::ImportanceSampling, -3.297_442_5),
            (LossFn::Ppo, -2.4),
            (LossFn::Cispo, 1.2),
            (LossFn::Dro, 1.006_25),
        ] {
            let loss = Loss::new(kind, &BTreeMap::new()).unwrap();
            let got = loss.token_loss(&sample, 1, -0.5).loss;
            assert!((got - expected).abs() < 1e-5, "{kind:?}: {got}");
        }
    }

    proptest! {
        /// Where no gradient is stopped, the derivative is the slope of the loss.
        #[test]
        fn derivatives_are_slopes(lp in -4.0f32..-0.1, q in -4.0f32..-0.1, a in -2.0f32..2.0) {
            let mut sample = sample(&datum(&[("logprobs", q), ("advantages", a)]), LossFn::Ppo).unwrap();
            sample.loss_mask = vec![0.0, 0.7, 0.7];
            for kind in [LossFn::CrossEntropy, LossFn::ImportanceSampling, LossFn::Dro] {
                let loss = Loss::new(kind, &BTreeMap::new()).unwrap();
                let h = 1e-2;
                let at = |x: f32| loss.token_loss(&sample, 1, x);
                let slope = (at(lp + h).loss - at(lp - h).loss) / (2.0 * h);
                let d = at(lp).d_logprob;
                prop_assert!((slope - d).abs() <= 2e-2 * d.abs().max(0.1), "{kind:?} {slope} {d}");
            }
        }
    }
}
