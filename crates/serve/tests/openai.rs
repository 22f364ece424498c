//! The `OpenAI` endpoints over the shipped base policy, by plain HTTP.

mod support;

use std::path::Path;
use std::sync::Arc;

use patchwright_core::{SampleRequest, Sampler};
use patchwright_engine::{Engine, EngineOptions};
use patchwright_remote::sampler::{Dialect, RemoteSampler, SamplerOptions};
use patchwright_serve::{
    BearerToken, Guard, Metrics, ModelText, Server, ServerLimits, Work, openai,
};
use serde_json::{Value, json};
use support::{call, events, post};

const SECRET: &str = "a-secret-of-the-tests";

struct Rig {
    server: Server,
    sampler: Arc<dyn Sampler>,
    text: Arc<ModelText>,
}

fn rig(limits: ServerLimits) -> Rig {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/base");
    rig_of(&dir, "base", limits)
}

fn rig_of(dir: &Path, name: &str, limits: ServerLimits) -> Rig {
    let options = EngineOptions { num_threads: 1, ..EngineOptions::default() };
    let engine = Engine::load(dir, options).unwrap();
    let text = Arc::new(ModelText::from_dir(dir).unwrap());
    if let Some(bytes) = text.token_bytes() {
        engine.sampler().set_token_bytes(bytes.to_vec()).unwrap();
    }
    let sampler: Arc<dyn Sampler> = engine.sampler();
    let metrics = Arc::new(Metrics::default());
    let token = BearerToken::new(SECRET).unwrap();
    let served = openai::Served::new(Arc::clone(&sampler), Arc::clone(&text));
    let models = [(name.to_owned(), served)].into();
    let routes = openai::router(models, Work::new(limits.max_samples), Arc::clone(&metrics));
    let router = Guard::new(Some(token.clone()), limits, metrics).protect(routes);
    let address = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(address, Some(&token), limits, router).unwrap();
    Rig { server, sampler, text }
}

impl Rig {
    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        post(self.server.address(), path, SECRET, body)
    }

    fn completion(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

#[test]
fn completions_are_the_engines_own() {
    let rig = rig(ServerLimits::default());
    let prompt = rig.text.tokenizer().encode("<|user|>f(1) returned 2<|assistant|>");
    let request = SampleRequest {
        session: 1,
        context: prompt.clone(),
        max_tokens: 24,
        stop_tokens: rig.text.stop_tokens().to_vec(),
        seed: 7,
        ..SampleRequest::default()
    };
    let expected = rig.sampler.sample(&request).unwrap();
    let body = json!({"model": "base", "prompt": prompt, "max_tokens": 24, "seed": 7,
        "logprobs": 0, "return_token_ids": true, "temperature": 1.0, "top_p": 1, "top_k": -1});
    let answer = rig.completion(&body);
    let choice = &answer["choices"][0];
    assert_eq!(choice["token_ids"], json!(expected.tokens));
    assert_eq!(choice["prompt_token_ids"], json!(prompt));
    let logprobs: Vec<f32> =
        serde_json::from_value(choice["logprobs"]["token_logprobs"].clone()).unwrap();
    assert_eq!(logprobs, expected.logprobs);
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
    assert_eq!(choice["text"], rig.text.visible(&expected.tokens));
    // The prompt is in the engine's cache by now.
    let again = rig.completion(&body);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
    assert_eq!(again["choices"], answer["choices"]);
    // As text, in a list, twice each.
    let many = json!({"model": "base", "prompt": ["<|user|>f(1) returned 2<|assistant|>", "<|user|>a"],
        "max_tokens": 24, "seed": 7, "n": 2, "return_token_ids": true});
    let many = rig.completion(&many);
    assert_eq!(many["choices"].as_array().unwrap().len(), 4);
    assert_eq!(many["choices"][0]["token_ids"], json!(expected.tokens));
    assert_ne!(many["choices"][1]["token_ids"], json!(expected.tokens));
}

#[test]
fn a_stream_says_what_the_whole_says() {
    let rig = rig(ServerLimits::default());
    for (path, prompt) in [
        ("/v1/completions", json!({"prompt": "<|user|>f(1) returned 2<|assistant|>"})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "f(1) returned 2"}]}),
        ),
    ] {
        let mut body = json!({"model": "base", "max_tokens": 40, "seed": 3, "return_token_ids": true,
            "ignore_eos": true});
        body.as_object_mut().unwrap().extend(prompt.as_object().unwrap().clone());
        let (status, whole) = rig.post(path, &body);
        assert_eq!(status, 200, "{whole}");
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let events = events(rig.server.address(), path, SECRET, &body);
        let (mut text, mut ids, mut finish) = (String::new(), Vec::new(), Value::Null);
        for event in &events[..events.len() - 1] {
            let choice = &event["choices"][0];
            let delta = if path.contains("chat") { &choice["delta"] } else { choice };
            let key = if path.contains("chat") { "content" } else { "text" };
            text.push_str(delta[key].as_str().unwrap_or(""));
            ids.extend(delta["token_ids"].as_array().into_iter().flatten().cloned());
            if !choice["finish_reason"].is_null() {
                finish = choice["finish_reason"].clone();
            }
        }
        let choice = &whole["choices"][0];
        let said =
            if path.contains("chat") { &choice["message"]["content"] } else { &choice["text"] };
        assert_eq!(*said, text);
        assert_eq!(choice["token_ids"], json!(ids));
        assert_eq!(choice["finish_reason"], finish);
        assert!(events.len() > 40, "tokens come one by one: {}", events.len());
        let usage = &events.last().unwrap()["usage"];
        assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    }
}

