//! Gradients against finite differences, for every variant and every tensor.

mod common;

use common::{CrossEntropy, VARIANTS, config, options, random_samples};
use patchwright_core::Trainer;
use patchwright_engine::{EmbeddedTrainer, Engine};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn loss(trainer: &mut EmbeddedTrainer, samples: &[patchwright_core::TrainingSample]) -> f64 {
    let logprobs = trainer.forward(samples).expect("valid samples");
    let weighted = samples.iter().zip(&logprobs).flat_map(|(s, l)| s.loss_mask.iter().zip(l));
    weighted.map(|(w, l)| -f64::from(*w) * f64::from(*l)).sum()
}

/// Random weights large enough that every path matters.
fn spread(trainer: &mut EmbeddedTrainer, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for (name, mut values) in trainer.parameters() {
        for x in &mut values {
            *x = if name.ends_with("norm.weight") {
                rng.random_range(0.6..1.4)
            } else {
                rng.random_range(-0.4..0.4)
            };
        }
        trainer.set_parameter(&name, &values).expect("known tensor");
    }
}

#[test]
fn directional_derivatives_of_every_tensor() {
    for model_type in VARIANTS {
        for tied in [true, false] {
            let config = config(model_type, tied);
            let samples = random_samples(5, &[37, 1, 2, 70, 33], config.vocab_size);
            let mut trainer = Engine::new(config, 1, options(2)).unwrap().into_parts().0;
            spread(&mut trainer, 11);
            trainer.forward_backward(&samples, &CrossEntropy).unwrap();
            let gradients = trainer.gradients();
            let mut rng = ChaCha8Rng::seed_from_u64(9);
            for (name, values) in trainer.parameters() {
                let gradient = &gradients[&name];
                let norm: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                assert!(norm > 1e-3, "{model_type:?} {name}: no gradient");
                // Along the gradient (which catches a wrong scale), tilted by noise (which catches
                // a wrong direction).
                let size = norm / (values.len() as f64).sqrt();
                let direction: Vec<f64> = gradient
                    .iter()
                    .map(|g| (f64::from(*g) / size + rng.random_range(-1.0..1.0)) / norm * size)
                    .collect();
                let expected: f64 =
                    gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
                let mut at = |step: f64| {
                    let moved: Vec<f32> = values
                        .iter()
                        .zip(&direction)
                        .map(|(x, d)| (f64::from(*x) + step * d) as f32)
                        .collect();
                    trainer.set_parameter(&name, &moved).unwrap();
                    loss(&mut trainer, &samples)
                };
                // Fourth order, so that the step can be large beside single precision.
                let h = 4e-3;
                let found = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                at(0.0);
                let error = (found - expected).abs() / expected.abs().max(1.0);
                assert!(
                    error < 4e-3,
                    "{model_type:?} tied {tied} {name}: {found} by differences, {expected} by hand"
                );
            }
        }
    }
}
