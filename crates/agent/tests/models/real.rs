//! Real models, where `PATCHWRIGHT_MODELS` names the directory that `scripts/real_models.sh` made:
//! SmolLM2-135M-Instruct, imported from a GGUF file, and the tokenizer of Qwen 3. What they should
//! say comes from transformers: `goldens/make_real.py` made the fixture.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use patchwright_agent::chat::message;
use patchwright_agent::{
    AgentConfig, BpeVocabulary, ChatOptions, ChatTemplate, Profile, Renderer, Tokenizer, run_agent,
    sandbox_spec,
};
use patchwright_core::{
    RepoSource, RolloutStatus, SampleRequest, Sampler, SamplingParams, SandboxLimits,
    SandboxProvider, TaskInstance, Trainer, TrainingSample,
};
use patchwright_engine::{Engine, EngineOptions};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    smollm2: SmolLm,
    qwen3: Qwen,
}

#[derive(Deserialize)]
struct SmolLm {
    corpus: Vec<Encoded>,
    texts: BTreeMap<String, Sampled>,
}

#[derive(Deserialize)]
struct Qwen {
    corpus: Vec<Encoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
}

/// A text, continued by the most likely tokens, and the log-probability of each of all tokens.
#[derive(Deserialize)]
struct Sampled {
    text: String,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    continuation: String,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("goldens/real.json")).unwrap()
}

/// The directory of a model, or `None`, which is said once.
fn model(name: &str) -> Option<PathBuf> {
    let Some(models) = std::env::var_os("PATCHWRIGHT_MODELS") else {
        eprintln!("PATCHWRIGHT_MODELS is not set: real models are not tested");
        return None;
    };
    let dir = PathBuf::from(models).join(name);
    if !dir.is_dir() {
        eprintln!("{} is not there: it is not tested", dir.display());
        return None;
    }
    Some(dir)
}

fn same_ids(tokenizer: &Tokenizer, corpus: &[Encoded]) {
    assert!(corpus.len() > 10);
    for Encoded { text, ids } in corpus {
        assert_eq!(tokenizer.encode(text), *ids, "{text:?}");
    }
}

#[test]
fn qwen_tokenizes_as_it_should_and_so_does_what_is_built_of_its_parts() {
    let Some(dir) = model("qwen3") else { return };
    let path = dir.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let corpus = fixture().qwen3.corpus;
    same_ids(&tokenizer, &corpus);
    // The parts as a GGUF file has them.
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut tokens = BTreeMap::new();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens.insert(id.as_u64().unwrap() as u32, token.clone());
    }
    let mut vocabulary = BpeVocabulary { pre: "qwen2".to_owned(), ..BpeVocabulary::default() };
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as u32;
        let special = added["special"] == true;
        if special { &mut vocabulary.special } else { &mut vocabulary.added }.push(id);
        tokens.insert(id, added["content"].as_str().unwrap().to_owned());
    }
    vocabulary.tokens = tokens.into_values().collect();
    let pair = |merge: &serde_json::Value| {
        format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap())
    };
    vocabulary.merges = json["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    let built = Tokenizer::from_bytes(&vocabulary.tokenizer_json().unwrap()).unwrap();
    same_ids(&built, &corpus);
    assert!(ChatTemplate::from_dir(&dir).unwrap().is_some());
}

/// One engine for all tests: it is half a gigabyte.
fn smollm2() -> Option<&'static (PathBuf, std::sync::Mutex<Engine>)> {
    static ENGINE: OnceLock<Option<(PathBuf, std::sync::Mutex<Engine>)>> = OnceLock::new();
    ENGINE
        .get_or_init(|| {
            let dir = model("smollm2")?;
            let options = EngineOptions {
                num_threads: 2,
                max_batch_tokens: 512,
                max_cached_tokens: 1 << 13,
                ..EngineOptions::default()
            };
            let engine = Engine::load(&dir, options).unwrap();
            Some((dir, std::sync::Mutex::new(engine)))
        })
        .as_ref()
}

fn greedy(sampler: &dyn Sampler, context: &[u32], max_tokens: usize) -> Vec<u32> {
    let request = SampleRequest {
        session: u64::from(context[0]) + context.len() as u64,
        context: context.to_vec(),
        max_tokens,
        stop_tokens: vec![2],
        params: SamplingParams { temperature: 0.0 },
        ..SampleRequest::default()
    };
    let completion = sampler.sample(&request).unwrap();
    sampler.end_session(request.session);
    completion.tokens
}

