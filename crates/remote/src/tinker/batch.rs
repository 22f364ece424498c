//! Samples as datums, and a loss that has exactly the derivatives wanted.

use std::collections::BTreeMap;

use patchwright_core::{ForwardBackward, Objective, TrainerError, TrainingSample};
use patchwright_wire::{Datum, ForwardBackwardOutput, LossFn, Tensor};

use super::error::TinkerError;
use super::probe::Reduction;

/// A sequence whose log-probabilities have derivatives.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pending {
    /// `[n]`.
    pub(super) tokens: Vec<u32>,
    /// Derivative of the loss by the log-probability of token `t + 1`, `[n - 1]`.
    pub(super) derivatives: Vec<f32>,
    /// Log-probability of token `t + 1`, `[n - 1]`.
    pub(super) logprobs: Vec<f32>,
}

/// The datum that predicts each token of a sequence of at least 2 from those before it.
fn datum<const N: usize>(tokens: &[u32], inputs: [(&str, Vec<f32>); N]) -> Datum {
    let targets = tokens[1..].iter().map(|t| i64::from(*t)).collect();
    let mut loss_fn_inputs = BTreeMap::from([("target_tokens".to_owned(), Tensor::i64(targets))]);
    for (name, values) in inputs {
        loss_fn_inputs.insert(name.to_owned(), Tensor::f32(values));
    }
    Datum { tokens: tokens[..tokens.len() - 1].to_vec(), loss_fn_inputs }
}

/// A datum that only asks for log-probabilities.
pub(super) fn forward_datum(tokens: &[u32]) -> Datum {
    datum(tokens, [("weights", vec![0.0; tokens.len() - 1])])
}

/// The datum of a sample's cross-entropy, weighted by its mask.
pub(super) fn cross_entropy_datum(sample: &TrainingSample) -> Datum {
    datum(&sample.tokens, [("weights", sample.loss_mask[1..].to_vec())])
}

/// What a server's cross-entropy came to; `told` are the log-probabilities of samples of at least
/// two tokens, `[sample][n - 1]`.
pub(super) fn cross_entropy(samples: &[TrainingSample], told: Vec<Vec<f32>>) -> ForwardBackward {
    let mut result = ForwardBackward::default();
    let mut told = told.into_iter();
    for sample in samples {
        let rest = if sample.tokens.len() > 1 { told.next() } else { None };
        let logprobs: Vec<f32> = std::iter::once(0.0).chain(rest.into_iter().flatten()).collect();
        for (weight, logprob) in sample.loss_mask.iter().zip(&logprobs).skip(1) {
            result.loss -= f64::from(weight * logprob);
            result.num_loss_tokens += usize::from(*weight != 0.0);
        }
        result.logprobs.push(logprobs);
    }
    result
}

/// Datums whose loss has the derivatives of `pending`.
///
/// Where token losses are summed that is a cross-entropy with the negated derivatives as weights.
/// Where a sequence's sum is divided by the sum of its weights, weights must be plain, so it is the
/// policy gradient at a ratio of 1 with the derivatives as advantages, times what the server will
/// divide by.
pub(super) fn gradient_data(pending: &[Pending], reduction: Reduction) -> (LossFn, Vec<Datum>) {
    let negated = |p: &Pending, by: f32| p.derivatives.iter().map(|d| -d * by).collect();
    match reduction {
        Reduction::Sum => {
            let data =
                pending.iter().map(|p| datum(&p.tokens, [("weights", negated(p, 1.0))])).collect();
            (LossFn::CrossEntropy, data)
        }
        Reduction::MeanOfMeans => {
            let data = pending
                .iter()
                .map(|p| {
                    let weights: Vec<f32> =
                        p.derivatives.iter().map(|d| f32::from(*d != 0.0)).collect();
                    let divisor = weights.iter().sum::<f32>() * pending.len() as f32;
                    datum(
                        &p.tokens,
                        [
                            ("weights", weights),
                            ("advantages", negated(p, divisor)),
                            ("logprobs", p.logprobs.clone()),
                        ],
                    )
                })
                .collect();
            (LossFn::ImportanceSampling, data)
        }
    }
}

/// The log-probabilities that an output holds, `[datum][n - 1]`, checked against their lengths.
pub(super) fn logprobs(
    what: &str,
    output: ForwardBackwardOutput,
    lengths: &[usize],
) -> Result<Vec<Vec<f32>>, TinkerError> {
    let contract = |reason: String| TinkerError::contract(what, reason);
    output
        .loss_fn_outputs
        .into_iter()
        .zip(lengths)
        .map(|(mut fields, length)| {
            let tensor = fields
                .remove("logprobs")
                .ok_or_else(|| contract("no logprobs in the output".to_owned()))?;
            let values = tensor.as_f32("logprobs").map_err(|e| contract(e.to_string()))?;
            if values.len() != *length {
                let reason = format!("{} log-probabilities of {length} tokens", values.len());
                return Err(contract(reason));
            }
            Ok(values.to_vec())
        })
        .collect()
}

/// Refuses samples out of shape.
pub(super) fn check(samples: &[TrainingSample]) -> Result<(), TrainerError> {
    for (i, sample) in samples.iter().enumerate() {
        let n = sample.tokens.len();
        let lengths =
            [sample.loss_mask.len(), sample.advantages.len(), sample.sampler_logprobs.len()];
        if n == 0 || lengths != [n; 3] {
            return Err(TrainerError::BadInput(format!(
                "sample {i} has {n} tokens and {lengths:?} weights, advantages and log-probabilities"
            )));
        }
    }
    Ok(())
}

