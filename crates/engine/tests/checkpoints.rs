//! Checkpoints: training goes on bit for bit, and damage is told with file and tensor.

mod common;

use std::fs;
use std::path::Path;

use common::{CrossEntropy, VARIANTS, bits, config, options, random_samples, request, sample};
use patchwright_core::{AdamParams, PolicyVersion, Trainer, TrainerError};
use patchwright_engine::{EmbeddedTrainer, Engine, ModelType};

const ADAM: AdamParams =
    AdamParams { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

fn train(trainer: &mut EmbeddedTrainer, seed: u64) {
    let samples = random_samples(seed, &[40, 60, 20], trainer.config().vocab_size);
    trainer.forward_backward(&samples, &CrossEntropy).unwrap();
    trainer.optim_step(&ADAM).unwrap();
}

fn flat(trainer: &EmbeddedTrainer) -> Vec<u32> {
    bits(&trainer.parameters().into_values().flatten().collect::<Vec<_>>())
}

#[test]
fn training_goes_on_bit_for_bit() {
    for model_type in VARIANTS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/checkpoint");
        let config = config(model_type, model_type == ModelType::Qwen3);
        let mut engine = Engine::new(config.clone(), 3, options(2)).unwrap();
        train(&mut engine.trainer, 1);
        engine.trainer.publish().unwrap();
        train(&mut engine.trainer, 2);
        engine.trainer.publish().unwrap();
        engine.trainer.attach_file("tokenizer.json", b"{}".to_vec()).unwrap();
        engine.trainer.save(&path).unwrap();
        train(&mut engine.trainer, 3);

        let mut fresh = Engine::load(&path, options(1)).unwrap();
        assert_eq!(fresh.trainer.policy_version(), PolicyVersion(2));
        assert_eq!(fresh.trainer.optimizer_step(), 2);
        let mut other = Engine::new(config, 9, options(2)).unwrap();
        other.trainer.load(&path).unwrap();
        // The sampler serves what was loaded.
        let ask = request(1, vec![1, 2, 3], 20, 5);
        let (a, b) = (sample(&*fresh.sampler(), &ask), sample(&*other.sampler(), &ask));
        assert_eq!((&a.tokens, bits(&a.logprobs)), (&b.tokens, bits(&b.logprobs)));
        assert_eq!(b.policy_version, PolicyVersion(2));
        for loaded in [&mut fresh.trainer, &mut other.trainer] {
            train(loaded, 3);
            assert!(flat(loaded) == flat(&engine.trainer), "{model_type:?}");
        }
        assert_eq!(fs::read(path.join("tokenizer.json")).unwrap(), b"{}");
    }
}

fn saved(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("c");
    let mut trainer =
        Engine::new(config(ModelType::Qwen3, false), 3, options(1)).unwrap().into_parts().0;
    train(&mut trainer, 1);
    trainer.save(&path).unwrap();
    path
}