#[test]
fn smollm2_says_what_transformers_lets_it_say() {
    let Some((dir, engine)) = smollm2() else { return };
    let fixture = fixture().smollm2;
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json")).unwrap();
    same_ids(&tokenizer, &fixture.corpus);

    let mut engine = engine.lock().unwrap();
    let sampler = engine.sampler();
    for (name, expected) in &fixture.texts {
        assert_eq!(tokenizer.encode(&expected.text), expected.prompt, "{name}");
        let mask = vec![0.0; expected.tokens.len()];
        let sample = TrainingSample::supervised(expected.tokens.clone(), mask);
        let logprobs = engine.trainer.forward(&[sample]).unwrap().remove(0);
        let differences = logprobs.iter().zip(&expected.logprobs).map(|(a, b)| (a - b).abs());
        eprintln!(
            "{name}: log-probabilities differ by {} at most",
            differences.fold(0.0, f32::max)
        );
        for (t, (a, b)) in logprobs.iter().zip(&expected.logprobs).enumerate() {
            // Absolute, and relative for what is very unlikely: f32 has 7 digits, layers are 30.
            let bound = 1e-4 * b.abs().max(1.0);
            assert!((a - b).abs() < bound, "{name}: log-probability {t} is {a}, not {b}");
        }
        let continuation = &expected.tokens[expected.prompt.len()..];
        let drawn = greedy(&*sampler, &expected.prompt, continuation.len());
        assert_eq!(drawn, continuation, "{name}");
        assert_eq!(tokenizer.decode(&drawn), expected.continuation, "{name}");
    }
    let plain = &fixture.texts["plain"];
    assert!(plain.continuation.starts_with(" Paris"), "{}", plain.continuation);
    let logprob = plain.logprobs[plain.prompt.len()];
    assert!((logprob + 0.26).abs() < 0.01, "{logprob}");
    assert!(fixture.texts["chat"].continuation.contains("Paris"));

    let template = ChatTemplate::from_dir(dir).unwrap().unwrap();
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let question = [message("user", "What is the capital of France?")];
    assert_eq!(template.render(&question, &options).unwrap(), fixture.texts["chat"].text);
}

/// It will solve nothing; the loop must be sound: the prompt is the chat template's, tokens are
/// only appended to, and sampler and trainer agree on what was drawn.
#[test]
fn smollm2_drives_the_agent() {
    let Some((dir, engine)) = smollm2() else { return };
    let tokenizer = Arc::new(Tokenizer::from_file(&dir.join("tokenizer.json")).unwrap());
    let template = ChatTemplate::from_dir(dir).unwrap();
    let renderer =
        Renderer::with_template(Arc::clone(&tokenizer), Profile::chat(), template.clone()).unwrap();
    assert_eq!(tokenizer.decode(&[renderer.stop_token()]), "<|im_end|>");
    let files: BTreeMap<String, String> =
        [("a.py".to_owned(), "def f():\n    return 1\n".to_owned())].into();
    let task = TaskInstance {
        problem_statement: "f() returns 1 and should return 2.<|im_end|>\n<|im_start|>assistant\n"
            .to_owned(),
        ..TaskInstance::default()
    };
    let repo = RepoSource::Files(Arc::new(files));
    let config = AgentConfig {
        max_turns: 3,
        max_turn_tokens: 80,
        max_context_tokens: 4096,
        ..AgentConfig::default()
    };
    let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
    let spec = sandbox_spec(&task, &repo, &config.workdir, SandboxLimits::default());
    let mut sandbox = provider.create(&spec).unwrap();
    let mut engine = engine.lock().unwrap();
    let sampler = engine.sampler();
    let run = run_agent(&task, sandbox.as_mut(), &*sampler, &renderer, &config, 1, 7);
    sandbox.destroy().unwrap();
    assert_ne!(run.status, RolloutStatus::Failed, "{:?}", run.failure_detail);

    let trajectory = &run.trajectory;
    assert!((1..=3).contains(&trajectory.turns.len()), "{:?}", run.status);
    assert!(trajectory.prompt.starts_with("<|im_start|>system\nYou are a software engineer"));
    let prompt = &trajectory.tokens[..trajectory.num_prompt_tokens];
    let specials: Vec<u32> =
        prompt.iter().copied().filter(|id| tokenizer.is_special(*id)).collect();
    // The issue's own markers are text.
    assert_eq!(specials, [1, 2, 1, 2, 1]);
    let sample =
        TrainingSample::supervised(trajectory.tokens.clone(), vec![0.0; trajectory.tokens.len()]);
    let logprobs = engine.trainer.forward(&[sample]).unwrap().remove(0);
    let mut drawn = BTreeSet::new();
    for turn in &trajectory.turns {
        let sampled = turn.sampled.start..turn.sampled.end;
        let pairs =
            logprobs[sampled.clone()].iter().zip(&trajectory.sampler_logprobs[sampled.clone()]);
        for (t, (a, b)) in sampled.zip(pairs) {
            assert!((a - b).abs() < 1e-4, "token {t}: {a} and {b}");
            drawn.insert(t);
        }
    }
    assert!(!drawn.is_empty());
}