#[test]
fn stop_strings_end_the_text_and_the_tokens() {
    let rig = rig(ServerLimits::default());
    let body = json!({"model": "base", "prompt": "<|user|>f(1) returned 2<|assistant|>",
        "max_tokens": 40, "seed": 3, "return_token_ids": true, "temperature": 0});
    let whole = rig.completion(&body);
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(3).collect();
    let at = text.find(&stop).unwrap();
    let mut cut = body.clone();
    cut["stop"] = json!([stop, "never said"]);
    let cut = rig.completion(&cut);
    assert_eq!(cut["choices"][0]["text"], text[..at]);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    let tokens = |v: &Value| v["choices"][0]["token_ids"].as_array().unwrap().clone();
    let (short, long) = (tokens(&cut), tokens(&whole));
    assert!(short.len() < long.len() && long.starts_with(&short));
}

#[test]
fn likely_tokens_stand_beside_each_that_is_drawn() {
    let rig = rig(ServerLimits::default());
    let prompt = rig.text.tokenizer().encode("<|user|>f(1) returned 2<|assistant|>");
    let request = SampleRequest {
        session: 1,
        context: prompt.clone(),
        max_tokens: 12,
        stop_tokens: rig.text.stop_tokens().to_vec(),
        num_top_logprobs: 3,
        seed: 7,
        ..SampleRequest::default()
    };
    let expected = rig.sampler.sample(&request).unwrap();
    assert_eq!(expected.top_logprobs.len(), expected.tokens.len());
    let drawn = expected.tokens.iter().zip(&expected.logprobs).zip(&expected.top_logprobs);
    for ((token, logprob), top) in drawn {
        assert!(top.len() == 3 && top.is_sorted_by(|a, b| a.1 >= b.1), "{top:?}");
        match top.iter().find(|(id, _)| id == token) {
            Some((_, own)) => assert_eq!(own.to_bits(), logprob.to_bits()),
            None => assert!(*logprob <= top[2].1, "{logprob} {top:?}"),
        }
    }
    let plain = SampleRequest { num_top_logprobs: 0, ..request };
    let plain = rig.sampler.sample(&plain).unwrap();
    assert_eq!((&plain.tokens, &plain.logprobs), (&expected.tokens, &expected.logprobs));
    assert!(plain.top_logprobs.is_empty());

    let mut body = json!({"model": "base", "prompt": prompt, "max_tokens": 12, "seed": 7,
        "logprobs": 3, "return_tokens_as_token_ids": true, "return_token_ids": true});
    let whole = rig.completion(&body);
    let logprobs = &whole["choices"][0]["logprobs"];
    let tops = logprobs["top_logprobs"].as_array().unwrap();
    for (i, (top, expected_top)) in tops.iter().zip(&expected.top_logprobs).enumerate() {
        let mut wanted: Vec<(u32, f32)> = expected_top.clone();
        wanted.push((expected.tokens[i], expected.logprobs[i]));
        for (id, logprob) in &wanted {
            let told = top[format!("token_id:{id}")].as_f64().map(|told| told as f32);
            assert_eq!(told, Some(*logprob), "{top}");
        }
        assert!(top.as_object().unwrap().len() <= 4);
    }
    assert_eq!(tops.len(), expected.tokens.len());
    body["stream"] = true.into();
    let streamed: Vec<Value> = events(rig.server.address(), "/v1/completions", SECRET, &body)
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["top_logprobs"].get(0).cloned())
        .collect();
    assert_eq!(json!(streamed), json!(tops));

    let chat = json!({"model": "base", "messages": [{"role": "user", "content": "f(1) returned 2"}],
        "max_tokens": 8, "seed": 7, "logprobs": true, "top_logprobs": 20});
    let (status, answer) = rig.post("/v1/chat/completions", &chat);
    assert_eq!(status, 200, "{answer}");
    for entry in answer["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 20);
        assert!(top[0]["logprob"].as_f64() >= entry["logprob"].as_f64(), "{entry}");
        assert!(top[0]["token"].is_string() && top[0]["bytes"].is_array(), "{entry}");
    }
    let (status, refused) = rig.post(
        "/v1/completions",
        &json!({"model": "base", "prompt": "a",
        "echo": true, "logprobs": 1}),
    );
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("logprobs")));
}

