//! Checkpoints: training goes on bit for bit, and damage is told with file and tensor.

mod common;

use std::fs;
use std::path::Path;

use common::{CrossEntropy, VARIANTS, bits, config, options, random_samples, request, sample};
use patchwright_core::{AdamParams, PolicyVersion, Trainer, TrainerError, TrainingSample};
use patchwright_engine::{
    EmbeddedTrainer, Engine, ExportOptions, GgufFile, ModelSummary, ModelType, WeightDtype,
};

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
    for name in ["model.safetensors", "model.safetensors.index.json", "a/b", "..", ""] {
        assert!(trainer.attach_file(name, Vec::new()).is_err(), "{name:?}");
    }
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn load(path: &Path) -> EmbeddedTrainer {
    Engine::load(path, options(1)).unwrap().into_parts().0
}

/// Rounded to bf16 by `PyTorch` and split by `transformers`.
#[test]
fn several_files_are_one_model() {
    let sharded = load(&fixture("sharded")).parameters();
    for (name, values) in load(&fixture("qwen2")).parameters() {
        for (a, b) in values.iter().zip(&sharded[&name]) {
            assert!(
                (a - b).abs() <= a.abs() / 256.0 && b.to_bits().trailing_zeros() >= 16,
                "{name}: {a} {b}"
            );
        }
    }
    let summary = ModelSummary::of(&fixture("sharded")).unwrap();
    assert_eq!((summary.format, summary.num_files), ("safetensors", 2));
    assert_eq!(summary.dtypes, ["BF16"]);
    assert_eq!(summary.num_parameters, sharded.values().map(Vec::len).sum::<usize>());
}

#[test]
fn damage_to_several_files_is_told() {
    let error_of = |damage: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixture("sharded")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        damage(dir.path());
        Engine::load(dir.path(), options(1)).err().unwrap().to_string()
    };
    let index = "model.safetensors.index.json";
    let shard = "model-00002-of-00002.safetensors";
    let replace = |dir: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(dir.join(index)).unwrap();
        fs::write(dir.join(index), text.replace(from, to)).unwrap();
    };
    let text = error_of(&|dir| fs::remove_file(dir.join(shard)).unwrap());
    assert_says(&text, &[shard, "cannot be read"]);
    let text = error_of(&|dir| replace(dir, shard, "../../etc/passwd"));
    assert_says(&text, &[index, "is no name of a .safetensors file"]);
    let text = error_of(&|dir| fs::write(dir.join(index), "{").unwrap());
    assert_says(&text, &[index, "cannot be parsed"]);
    let text = error_of(&|dir| replace(dir, "model-00001-of-00002", "model-00002-of-00002"));
    assert_says(&text, &["tensor", "is missing"]);
    let text = error_of(&|dir| {
        let first = dir.join("model-00001-of-00002.safetensors");
        fs::copy(first, dir.join(shard)).map(|_| ()).unwrap();
    });
    assert_says(&text, &[shard, "is in two files"]);
}

/// `goldens/make_gguf.py` wrote the same weights as llama.cpp's converter lays them out.
#[test]
fn gguf_files_are_the_same_models() {
    for name in ["llama", "llama-llama3", "qwen2", "qwen3"] {
        let path = fixture("gguf").join(format!("{name}.gguf"));
        let (trainer, original) = (load(&path), load(&fixture(name)));
        if name == "llama-llama3" {
            // Other parameters of the scaling, and the same angles.
            assert!(trainer.config().rope_scaling.is_some());
            let samples = [TrainingSample::supervised((1..39).collect(), vec![1.0; 38])];
            let [mut a, mut b] = [load(&path), load(&fixture(name))];
            assert_eq!(a.forward(&samples).unwrap(), b.forward(&samples).unwrap());
            continue;
        }
        assert_eq!(trainer.config(), original.config());
        assert!(flat(&trainer) == flat(&original), "{name}");
        let summary = ModelSummary::of(&path).unwrap();
        assert_eq!((summary.format, &summary.config), ("gguf", original.config()));

        let dir = tempfile::tempdir().unwrap();
        let (out, files) = (dir.path().join("out"), [("x.json".to_owned(), b"{}".to_vec())].into());
        let gguf = GgufFile::open(&path).unwrap();
        let mut told = Vec::new();
        gguf.export(&out, &files, &ExportOptions::default(), &mut |done, total| {
            told.push((done, total));
            true
        })
        .unwrap();
        let num_bytes = 4 * original.config().num_parameters() as u64;
        assert_eq!(*told.last().unwrap(), (num_bytes, num_bytes));
        assert!(flat(&load(&out)) == flat(&original));
        assert_eq!(fs::read(out.join("x.json")).unwrap(), b"{}");

        let other = dir.path().join("stopped");
        let options = ExportOptions::default();
        let error = gguf.export(&other, &files, &options, &mut |_, _| false).unwrap_err();
        assert_says(&error.to_string(), &["interrupted"]);
        assert!(!other.exists() && !dir.path().join(".stopped.partial").exists());
    }
}

#[test]
fn exports_are_rounded_and_split() {
    let original = load(&fixture("qwen3"));
    for (dtype, names, bits) in [
        (WeightDtype::F32, "F32", 24),
        (WeightDtype::F16, "F16", 11),
        (WeightDtype::Bf16, "BF16", 8),
    ] {
        for max_shard_bytes in [1, 4000, 1 << 30] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x");
            let options = ExportOptions { dtype, max_shard_bytes };
            original.export(&path, &options).unwrap();
            let summary = ModelSummary::of(&path).unwrap();
            assert_eq!(summary.dtypes, [names]);
            let num_tensors = original.parameters().len();
            match max_shard_bytes {
                1 => assert_eq!(summary.num_files, num_tensors),
                4000 => assert!((2..num_tensors).contains(&summary.num_files)),
                _ => assert_eq!(summary.num_files, 1),
            }
            let exported = load(&path).parameters();
            for (name, values) in original.parameters() {
                for (a, b) in values.iter().zip(&exported[&name]) {
                    assert!((a - b).abs() <= a.abs() * 0.5f32.powi(bits), "{name}: {a} {b}");
                }
            }
        }
    }
    let mut wide = load(&fixture("qwen3"));
    let norm = vec![70_000.0; wide.config().hidden_size];
    wide.set_parameter("model.norm.weight", &norm).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions { dtype: WeightDtype::F16, ..ExportOptions::default() };
    let error = wide.export(&dir.path().join("x"), &options).unwrap_err().to_string();
    assert_says(&error, &["model.norm.weight", "70000", "float16"]);
}

#[test]
fn hostile_sizes_are_refused_before_anything_is_allocated() {
    for (key, value) in [
        ("vocab_size", 1u64 << 24),
        ("hidden_size", 1 << 24),
        ("num_hidden_layers", 1 << 24),
        ("max_position_embeddings", 1 << 40),
        ("num_hidden_layers", 4096),
        ("vocab_size", 1 << 22),
    ] {
        let text = error_of(|dir| {
            fs::remove_file(dir.join("manifest.json")).unwrap();
            let path = dir.join("config.json");
            let mut json: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            json[key] = value.into();
            fs::write(&path, json.to_string()).unwrap();
        });
        assert!(
            text.contains(key) || text.contains("expected") || text.contains("missing"),
            "{text}"
        );
    }
}
