//! Against a real server of the Tinker API with a tiny random Qwen 3 behind it, beside the embedded
//! engine with the same weights. Runs where `PATCHWRIGHT_TINKER_URL`, `PATCHWRIGHT_TINKER_MODEL` (the
//! model's directory, which is the base model's name too) and `PATCHWRIGHT_TINKER_CHECKPOINTS` (where
//! the server keeps its adapters) are set, which `cargo xtask real-engines` does.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use patchwright_core::{
    AdamParams, Objective, PolicyVersion, SampleRequest, Sampler, TokenLoss, Trainer,
    TrainingSample,
};
use patchwright_engine::{EmbeddedTrainer, Engine, EngineOptions};
use patchwright_remote::tinker::{Reduction, TinkerOptions, TinkerSampler, TinkerTrainer, open};

/// What agreement means here.
const BOUND: f32 = 1e-4;

/// Prints a figure, and writes it down where `PATCHWRIGHT_FIGURES` says.
fn figure(name: &str, value: &str) {
    println!("{name}: {value}");
    if let Some(path) = std::env::var_os("PATCHWRIGHT_FIGURES") {
        let mut file =
            std::fs::OpenOptions::new().append(true).create(true).open(path).expect("figures");
        writeln!(file, "{name}\t{value}").expect("written");
    }
}

struct Place {
    url: String,
    model: String,
    checkpoints: PathBuf,
}

fn place() -> Option<Place> {
    let var = |name: &str| std::env::var(format!("PATCHWRIGHT_TINKER_{name}")).ok();
    Some(Place { url: var("URL")?, model: var("MODEL")?, checkpoints: var("CHECKPOINTS")?.into() })
}

fn connect(place: &Place, reduction: Option<Reduction>) -> (TinkerTrainer, Arc<TinkerSampler>) {
    let options = TinkerOptions {
        lora_rank: 4,
        max_context: Some(512),
        seed: 7,
        reduction,
        clips_gradients: reduction.map(|_| false),
        ..TinkerOptions::new(&place.url, &place.model)
    };
    open(options).expect("opens")
}

/// The newest adapter that the server wrote, as a PEFT directory that names its modules.
fn newest_adapter(place: &Place, to: &Path) {
    let listing = Command::new("find")
        .args([place.checkpoints.as_os_str(), "-name".as_ref(), "*.tar.gz".as_ref()])
        .args(["-printf", "%T@ %p\n"])
        .output()
        .expect("find");
    let text = String::from_utf8(listing.stdout).expect("UTF-8");
    let newest = text
        .lines()
        .filter(|line| line.contains("sampler_weights"))
        .max_by(|a, b| {
            let time =
                |line: &str| line.split(' ').next().unwrap_or("").parse::<f64>().unwrap_or(0.0);
            time(a).total_cmp(&time(b))
        })
        .and_then(|line| line.split_once(' '))
        .expect("an adapter")
        .1;
    std::fs::create_dir_all(to).expect("directory");
    // Names in the archive are absolute in some versions.
    let status = Command::new("tar")
        .args(["xzf", newest, "-C"])
        .arg(to)
        .args(["--transform", "s,.*/,,"])
        .stderr(std::process::Stdio::null())
        .status()
        .expect("tar");
    assert!(status.success());
    let config = to.join("adapter_config.json");
    let text = std::fs::read_to_string(&config).expect("adapter_config.json");
    let modules = "\"target_modules\": [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \
                   \"up_proj\", \"down_proj\"]";
    std::fs::write(&config, text.replace("\"target_modules\": null", modules)).expect("written");
}

fn embedded(place: &Place, adapter: &Path) -> EmbeddedTrainer {
    let options = EngineOptions { num_threads: 1, ..EngineOptions::default() };
    let mut trainer = Engine::load(Path::new(&place.model), options).expect("loads").into_parts().0;
    trainer.load_adapter(adapter).expect("adapter");
    trainer
}

/// PPO's clipped surrogate with a token mean, as the recipes have it.
struct Surrogate {
    num_tokens: f32,
}

impl Objective for Surrogate {
    fn token_loss(&self, sample: &TrainingSample, t: usize, logprob: f32) -> TokenLoss {
        let advantage = sample.advantages[t];
        let ratio = (logprob - sample.sampler_logprobs[t]).exp();
        let clipped = if advantage > 0.0 { ratio > 1.28 } else { ratio < 0.8 };
        let bounded = if clipped { ratio.clamp(0.8, 1.28) } else { ratio };
        TokenLoss {
            loss: -bounded * advantage / self.num_tokens,
            d_logprob: if clipped { 0.0 } else { -ratio * advantage / self.num_tokens },
            clipped,
        }
    }
}

