//! Adapters: gradients by finite differences, PEFT's files, frozen weights, merged sampling.

mod common;

use std::fs;

use common::{CrossEntropy, bits, config, options, random_samples, request, sample};
use patchwright_core::{AdamParams, Trainer, TrainerError, TrainingSample};
use patchwright_engine::{EmbeddedTrainer, Engine, LoraConfig, ModelType};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ADAM: AdamParams =
    AdamParams { lr: 0.02, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

fn lora(modules: &[&str]) -> LoraConfig {
    LoraConfig {
        rank: 3,
        lora_alpha: 6.0,
        target_modules: modules.iter().map(|m| (*m).to_owned()).collect(),
    }
}

const ALL: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn engine(threads: usize) -> Engine {
    Engine::new(config(ModelType::Qwen2, true), 4, options(threads)).unwrap()
}

fn samples() -> Vec<TrainingSample> {
    random_samples(5, &[37, 20, 33], 53)
}

/// Away from `B = 0`.
fn spread(trainer: &mut EmbeddedTrainer) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (name, mut values) in trainer.adapter_parameters().unwrap() {
        values.fill_with(|| rng.random_range(-0.3..0.3));
        trainer.set_adapter_parameter(&name, &values).unwrap();
    }
}

fn loss(trainer: &mut EmbeddedTrainer, samples: &[TrainingSample]) -> f64 {
    let logprobs = trainer.forward(samples).unwrap();
    let weighted = samples.iter().zip(&logprobs).flat_map(|(s, l)| s.loss_mask.iter().zip(l));
    weighted.map(|(w, l)| -f64::from(*w) * f64::from(*l)).sum()
}

#[test]
fn gradients_agree_with_finite_differences() {
    let mut trainer = engine(2).into_parts().0;
    trainer.add_adapter(lora(&ALL), 1).unwrap();
    spread(&mut trainer);
    let samples = samples();
    trainer.forward_backward(&samples, &CrossEntropy).unwrap();
    let gradients = trainer.adapter_gradients().unwrap();
    let parameters = trainer.adapter_parameters().unwrap();
    assert_eq!(gradients.len(), 2 * 2 * 7, "two tensors of each module of two layers");
    for (name, values) in &parameters {
        let gradient = &gradients[name];
        let norm: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-3, "{name}: no gradient");
        let mut at = |step: f64| {
            let moved: Vec<f32> = values
                .iter()
                .zip(gradient)
                .map(|(x, g)| (f64::from(*x) + step * f64::from(*g) / norm) as f32)
                .collect();
            trainer.set_adapter_parameter(name, &moved).unwrap();
            loss(&mut trainer, &samples)
        };
        let h = 1e-2;
        let found = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        at(0.0);
        assert!((found - norm).abs() < 5e-3 * norm.max(1.0), "{name}: {found} and {norm}");
    }
}

