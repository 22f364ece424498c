//! Real engines, where the environment names them: `PATCHWRIGHT_LLAMA_CPP` (a URL; the model is the
//! GGUF file of `PATCHWRIGHT_MODELS`), `PATCHWRIGHT_VLLM` and `PATCHWRIGHT_VLLM_LORA` (URLs of
//! servers that were started with `models/base`). `scripts/real_engines.sh` and
//! `cargo xtask real-engines` start them. Figures are appended to the file `PATCHWRIGHT_FIGURES`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use patchwright_core::{
    AdamParams, FinishReason, Objective, PolicyVersion, SampleRequest, Sampler, TokenLoss, Trainer,
    TrainingSample, derive_seed,
};
use patchwright_engine::{EmbeddedTrainer, Engine, EngineOptions, ExportOptions, LoraConfig};
use patchwright_remote::sampler::{Dialect, RemoteSampler, SamplerOptions};
use patchwright_remote::sync::{LoadAs, SyncOptions, SyncReport, SyncedTrainer, Writer};

/// A server's URL, or a line that says what is not tested.
fn server(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        eprintln!("{variable} is not set: not tested");
    }
    url
}

fn connect(dialect: Dialect, url: String) -> RemoteSampler {
    let options =
        SamplerOptions { startup: Duration::from_mins(5), ..SamplerOptions::new(vec![url]) };
    RemoteSampler::connect(dialect, options).unwrap()
}

fn figure(name: &str, value: impl std::fmt::Display) {
    eprintln!("{name}: {value}");
    if let Some(path) = std::env::var_os("PATCHWRIGHT_FIGURES") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{name}\t{value}").unwrap();
    }
}

fn embedded(dir: &Path) -> EmbeddedTrainer {
    let options = EngineOptions { num_threads: 1, ..EngineOptions::default() };
    Engine::load(dir, options).unwrap().into_parts().0
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/base")
}

/// Draws and compares the engine's log-probabilities with the trainer's: mean and largest
/// difference, and the tokens compared.
fn differences(
    sampler: &dyn Sampler,
    trainer: &mut dyn Trainer,
    prompt: &[u32],
    num_completions: u64,
    num_tokens: usize,
) -> (f32, f32, usize) {
    let (mut sum, mut max, mut count) = (0.0, 0.0f32, 0);
    for seed in 0..num_completions {
        let request = SampleRequest {
            session: seed,
            context: prompt.to_vec(),
            max_tokens: num_tokens,
            seed: derive_seed(seed, &["real"]),
            ..SampleRequest::default()
        };
        let completion = sampler.sample(&request).unwrap();
        assert_eq!(completion.policy_version, trainer.policy_version());
        let tokens = [prompt, &completion.tokens].concat();
        let ones = vec![1.0; tokens.len()];
        let own = trainer.forward(&[TrainingSample::supervised(tokens, ones)]).unwrap();
        for (a, b) in own[0][prompt.len()..].iter().zip(&completion.logprobs) {
            sum += (a - b).abs();
            max = max.max((a - b).abs());
            count += 1;
        }
    }
    (sum / count as f32, max, count)
}

#[test]
fn llama_cpp_agrees_with_the_embedded_engine_on_the_same_gguf() {
    let Some(url) = server("PATCHWRIGHT_LLAMA_CPP") else { return };
    let Some(models) = server("PATCHWRIGHT_MODELS") else { return };
    let sampler = connect(Dialect::LlamaCpp, url);
    figure("llama.cpp", sampler.engine());
    let mut trainer = embedded(&Path::new(&models).join("smollm2"));
    // "The capital of France is"
    let prompt = [504, 3575, 282, 4649, 314];
    let (mean, max, count) = differences(&sampler, &mut trainer, &prompt, 4, 16);
    figure("llama.cpp: tokens compared", count);
    figure("llama.cpp: mean |difference| of log-probabilities", mean);
    figure("llama.cpp: largest |difference|", max);
    // It rounds activations to 8 bits where we multiply in f32.
    assert!(mean < 0.1 && max < 1.5, "{mean} {max}");
    let top = SampleRequest {
        context: prompt.to_vec(),
        max_tokens: 1,
        num_top_logprobs: 5,
        ..SampleRequest::default()
    };
    let completion = sampler.sample(&top).unwrap();
    let (token, logprob) = completion.top_logprobs[0][0];
    assert_eq!(token, 7042, "\" Paris\"");
    assert!((logprob + 0.26).abs() < 0.05, "{logprob}");
}

#[test]
fn llama_cpp_ends_at_stop_tokens_and_goes_on_after_other_ends() {
    let Some(url) = server("PATCHWRIGHT_LLAMA_CPP") else { return };
    let sampler = connect(Dialect::LlamaCpp, url);
    // <|im_start|>user\nSay ok.<|im_end|>\n<|im_start|>assistant\nOk.
    let prompt = vec![1, 4093, 198, 36218, 10907, 30, 2, 198, 1, 520, 9531, 198, 18519, 30];
    let request = |seed, stop_tokens| SampleRequest {
        context: prompt.clone(),
        max_tokens: 12,
        stop_tokens,
        seed,
        ..SampleRequest::default()
    };
    let mut num_stopped = 0;
    for seed in 0..8 {
        let completion = sampler.sample(&request(seed, vec![2])).unwrap();
        num_stopped += usize::from(completion.finish_reason == FinishReason::Stop);
        let whole = sampler.sample(&request(seed, vec![])).unwrap();
        assert_eq!(whole.tokens.len(), 12, "an end that was not asked for is none");
    }
    assert!(num_stopped > 0, "of eight turns, one ends");
}