/// Sequences of several lengths, advantages of both signs, prompts without weight, and ratios on
/// both sides of the clip once log-probabilities are known.
fn samples(trainer: &mut dyn Trainer) -> Vec<TrainingSample> {
    let mut samples: Vec<TrainingSample> = [23usize, 31, 12, 40]
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let tokens: Vec<u32> =
                (0..*n).map(|t| 1 + (t as u32 * 37 + i as u32 * 101) % 800).collect();
            let loss_mask = (0..*n).map(|t| f32::from(t >= 5 && (t + i) % 7 != 0)).collect();
            let mut sample = TrainingSample::supervised(tokens, loss_mask);
            let advantage = [1.5, -0.75, -1.0, 0.5][i];
            sample.advantages = vec![advantage; *n];
            sample
        })
        .collect();
    let logprobs = trainer.forward(&samples).expect("forward");
    for (sample, logprobs) in samples.iter_mut().zip(&logprobs) {
        let shifted = logprobs.iter().enumerate().map(|(t, l)| l + ((t % 5) as f32 - 2.0) * 0.15);
        sample.sampler_logprobs = shifted.collect();
    }
    samples
}

fn largest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    a.iter()
        .flatten()
        .zip(b.iter().flatten())
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}

/// Tensors of an adapter by name.
type Tensors = BTreeMap<String, Vec<f32>>;

/// The gradient of an adapter whose projections of one input share one `A`, as `SkyRL`'s do (it
/// writes it out under each name): the sum of the gradients that each would have of its own. And its
/// norm, a shared matrix counted once.
fn tied(parameters: &Tensors, mut gradient: Tensors) -> (Tensors, f32) {
    let mut squares = 0.0f64;
    for group in [&["q_proj", "k_proj", "v_proj"][..], &["gate_proj", "up_proj"]] {
        let firsts = gradient
            .keys()
            .filter(|name| name.contains(group[0]) && name.contains("lora_A"))
            .cloned()
            .collect::<Vec<_>>();
        for first in firsts {
            let names: Vec<String> = group.iter().map(|m| first.replace(group[0], m)).collect();
            if names.iter().any(|name| parameters[name] != parameters[&first]) {
                continue;
            }
            let mut sum = vec![0.0; gradient[&first].len()];
            for name in &names {
                sum.iter_mut().zip(&gradient[name]).for_each(|(s, g)| *s += g);
            }
            let shared: f64 = sum.iter().map(|g| f64::from(*g).powi(2)).sum();
            squares -= (names.len() - 1) as f64 * shared;
            for name in names {
                gradient.insert(name, sum.clone());
            }
        }
    }
    squares += gradient.values().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    (gradient, squares.sqrt() as f32)
}

/// `|a - b| / |b|` over all of an adapter.
fn relative(a: &Tensors, b: &Tensors) -> f32 {
    let (mut apart, mut size) = (0.0f64, 0.0f64);
    for (name, values) in b {
        for (x, y) in a[name].iter().zip(values) {
            apart += f64::from(x - y).powi(2);
            size += f64::from(*y).powi(2);
        }
    }
    (apart / size).sqrt() as f32
}