#[test]
fn only_the_adapter_learns_and_the_merged_weights_are_served() {
    let run = |threads: usize| {
        let mut engine = engine(threads);
        let before = engine.trainer.parameters();
        engine.trainer.add_adapter(lora(&["q_proj", "down_proj"]), 1).unwrap();
        assert!(engine.trainer.parameters() == before, "B is 0 at first");
        for _ in 0..3 {
            engine.trainer.forward_backward(&samples(), &CrossEntropy).unwrap();
            engine.trainer.optim_step(&ADAM).unwrap();
        }
        assert_eq!(engine.trainer.optimizer_step(), 3);
        let after = engine.trainer.parameters();
        for (name, values) in &after {
            let adapted = name.contains("q_proj.weight") || name.contains("down_proj.weight");
            assert_eq!(*values != before[name], adapted, "{name}");
        }
        engine.trainer.publish().unwrap();
        let completion = sample(&*engine.sampler(), &request(1, vec![1, 2, 3], 20, 5));
        let mut tokens = vec![1, 2, 3];
        tokens.extend(&completion.tokens);
        let whole = TrainingSample::supervised(tokens, vec![1.0; 23]);
        let logprobs = engine.trainer.forward(&[whole]).unwrap();
        assert_eq!(bits(&logprobs[0][3..]), bits(&completion.logprobs));
        bits(&after.into_values().flatten().collect::<Vec<_>>())
    };
    let one = run(1);
    assert!(run(2) == one && run(3) == one, "the same bits on any number of threads");
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    let mut trainer = engine(2).into_parts().0;
    assert!(matches!(trainer.save_adapter(&path), Err(TrainerError::BadInput(_))));
    trainer.add_adapter(lora(&["v_proj", "up_proj"]), 1).unwrap();
    trainer.forward_backward(&samples(), &CrossEntropy).unwrap();
    trainer.optim_step(&ADAM).unwrap();
    trainer.save_adapter(&path).unwrap();
    let mut other = engine(1).into_parts().0;
    other.load_adapter(&path).unwrap();
    assert!(other.parameters() == trainer.parameters());
    assert!(other.adapter_parameters().unwrap() == trainer.adapter_parameters().unwrap());
    assert!(matches!(other.load_adapter(&path), Err(TrainerError::BadInput(_))));
    other.merge_adapter().unwrap();
    assert!(other.parameters() == trainer.parameters());
    assert!(matches!(other.adapter_parameters(), Err(TrainerError::BadInput(_))));

    // Damage is told with file and tensor.
    let model = path.join("adapter_model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let text = other.load_adapter(&path).unwrap_err().to_string();
    assert!(text.contains("adapter_model.safetensors"), "{text}");
    let wrong = String::from_utf8_lossy(&bytes).replace("layers.0", "layers.9").len();
    assert_eq!(wrong, String::from_utf8_lossy(&bytes).len());
    let mut renamed = bytes.clone();
    let at = renamed.windows(8).position(|w| w == b"layers.0").unwrap();
    renamed[at + 7] = b'9';
    fs::write(&model, renamed).unwrap();
    let text = other.load_adapter(&path).unwrap_err().to_string();
    assert!(text.contains("layers.9") && text.contains("not of this adapter"), "{text}");
    fs::remove_file(path.join("adapter_config.json")).unwrap();
    let text = other.load_adapter(&path).unwrap_err().to_string();
    assert!(text.contains("adapter_config.json"), "{text}");
}

#[test]
fn gradients_of_what_is_frozen_are_not_computed() {
    let mut whole = engine(2).into_parts().0;
    whole.forward_backward(&samples(), &CrossEntropy).unwrap();
    let all = whole.gradients();
    for module in ALL {
        let mut trainer = engine(2).into_parts().0;
        trainer.add_adapter(lora(&[module]), 1).unwrap();
        trainer.forward_backward(&samples(), &CrossEntropy).unwrap();
        // Matrices that are multiplied together are computed together.
        let fused: &[&str] = match module {
            "q_proj" | "k_proj" | "v_proj" => &["q_proj", "k_proj", "v_proj"],
            "gate_proj" | "up_proj" => &["gate_proj", "up_proj"],
            _ => &[module],
        };
        for (name, gradient) in trainer.gradients() {
            let is_wanted = fused.iter().any(|m| name.ends_with(&format!("{m}.weight")));
            if is_wanted {
                assert_eq!(bits(&gradient), bits(&all[&name]), "{module}: {name}");
            } else {
                assert!(gradient.iter().all(|g| *g == 0.0), "{module}: {name}");
            }
        }
    }
}

fn steps(trainer: &mut EmbeddedTrainer, count: usize) {
    for _ in 0..count {
        trainer.forward_backward(&samples(), &CrossEntropy).unwrap();
        trainer.optim_step(&ADAM).unwrap();
    }
}

#[test]
fn training_goes_on_from_a_save_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, adapter) = (dir.path().join("checkpoint"), dir.path().join("adapter"));
    let started = || {
        let mut trainer = engine(2).into_parts().0;
        trainer.add_adapter(lora(&["q_proj", "down_proj"]), 1).unwrap();
        trainer
    };
    let state = |trainer: &EmbeddedTrainer| {
        let weights = trainer.parameters().into_values().flatten().collect::<Vec<_>>();
        let own = trainer.adapter_parameters().unwrap().into_values().flatten();
        (bits(&weights), bits(&own.collect::<Vec<_>>()), trainer.optimizer_step())
    };
    let mut straight = started();
    steps(&mut straight, 2);
    straight.save(&checkpoint).unwrap();
    straight.save_adapter(&adapter).unwrap();
    steps(&mut straight, 2);
    assert_eq!(straight.optimizer_step(), 4);

    let mut resumed = started();
    resumed.load(&checkpoint).unwrap();
    assert_eq!(resumed.optimizer_step(), 2);
    steps(&mut resumed, 2);
    assert!(state(&resumed) == state(&straight), "beside merged weights");
    let mut resumed = engine(1).into_parts().0;
    resumed.load_adapter(&adapter).unwrap();
    steps(&mut resumed, 2);
    assert!(state(&resumed) == state(&straight), "in a PEFT directory");

    // Elsewhere the checkpoint is one of merged weights.
    let mut other = engine(1).into_parts().0;
    other.load(&checkpoint).unwrap();
    assert!(matches!(other.adapter_parameters(), Err(TrainerError::BadInput(_))));
    // What does not fit is refused, and changes nothing.
    let mut other = engine(1).into_parts().0;
    other.add_adapter(lora(&["q_proj"]), 1).unwrap();
    let before = state(&other);
    let text = other.load(&checkpoint).unwrap_err().to_string();
    assert!(text.contains("adapter_state.json") && text.contains("another adapter"), "{text}");
    assert!(state(&other) == before);
    let base = Engine::new(config(ModelType::Qwen2, true), 5, options(1)).unwrap();
    let mut other = base.into_parts().0;
    other.add_adapter(lora(&["q_proj", "down_proj"]), 1).unwrap();
    let text = other.load(&checkpoint).unwrap_err().to_string();
    assert!(text.contains("another base"), "{text}");
}