/// A sampler for vLLM's completions, fields and all, draws here what the engine draws.
#[test]
fn a_client_of_vllm_draws_tokens_here() {
    let rig = rig(ServerLimits::default());
    let options = SamplerOptions {
        token: Some(patchwright_remote::http::BearerToken::new(SECRET)),
        ..SamplerOptions::new(vec![format!("http://{}", rig.server.address())])
    };
    let remote = RemoteSampler::connect(Dialect::VllmCompletions, options).unwrap();
    assert_eq!(remote.max_context(), rig.sampler.max_context());
    let request = SampleRequest {
        session: 1,
        context: rig.text.tokenizer().encode("<|user|>f(1) returned 2<|assistant|>"),
        max_tokens: 40,
        num_top_logprobs: 2,
        seed: 14,
        ..SampleRequest::default()
    };
    let drawn = remote.sample(&request).unwrap();
    // The client sends its seed halved.
    let own = rig.sampler.sample(&SampleRequest { seed: 7, ..request.clone() }).unwrap();
    assert_eq!((&drawn.tokens, &drawn.top_logprobs), (&own.tokens, &own.top_logprobs));
    assert_eq!(drawn.logprobs, own.logprobs);
    // A stop string and its tokens belong to the completion.
    let said = rig.text.tokenizer().decode(&drawn.tokens[..6]);
    let stop = said.as_bytes()[said.len() - 2..].to_vec();
    let stopped = SampleRequest { stop_strings: vec![stop.clone()], ..request };
    let short = remote.sample(&stopped).unwrap();
    assert!(short.tokens.len() <= 6 && drawn.tokens.starts_with(&short.tokens));
    assert_eq!(short.finish_reason, patchwright_core::FinishReason::Stop);
    let said = rig.text.tokenizer().decode(&short.tokens);
    assert!(said.as_bytes().windows(2).any(|pair| pair == stop), "{said}");
}

#[test]
fn special_tokens_and_stops_are_text_where_they_are_asked_for() {
    let rig = rig(ServerLimits::default());
    let end = rig.text.stop_tokens()[0];
    let mut body = json!({"model": "base", "prompt": "<|user|>f(1) returned 2<|assistant|>",
        "max_tokens": 400, "seed": 3, "return_token_ids": true});
    let whole = rig.completion(&body);
    let ids: Vec<u32> = serde_json::from_value(whole["choices"][0]["token_ids"].clone()).unwrap();
    assert_eq!(ids.last(), Some(&end), "the seed draws one that ends");
    let text =
        |body: &Value| rig.completion(body)["choices"][0]["text"].as_str().unwrap().to_owned();
    let plain = text(&body);
    body["skip_special_tokens"] = false.into();
    assert_eq!(text(&body), rig.text.tokenizer().decode(&ids[..ids.len() - 1]));
    body["include_stop_str_in_output"] = true.into();
    assert_eq!(text(&body), rig.text.tokenizer().decode(&ids));
    body["skip_special_tokens"] = true.into();
    let stop = &plain[2..5];
    body["stop"] = json!([stop]);
    let with_stop = text(&body);
    body["stream"] = true.into();
    let pieces = events(rig.server.address(), "/v1/completions", SECRET, &body);
    let pieces = pieces.iter().filter_map(|event| event["choices"][0]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), with_stop);
    assert_eq!(with_stop, plain[..plain.find(stop).unwrap() + 3]);
}

#[test]
fn echo_scores_the_prompt() {
    let rig = rig(ServerLimits::default());
    let prompt = rig.text.tokenizer().encode("<|user|>f(1) returned 2");
    let answer = rig.completion(&json!({"model": "base", "prompt": prompt, "max_tokens": 0,
        "echo": true, "logprobs": 0}));
    let values = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(values.len(), prompt.len());
    assert!(values[0].is_null() && values[1..].iter().all(|v| v.as_f64().unwrap() <= 0.0));
}