#[test]
fn losses_and_gradients_agree_with_the_embedded_engine() {
    let Some(place) = place() else { return };
    let temp = tempfile::tempdir().expect("temp");
    let (mut remote, sampler) = connect(&place, None);
    figure("reduction", &format!("{:?}", remote.reduction()));
    figure("clips gradients", &remote.clips_gradients().to_string());
    newest_adapter(&place, &temp.path().join("0"));
    let mut local = embedded(&place, &temp.path().join("0"));

    // A first step away from B = 0, where half of the gradients are 0, taken by the server alone.
    let adam = AdamParams {
        lr: 0.02,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_clip: 0.0,
    };
    let batch = samples(&mut remote);
    let num_tokens = batch.iter().map(TrainingSample::num_loss_tokens).sum::<usize>() as f32;
    let objective = Surrogate { num_tokens };
    let ours = local.forward(&batch).expect("forward");
    let theirs = remote.forward(&batch).expect("forward");
    let start = largest(&ours, &theirs);
    remote.forward_backward(&batch, &objective).expect("forward_backward");
    remote.optim_step(&adam).expect("step");
    assert_eq!(remote.publish().expect("publishes"), PolicyVersion(1));
    newest_adapter(&place, &temp.path().join("1"));
    let mut local = embedded(&place, &temp.path().join("1"));

    // The same batch and weights: log-probabilities, loss, gradient norm; then the gradient itself,
    // by the way of a step that is linear in it (eps far above it, no memory of the first step).
    let ours = local.forward_backward(&batch, &objective).expect("forward_backward");
    let theirs = remote.forward_backward(&batch, &objective).expect("forward_backward");
    let logprobs = largest(&ours.logprobs, &theirs.logprobs);
    let loss = (ours.loss - theirs.loss).abs() as f32;
    assert_eq!(
        (ours.num_loss_tokens, ours.num_clipped),
        (theirs.num_loss_tokens, theirs.num_clipped)
    );
    assert!(ours.num_clipped > 0, "the clip is part of what is compared");
    let linear = AdamParams { lr: 1e3, beta1: 0.0, beta2: 0.0, eps: 1e4, ..adam };
    let before = local.adapter_parameters().expect("adapter");
    let (gradient, our_norm) = tied(&before, local.adapter_gradients().expect("adapter"));
    let their_norm = remote.optim_step(&linear).expect("step").grad_norm;
    let norm = (our_norm - their_norm).abs() / our_norm;
    assert_eq!(remote.publish().expect("publishes"), PolicyVersion(2));
    newest_adapter(&place, &temp.path().join("2"));
    let after = embedded(&place, &temp.path().join("2")).adapter_parameters().expect("adapter");
    let scale = linear.lr / linear.eps;
    let moved = before
        .iter()
        .map(|(name, values)| {
            let step = values.iter().zip(&after[name]).map(|(b, a)| (b - a) / scale);
            (name.clone(), step.collect())
        })
        .collect();
    let by_weights = relative(&moved, &gradient);
    for (name, difference) in [
        ("log-probabilities, new adapter", start),
        ("log-probabilities, after a step", logprobs),
        ("loss", loss),
        ("gradient norm, relative", norm),
        ("gradient, relative", by_weights),
    ] {
        figure(name, &format!("{difference:.1e}"));
    }
    assert!(start < BOUND && logprobs < BOUND && loss < BOUND, "{start} {logprobs} {loss}");
    assert!(norm < BOUND && by_weights < BOUND, "{norm} {by_weights}");

    agree_on_samples(&mut remote, &sampler);
    come_back(&place, &mut remote, &batch, &temp.path().join("checkpoint"));
}

/// The sampler draws with the weights published last, and its log-probabilities are the trainer's.
fn agree_on_samples(trainer: &mut TinkerTrainer, sampler: &TinkerSampler) {
    let context: Vec<u32> = (2..18).collect();
    let request = SampleRequest {
        context: context.clone(),
        max_tokens: 8,
        seed: 3,
        prompt_logprobs: true,
        ..SampleRequest::default()
    };
    let drawn = sampler.sample(&request).expect("samples");
    assert_eq!(drawn.policy_version, PolicyVersion(2));
    assert_eq!(sampler.sample(&request).expect("samples"), drawn, "the seed decides");
    let tokens = [context, drawn.tokens.clone()].concat();
    let sample = TrainingSample::supervised(tokens.clone(), vec![1.0; tokens.len()]);
    let trained = trainer.forward(&[sample]).expect("forward");
    let sampled = vec![[drawn.prompt_logprobs, drawn.logprobs].concat()];
    let apart = largest(&trained, &sampled);
    figure("sampler beside trainer", &format!("{apart:.1e}"));
    assert!(apart < BOUND, "{apart}");
}

/// Saved, changed, loaded by another client: the same weights under the same version.
fn come_back(
    place: &Place,
    trainer: &mut TinkerTrainer,
    batch: &[TrainingSample],
    checkpoint: &Path,
) {
    let known = trainer.forward(batch).expect("forward");
    trainer.save(checkpoint).expect("saves");
    let (mut other, sampler) = connect(place, Some(trainer.reduction()));
    other.load(checkpoint).expect("loads");
    assert_eq!(other.policy_version(), PolicyVersion(2));
    let apart = largest(&other.forward(batch).expect("forward"), &known);
    figure("saved and loaded", &format!("{apart:.1e}"));
    assert!(apart < 1e-6, "{apart}");
    let request = SampleRequest { context: vec![1, 2], max_tokens: 2, ..SampleRequest::default() };
    assert_eq!(sampler.sample(&request).expect("samples").policy_version, PolicyVersion(2));
    other.reset_optimizer();
    let objective = Surrogate { num_tokens: 100.0 };
    other.forward_backward(batch, &objective).expect("forward_backward");
    let adam = AdamParams {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_clip: 0.0,
    };
    assert!(other.optim_step(&adam).expect("steps").grad_norm > 0.0);
}