/// Plain maximum likelihood, enough to move weights.
struct Likelihood;

impl Objective for Likelihood {
    fn token_loss(&self, _: &TrainingSample, _: usize, logprob: f32) -> TokenLoss {
        TokenLoss { loss: -logprob, d_logprob: -1.0, clipped: false }
    }
}

fn step(trainer: &mut dyn Trainer, seed: u32) {
    let tokens: Vec<u32> = (0..24).map(|t| (seed * 31 + t * 17) % 800).collect();
    let sample = TrainingSample::supervised(tokens, vec![1.0; 24]);
    trainer.forward_backward(&[sample], &Likelihood).unwrap();
    let adam = AdamParams {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_clip: 1.0,
    };
    trainer.optim_step(&adam).unwrap();
}

type Reports = Arc<Mutex<Vec<SyncReport>>>;

fn synced(
    inner: EmbeddedTrainer,
    writer: Writer<EmbeddedTrainer>,
    load_as: LoadAs,
    url: String,
    dir: &Path,
) -> (SyncedTrainer<EmbeddedTrainer>, Arc<RemoteSampler>, Reports) {
    let sampler = Arc::new(connect(Dialect::VllmGenerate, url));
    let options = SyncOptions {
        dir: dir.to_owned(),
        load_as,
        drain: Duration::from_mins(1),
        load_timeout: Duration::from_mins(2),
        probe: (0..24).map(|t| 10 + t * 7).collect(),
        max_difference: 1e-3,
    };
    let reports = Reports::default();
    let heard = Arc::clone(&reports);
    let listener = Box::new(move |report: &SyncReport| {
        eprintln!("{}", report.summary());
        heard.lock().unwrap().push(report.clone());
    });
    let trainer =
        SyncedTrainer::new(inner, writer, Arc::clone(&sampler), options, listener).unwrap();
    (trainer, sampler, reports)
}

#[test]
fn vllm_serves_what_is_published() {
    let Some(url) = server("PATCHWRIGHT_VLLM") else { return };
    let dir = tempfile::tempdir().unwrap();
    // Without the optimizer's state: vLLM loads every safetensors file that it finds.
    let export: Writer<EmbeddedTrainer> =
        |trainer, dir| trainer.export(dir, &ExportOptions::default());
    let (mut trainer, sampler, reports) =
        synced(embedded(&base()), export, LoadAs::Weights, url, dir.path());
    figure("vLLM", sampler.engine());
    figure("vLLM: endpoint", sampler.dialect().path());
    let prompt = [1, 50, 60, 70, 80];
    let (mut mean, mut max, mut count) = (0.0f32, 0.0f32, 0);
    let mut before = PolicyVersion(0);
    for n in 0..3 {
        let (m, largest, num) = differences(sampler.as_ref(), &mut trainer, &prompt, 6, 24);
        (mean, max, count) = (mean.max(m), max.max(largest), count + num);
        step(&mut trainer, n);
        let version = trainer.publish().unwrap();
        assert!(version > before);
        before = version;
    }
    figure("vLLM: tokens compared", count);
    figure("vLLM: largest mean |difference| over versions", mean);
    figure("vLLM: largest |difference|", max);
    assert!(max < 1e-3, "{max}");
    let reports = reports.lock().unwrap();
    let seconds = reports.iter().map(|report| report.load_seconds).fold(0.0, f64::max);
    figure("vLLM: seconds of a weight sync, longest", format!("{seconds:.3}"));
    drop(reports);
    let stop = SampleRequest {
        context: prompt.to_vec(),
        max_tokens: 40,
        stop_tokens: vec![227, 243, 244],
        prompt_logprobs: true,
        num_top_logprobs: 4,
        seed: 3,
        ..SampleRequest::default()
    };
    let completion = sampler.sample(&stop).unwrap();
    assert_eq!(completion.prompt_logprobs.len(), prompt.len());
    assert!(completion.top_logprobs.iter().all(|top| top.len() == 4));
    if completion.finish_reason == FinishReason::Stop {
        assert!(stop.stop_tokens.contains(completion.tokens.last().unwrap()));
    }
}

#[test]
fn vllm_loads_adapters_while_it_serves() {
    let Some(url) = server("PATCHWRIGHT_VLLM_LORA") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut inner = embedded(&base());
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let target_modules = modules.map(str::to_owned).to_vec();
    inner.add_adapter(LoraConfig { rank: 8, lora_alpha: 16.0, target_modules }, 5).unwrap();
    let writer: Writer<EmbeddedTrainer> = |trainer, dir| trainer.save_adapter(dir);
    let (mut trainer, sampler, reports) = synced(inner, writer, LoadAs::Adapter, url, dir.path());
    let prompt = [1, 50, 60, 70, 80];
    let mut max = 0.0f32;
    for n in 0..3 {
        let start = Instant::now();
        step(&mut trainer, n);
        trainer.publish().unwrap();
        let (_, largest, _) = differences(sampler.as_ref(), &mut trainer, &prompt, 4, 16);
        max = max.max(largest);
        eprintln!("step, publish and samples: {:.2} s", start.elapsed().as_secs_f64());
    }
    figure("vLLM LoRA: largest |difference|", max);
    let seconds =
        reports.lock().unwrap().iter().map(|report| report.load_seconds).fold(0.0, f64::max);
    figure("vLLM LoRA: seconds of a hot load, longest", format!("{seconds:.3}"));
    assert!(max < 1e-3, "{max}");
}