/// Evaluates the objective at log-probabilities (`[sample][n]`), and what must be sent for its
/// gradient.
pub(super) fn evaluate(
    samples: &[TrainingSample],
    logprobs: Vec<Vec<f32>>,
    objective: &dyn Objective,
) -> Result<(ForwardBackward, Vec<Pending>), TrainerError> {
    let mut result = ForwardBackward::default();
    let mut all_pending = Vec::new();
    for (i, (sample, logprobs)) in samples.iter().zip(&logprobs).enumerate() {
        let mut derivatives = vec![0.0; sample.tokens.len() - 1];
        for t in (1..sample.tokens.len()).filter(|t| sample.loss_mask[*t] != 0.0) {
            let token = objective.token_loss(sample, t, logprobs[t]);
            if !(token.loss.is_finite() && token.d_logprob.is_finite()) {
                return Err(TrainerError::Diverged(format!(
                    "sample {i}, token {t}: log-probability {}, loss {}",
                    logprobs[t], token.loss
                )));
            }
            result.loss += f64::from(token.loss);
            result.num_loss_tokens += 1;
            result.num_clipped += usize::from(token.clipped);
            derivatives[t - 1] = token.d_logprob;
        }
        if derivatives.iter().any(|d| *d != 0.0) {
            all_pending.push(Pending {
                tokens: sample.tokens.clone(),
                derivatives,
                logprobs: logprobs[1..].to_vec(),
            });
        }
    }
    result.logprobs = logprobs;
    Ok((result, all_pending))
}

#[cfg(test)]
mod tests {
    use patchwright_core::{Objective, TokenLoss, TrainingSample};
    use patchwright_wire::LossFn;

    use super::{Pending, evaluate, gradient_data};
    use crate::tinker::probe::Reduction;

    struct Square;

    impl Objective for Square {
        fn token_loss(&self, _: &TrainingSample, _: usize, logprob: f32) -> TokenLoss {
            TokenLoss { loss: logprob * logprob, d_logprob: 2.0 * logprob, clipped: false }
        }
    }

    fn pending() -> Vec<Pending> {
        let sample = |tokens: &[u32], mask: &[f32]| {
            TrainingSample::supervised(tokens.to_vec(), mask.to_vec())
        };
        let samples = [
            sample(&[1, 2, 3], &[0.0, 1.0, 1.0]),
            sample(&[4, 5], &[1.0, 0.0]),
            sample(&[6, 7], &[0.0, 1.0]),
        ];
        let logprobs = vec![vec![0.0, -0.5, -1.5], vec![0.0, -9.0], vec![0.0, 0.25]];
        let (result, pending) = evaluate(&samples, logprobs, &Square).expect("finite");
        assert_eq!(result.num_loss_tokens, 3);
        assert!((result.loss - 2.5625).abs() < 1e-12, "{}", result.loss);
        assert_eq!(pending.len(), 2, "a sequence without derivatives is not sent");
        pending
    }

    /// The derivative by each log-probability that a server of this reduction computes.
    fn derivatives(reduction: Reduction) -> Vec<Vec<f32>> {
        let (loss_fn, data) = gradient_data(&pending(), reduction);
        let count = data.len() as f32;
        data.iter()
            .map(|datum| {
                let read = |name: &str| datum.loss_fn_inputs[name].as_f32(name).unwrap().to_vec();
                let weights = read("weights");
                if loss_fn == LossFn::CrossEntropy {
                    return weights.iter().map(|w| -w).collect();
                }
                let sum = weights.iter().sum::<f32>().max(1e-9);
                let scale = |(w, a): (&f32, &f32)| -w * a / sum / count;
                weights.iter().zip(&read("advantages")).map(scale).collect()
            })
            .collect()
    }

    #[test]
    fn both_reductions_give_the_derivatives_of_the_objective() {
        for reduction in [Reduction::Sum, Reduction::MeanOfMeans] {
            assert_eq!(derivatives(reduction), [vec![-1.0, -3.0], vec![0.5]], "{reduction:?}");
        }
    }

    #[test]
    fn a_servers_cross_entropy_is_added_up_by_weights() {
        let samples = [
            TrainingSample::supervised(vec![1, 2, 3], vec![1.0, 0.5, 0.0]),
            TrainingSample::supervised(vec![9], vec![1.0]),
            TrainingSample::supervised(vec![4, 5], vec![0.0, 2.0]),
        ];
        let datum = super::cross_entropy_datum(&samples[0]);
        assert_eq!(datum.loss_fn_inputs["weights"].as_f32("weights").unwrap(), [0.5, 0.0]);
        let result = super::cross_entropy(&samples, vec![vec![-1.0, -9.0], vec![-3.0]]);
        assert!((result.loss - 6.5).abs() < 1e-12, "{}", result.loss);
        assert_eq!(result.num_loss_tokens, 2);
        assert_eq!(result.logprobs, [vec![0.0, -1.0, -9.0], vec![0.0], vec![0.0, -3.0]]);
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let sample = TrainingSample::supervised(vec![1, 2], vec![0.0, 1.0]);
        let error = evaluate(&[sample], vec![vec![0.0, f32::NAN]], &Square).unwrap_err();
        assert!(error.to_string().contains("diverged"), "{error}");
    }
}
