//! What the trainer refuses.

use patchwright_core::{AdamParams, TrainerError, TrainingSample};

use super::EmbeddedTrainer;

impl EmbeddedTrainer {
    pub(super) fn check_samples(&self, samples: &[TrainingSample]) -> Result<(), TrainerError> {
        let config = self.config();
        for (index, sample) in samples.iter().enumerate() {
            let bad = |reason: String| TrainerError::BadInput(format!("sample {index} {reason}"));
            let n = sample.tokens.len();
            if n == 0 {
                return Err(bad("has no tokens".to_owned()));
            }
            if n > config.max_position_embeddings {
                return Err(bad(format!(
                    "has {n} tokens, the model takes {}",
                    config.max_position_embeddings
                )));
            }
            let fields = [
                ("loss_mask", &sample.loss_mask),
                ("advantages", &sample.advantages),
                ("sampler_logprobs", &sample.sampler_logprobs),
            ];
            for (name, values) in fields {
                if values.len() != n {
                    return Err(bad(format!("has {n} tokens but {} {name}", values.len())));
                }
                if values.iter().any(|x| !x.is_finite()) {
                    return Err(bad(format!("has {name} that are not finite")));
                }
            }
            if let Some(token) = sample.tokens.iter().find(|t| **t as usize >= config.vocab_size) {
                return Err(bad(format!("has token {token}, the model has {}", config.vocab_size)));
            }
        }
        Ok(())
    }
}

pub(super) fn check_adam(p: &AdamParams) -> Result<(), TrainerError> {
    let checks = [
        ("lr", p.lr, p.lr >= 0.0),
        ("beta1", p.beta1, (0.0..1.0).contains(&p.beta1)),
        ("beta2", p.beta2, (0.0..1.0).contains(&p.beta2)),
        ("eps", p.eps, p.eps > 0.0),
        ("weight_decay", p.weight_decay, p.weight_decay >= 0.0),
        ("grad_clip", p.grad_clip, p.grad_clip >= 0.0),
    ];
    match checks.iter().find(|(_, value, good)| !(value.is_finite() && *good)) {
        Some((name, value, _)) => {
            Err(TrainerError::BadInput(format!("optimizer parameter {name} is {value}")))
        }
        None => Ok(()),
    }
}