#[test]
fn no_knob_is_silent() {
    let rig = rig(ServerLimits::default());
    let chat = |extra: Value| {
        let mut body = json!({"model": "base", "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 4});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        rig.post("/v1/chat/completions", &body)
    };
    assert_eq!(chat(json!({"top_p": 1.0, "presence_penalty": 0, "user": "x", "n": 1})).0, 200);
    for (name, value) in [
        ("top_p", json!(0.9)),
        ("top_k", json!(5)),
        ("frequency_penalty", json!(0.5)),
        ("top_logprobs", json!(3)), // without logprobs: true
        ("top_logprobs", json!(21)),
        ("skip_special_tokens", json!(1)),
        ("logit_bias", json!({"1": 5})),
        ("response_format", json!({"type": "json_object"})),
        ("tool_choice", json!("required")),
        ("temperature", json!(-1)),
        ("n", json!(0)),
        ("no_such_knob", json!(1)),
        ("max_tokens", json!("many")),
        ("messages", json!([])),
        ("messages", json!([{"role": "user", "content": [{"type": "image_url"}]}])),
        ("model", json!("other")),
    ] {
        let (status, answer) = chat(json!({name: value}));
        assert!(status == 400 || status == 404, "{name}: {status}");
        assert_eq!(answer["error"]["param"], name, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(name), "{answer}");
    }
    let (status, answer) =
        rig.post("/v1/completions", &json!({"model": "base", "prompt": vec![1; 1024]}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[test]
fn strangers_and_giants_are_turned_away() {
    let limits = ServerLimits { max_body_bytes: 2000, ..ServerLimits::default() };
    let rig = rig(limits);
    let address = rig.server.address();
    let body = json!({"model": "base", "prompt": "a", "max_tokens": 1});
    let (status, answer) = post(address, "/v1/completions", "another-secret-of-them", &body);
    assert_eq!((status, &answer["error"]["type"]), (401, &json!("authentication_error")));
    assert_eq!(call(address, "GET", "/metrics", "", "").0, 401);
    assert_eq!(call(address, "GET", "/health", "", "").0, 200);
    let (status, _) = rig.post("/v1/completions", &json!({"prompt": "a".repeat(3000)}));
    assert_eq!(status, 413);
    assert_eq!(rig.post("/v1/other", &json!({})).0, 404);
    let (status, metrics) = call(address, "GET", "/metrics", SECRET, "");
    assert_eq!(status, 200);
    let line = r#"patchwright_http_requests_total{route="/v1/completions",status="413"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(!metrics.contains("/v1/other"), "{metrics}");
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let limits = ServerLimits { max_samples: 1, ..ServerLimits::default() };
    let rig = rig(limits);
    let long = json!({"model": "base", "prompt": "<|user|>a", "max_tokens": 1000, "ignore_eos": true,
        "n": 64});
    let stream = support::send(rig.server.address(), "/v1/completions", SECRET, &long);
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(stream);
    let short = json!({"model": "base", "prompt": "<|user|>a", "max_tokens": 1});
    let started = std::time::Instant::now();
    assert_eq!(rig.post("/v1/completions", &short).0, 200);
    // 64 000 tokens take minutes; one that is withdrawn takes none.
    assert!(started.elapsed() < std::time::Duration::from_secs(20));
    rig.server.stop();
}

/// Of `PATCHWRIGHT_OPENAI_VENV` (`scripts/sdk_venvs.sh`), on the base policy, and on `SmolLM2` of
/// `PATCHWRIGHT_MODELS` (`scripts/real_models.sh`) if it is there.
#[test]
fn the_official_package_is_at_home() {
    let Some(venv) = std::env::var_os("PATCHWRIGHT_OPENAI_VENV") else {
        eprintln!("skipped: PATCHWRIGHT_OPENAI_VENV is not set (scripts/sdk_venvs.sh)");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut models = vec![("base", here.join("../../models/base"))];
    if let Some(dir) = std::env::var_os("PATCHWRIGHT_MODELS") {
        models.push(("smollm2", Path::new(&dir).join("smollm2")));
    }
    for (name, dir) in models {
        let rig = rig_of(&dir, name, ServerLimits::default());
        let output = std::process::Command::new(Path::new(&venv).join("bin/python"))
            .arg(here.join("tests/python/openai_sdk.py"))
            .env("MODEL", name)
            .env("OPENAI_BASE_URL", format!("http://{}/v1", rig.server.address()))
            .env("OPENAI_API_KEY", SECRET)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {told}");
        println!("{}", String::from_utf8_lossy(&output.stdout));
    }
}