/// The same gradients as `PyTorch`: `goldens/make_lora_golden.py` made the fixture.
#[test]
fn gradients_agree_with_pytorch() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let bytes = fs::read(fixtures.join("llama-lora/golden.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| golden.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let floats =
        |name: &str| -> Vec<f32> { words(name).into_iter().map(f32::from_le_bytes).collect() };
    let samples: Vec<TrainingSample> = (0..2)
        .map(|i| {
            let tokens = words(&format!("tokens.{i}")).into_iter().map(u32::from_le_bytes);
            TrainingSample::supervised(tokens.collect(), floats(&format!("weights.{i}")))
        })
        .collect();
    let mut trainer = Engine::load(&fixtures.join("llama"), options(2)).unwrap().into_parts().0;
    trainer.load_adapter(&fixtures.join("llama-lora")).unwrap();
    let result = trainer.forward_backward(&samples, &CrossEntropy).unwrap();
    for (i, logprobs) in result.logprobs.iter().enumerate() {
        for (a, b) in logprobs[1..].iter().zip(floats(&format!("logprobs.{i}"))) {
            assert!((a - b).abs() < 1e-4, "{a} and {b}");
        }
    }
    let loss = f64::from(floats("loss")[0]);
    assert!((result.loss / loss - 1.0).abs() < 1e-5, "{} and {loss}", result.loss);
    for (name, values) in trainer.adapter_gradients().unwrap() {
        let expected = floats(&format!("gradient.{name}"));
        let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        for (a, b) in values.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-4 * scale, "{name}: {a} and {b}");
        }
    }
}