/// Damages a checkpoint and returns what loading it says.
fn error_of(damage: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(dir.path());
    damage(&path);
    match Engine::load(&path, options(1)) {
        Err(error @ TrainerError::Checkpoint { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("a damaged checkpoint was loaded"),
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Replaces text of the same length in the header, and forgets the manifest.
fn edit_header(dir: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    fs::remove_file(dir.join("manifest.json")).unwrap();
    edit(&dir.join("model.safetensors"), |bytes| {
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    });
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[test]
fn damage_is_told() {
    let model = "model.safetensors";
    // A flipped bit anywhere is seen by the manifest.
    let text = error_of(|dir| edit(&dir.join(model), |b| *b.last_mut().unwrap() ^= 1));
    assert_says(&text, &[model, "damaged"]);
    let text = error_of(|dir| edit(&dir.join("config.json"), |b| b.push(b' ')));
    assert_says(&text, &["config.json", "damaged"]);
    let text = error_of(|dir| fs::remove_file(dir.join(model)).unwrap());
    assert_says(&text, &[model, "cannot be read"]);
    let text = error_of(|dir| fs::remove_file(dir.join("optimizer.safetensors")).unwrap());
    assert_says(&text, &["optimizer.safetensors"]);
    let text = error_of(|dir| fs::write(dir.join("manifest.json"), "{").unwrap());
    assert_says(&text, &["manifest.json", "cannot be parsed"]);

    // Without a manifest (a directory from elsewhere) the format itself is checked.
    let without = |dir: &Path| fs::remove_file(dir.join("manifest.json")).unwrap();
    let text = error_of(|dir| {
        without(dir);
        edit(&dir.join(model), |b| b.truncate(b.len() / 2));
    });
    assert_says(&text, &[model, "not a safetensors file"]);
    let text = error_of(|dir| {
        without(dir);
        edit(&dir.join(model), |b| b[..8].copy_from_slice(&(1u64 << 60).to_le_bytes()));
    });
    assert_says(&text, &[model, "not a safetensors file", "header"]);
    let text = error_of(|dir| {
        without(dir);
        edit(&dir.join(model), |b| {
            let end = b.len();
            b[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        });
    });
    assert_says(&text, &[model, "tensor", "not finite"]);
    let text = error_of(|dir| edit_header(dir, "model.norm.weight", "model.gone.weight"));
    assert_says(&text, &[model, "model.norm.weight", "missing"]);
    let text = error_of(|dir| edit_header(dir, "[53,24]", "[24,53]"));
    assert_says(&text, &[model, "shape [24, 53], expected [53, 24]"]);
    let text = error_of(|dir| {
        without(dir);
        edit(&dir.join("config.json"), |b| {
            *b = String::from_utf8(b.clone()).unwrap().replace("qwen3", "mamba").into_bytes();
        });
    });
    assert_says(&text, &["config.json", "mamba", "not supported"]);
    // A tensor that the architecture does not have would otherwise be ignored silently.
    let text = error_of(|dir| {
        without(dir);
        edit(&dir.join("config.json"), |b| {
            *b = String::from_utf8(b.clone()).unwrap().replace("qwen3", "llama").into_bytes();
        });
    });
    assert_says(&text, &[model, "k_norm", "not of this architecture"]);
    let text = Engine::load(Path::new("/nonexistent"), options(1)).err().unwrap().to_string();
    assert_says(&text, &["/nonexistent", "not a directory"]);
}

#[test]
fn a_failed_load_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(dir.path());
    edit(&path.join("optimizer.safetensors"), |b| b[100] ^= 1);
    let mut engine = Engine::new(config(ModelType::Qwen3, false), 8, options(1)).unwrap();
    train(&mut engine.trainer, 4);
    let before = flat(&engine.trainer);
    assert!(engine.trainer.load(&path).is_err());
    assert!(flat(&engine.trainer) == before);
    assert_eq!(engine.trainer.optimizer_step(), 1);
    let mut other = Engine::new(config(ModelType::Llama, false), 8, options(1)).unwrap();
    let text = other.trainer.load(&saved(&dir.path().join("x"))).unwrap_err().to_string();
    assert_says(&text, &["another architecture"]);
}

#[test]
fn a_checkpoint_is_written_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(dir.path());
    let before = fs::read(path.join("manifest.json")).unwrap();
    let mut trainer = Engine::load(&path, options(1)).unwrap().into_parts().0;
    let text = trainer.save(&path).unwrap_err().to_string();
    assert_says(&text, &["already exists"]);
    assert_eq!(fs::read(path.join("manifest.json")).unwrap(), before);
    // What an interrupted save left is in nobody's way, and nothing is left by a failed one.
    fs::create_dir(dir.path().join(".d.partial")).unwrap();
    fs::write(dir.path().join(".d.partial/junk"), "x").unwrap();
    trainer.save(&dir.path().join("d")).unwrap();
    assert!(!dir.path().join("d/junk").exists() && !dir.path().join(".d.partial").exists());
    fs::write(dir.path().join("file"), "x").unwrap();
    assert!(trainer.save(&dir.path().join("file/e")).is_err());
    for name in ["model.safetensors", "a/b", "..", ""] {
        assert!(trainer.attach_file(name, Vec::new()).is_err(), "{name:?}");
    }
}
