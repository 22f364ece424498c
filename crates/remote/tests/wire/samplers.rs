//! Each dialect against recorded answers: what is sent, what is read, what is refused.

use std::time::Duration;

use patchwright_core::{FinishReason, SampleRequest, Sampler, SamplerError};
use patchwright_remote::http::RetryPolicy;
use patchwright_remote::sampler::{Dialect, RemoteSampler, SamplerOptions};
use serde_json::{Value, json};

use crate::server::{Reply, Request, Server};

/// What servers say of themselves; `None` for requests of tokens.
pub fn facts(request: &Request) -> Option<Reply> {
    let value = match request.path.as_str() {
        "/health" => json!({"status": "ok"}),
        "/version" => json!({"version": "0.32.0"}),
        "/v1/models" => json!({"object": "list", "data": [{"id": "policy", "max_model_len": 64}]}),
        "/props" => json!({"default_generation_settings": {"n_ctx": 64}, "build_info": "b1"}),
        "/server_info" => json!({"context_length": 64, "version": "0.5"}),
        _ => return None,
    };
    if request.json() == json!({}) && request.method == "POST" {
        return None;
    }
    Some(Reply::Json(200, value))
}

pub fn options(urls: Vec<String>) -> SamplerOptions {
    SamplerOptions {
        timeout: Duration::from_secs(3),
        retry: RetryPolicy {
            max_retries: 2,
            first_pause: Duration::from_millis(1),
            ..RetryPolicy::default()
        },
        startup: Duration::from_secs(3),
        ..SamplerOptions::new(urls)
    }
}

fn sampler(
    dialect: Dialect,
    mut answer: impl FnMut(&Request) -> Reply + Send + 'static,
) -> (Server, RemoteSampler) {
    let server = Server::new(move |request| {
        if request.path == "/inference/v1/generate" && request.body == b"{}" {
            return Reply::Json(422, json!({"detail": "token_ids: Field required"}));
        }
        facts(request).unwrap_or_else(|| answer(request))
    });
    let sampler = RemoteSampler::connect(dialect, options(vec![server.url().to_owned()])).unwrap();
    assert_eq!((sampler.dialect(), sampler.max_context()), (dialect, 64));
    (server, sampler)
}

#[test]
fn an_older_sglang_is_asked_by_the_old_name() {
    let server = Server::new(|request| match request.path.as_str() {
        "/server_info" => Reply::Json(404, json!({"detail": "Not Found"})),
        "/get_server_info" => Reply::Json(200, json!({"context_length": 48, "version": "0.4"})),
        _ => facts(request).unwrap_or_else(|| Reply::Json(500, json!({}))),
    });
    let options = options(vec![server.url().to_owned()]);
    let sampler = RemoteSampler::connect(Dialect::Sglang, options).unwrap();
    assert_eq!(sampler.max_context(), 48);
}

fn request() -> SampleRequest {
    SampleRequest {
        session: 7,
        context: vec![1, 50, 60],
        max_tokens: 4,
        stop_tokens: vec![227],
        seed: 3,
        ..SampleRequest::default()
    }
}

fn num_posts(server: &Server) -> usize {
    server.seen().iter().filter(|request| request.method == "POST").count()
}

/// As vLLM 0.32 answered.
fn generated(tokens: &[u32], finish: &str) -> Value {
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            json!({"token_id": token, "logprob": -0.25, "rank": 1, "top_logprobs":
                [{"token_id": token, "logprob": -0.25, "rank": 1}]})
        })
        .collect();
    json!({"request_id": "generate-tokens-8655", "model": "policy", "prompt_logprobs": null,
        "prompt_token_ids": null, "output_mode": "tokens", "choices": [{"index": 0,
        "finish_reason": finish, "stop_reason": null, "token_ids": tokens, "sampling_mask": null,
        "weight_versions": [{"version": "default", "start": 0, "end": tokens.len()}],
        "logprobs": {"content": content}}]})
}

#[test]
fn vllm_generate_is_asked_for_the_full_distribution() {
    let (server, sampler) =
        sampler(Dialect::VllmGenerate, |_| Reply::Json(200, generated(&[5, 227], "stop")));
    let completion = sampler.sample(&request()).unwrap();
    assert_eq!(completion.tokens, [5, 227]);
    assert_eq!(completion.logprobs, [-0.25, -0.25]);
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    let sent = server.seen().pop().unwrap().json();
    assert_eq!(sent["token_ids"], json!([1, 50, 60]));
    let params = &sent["sampling_params"];
    for (name, value) in [
        ("temperature", json!(1.0)),
        ("top_p", json!(1.0)),
        ("top_k", json!(-1)),
        ("min_p", json!(0.0)),
        ("repetition_penalty", json!(1.0)),
        ("presence_penalty", json!(0.0)),
        ("frequency_penalty", json!(0.0)),
        ("ignore_eos", json!(true)),
        ("stop_token_ids", json!([227])),
        ("max_tokens", json!(4)),
        ("seed", json!(1)),
    ] {
        assert_eq!(params[name], value, "{name}");
    }
}

/// vLLM puts the drawn token first in the list and then cuts it: the last of the most likely gives
/// way to a drawn token that is none of them. Seen on 0.32.
#[test]
fn vllm_lists_do_not_favour_the_drawn_token() {
    let listed = |drawn: u32, logprob: f32, others: &[(u32, f32)]| {
        let all = [&[(drawn, logprob)], others].concat();
        let top: Vec<Value> =
            all.iter().map(|(id, logprob)| json!({"token_id": id, "logprob": logprob})).collect();
        json!({"token_id": drawn, "logprob": logprob, "top_logprobs": top})
    };
    let answer = json!({"choices": [{"index": 0, "finish_reason": "stop",
        "logprobs": {"content": [listed(700, -7.5, &[(5, -0.5), (6, -1.5)]),
            listed(227, -1.5, &[(5, -0.5), (6, -2.5)])]},
        "token_ids": [700, 227]}]});
    let (server, sampler) =
        sampler(Dialect::VllmGenerate, move |_| Reply::Json(200, answer.clone()));
    let request = SampleRequest { num_top_logprobs: 2, ..request() };
    let completion = sampler.sample(&request).unwrap();
    assert_eq!(completion.top_logprobs[0], [(5, -0.5), (6, -1.5)], "the drawn one is no top");
    assert_eq!(completion.top_logprobs[1], [(5, -0.5), (227, -1.5)]);
    let sent = || server.seen().pop().unwrap().json()["sampling_params"]["logprobs"].clone();
    assert_eq!(sent(), json!(3));
    // The server's default bound is 20, so 19 can be believed.
    let many = SampleRequest { num_top_logprobs: 100, ..request };
    sampler.sample(&many).unwrap();
    assert_eq!(sent(), json!(20));
}

#[test]
fn vllm_completions_are_read_with_tops_and_prompt_logprobs() {
    let answer = json!({"object": "text_completion", "choices": [{"index": 0, "text": ".(",
        "logprobs": {"token_logprobs": [-0.5, -6.25], "tokens": ["token_id:243", "token_id:227"],
            "top_logprobs": [{"token_id:243": -0.5, "token_id:244": -1.5},
                {"token_id:227": -6.25, "token_id:597": -4.5, "token_id:485": -4.75}]},
        "finish_reason": "stop", "stop_reason": 227, "token_ids": [243, 227],
        "prompt_logprobs": [null, {"50": {"logprob": -9.0, "rank": 491}},
            {"60": {"logprob": -18.5, "rank": 226}, "243": {"logprob": -1e-5, "rank": 1}}],
        "prompt_token_ids": [1, 50, 60]}]});
    let (server, sampler) =
        sampler(Dialect::VllmCompletions, move |_| Reply::Json(200, answer.clone()));
    let request = SampleRequest { prompt_logprobs: true, num_top_logprobs: 2, ..request() };
    let completion = sampler.sample(&request).unwrap();
    assert_eq!(completion.prompt_logprobs, [0.0, -9.0, -18.5]);
    assert_eq!(completion.top_logprobs[0], [(243, -0.5), (244, -1.5)]);
    assert_eq!(completion.top_logprobs[1], [(597, -4.5), (485, -4.75)], "the drawn one is no top");
    let sent = server.seen().pop().unwrap().json();
    assert_eq!(sent["prompt"], json!([1, 50, 60]));
    assert_eq!((&sent["return_token_ids"], &sent["logprobs"]), (&json!(true), &json!(3)));
}

#[test]
fn vllm_without_the_endpoint_is_asked_for_completions() {
    let server = Server::new(|request| {
        facts(request).unwrap_or(Reply::Json(404, json!({"detail": "Not Found"})))
    });
    let options = options(vec![server.url().to_owned()]);
    let sampler = RemoteSampler::connect(Dialect::VllmGenerate, options).unwrap();
    assert_eq!(sampler.dialect(), Dialect::VllmCompletions);
    assert_eq!(sampler.engine(), "vLLM 0.32.0");
}

#[test]
fn sglang_is_asked_and_read() {
    let answer = json!({"text": "x", "output_ids": [5, 227], "meta_info": {"id": "a",
        "finish_reason": {"type": "stop", "matched": 227}, "prompt_tokens": 3,
        "weight_version": "default", "completion_tokens": 2,
        "output_token_logprobs": [[-0.5, 5, null], [-0.75, 227, null]],
        "output_top_logprobs": [[[-0.5, 5, null], [-2.0, 6, null]], [[-0.75, 227, null]]],
        "input_token_logprobs": [[null, 1, null], [-3.0, 50, null], [-4.0, 60, null]]}});
    let (server, sampler) = sampler(Dialect::Sglang, move |_| Reply::Json(200, answer.clone()));
    let request = SampleRequest { prompt_logprobs: true, num_top_logprobs: 2, ..request() };
    let completion = sampler.sample(&request).unwrap();
    assert_eq!(completion.logprobs, [-0.5, -0.75]);
    assert_eq!(completion.prompt_logprobs, [0.0, -3.0, -4.0]);
    assert_eq!(completion.top_logprobs[0], [(5, -0.5), (6, -2.0)]);
    let sent = server.seen().pop().unwrap().json();
    assert_eq!(sent["input_ids"], json!([1, 50, 60]));
    assert_eq!(sent["sampling_params"]["top_k"], json!(-1));
    assert_eq!(sent["return_logprob"], json!(true));
}

/// llama.cpp ends at any end of generation: here at 2, which is no stop token, then goes on.
#[test]
fn llama_cpp_is_cut_at_stop_tokens_and_asked_on_at_other_ends() {
    let answer = |tokens: &[u32], stop_type: &str, evaluated: usize| {
        let probabilities: Vec<Value> = tokens
            .iter()
            .map(|id| json!({"id": id, "token": "t", "bytes": [116], "logprob": -1.5, "top_logprobs": []}))
            .collect();
        json!({"index": 0, "content": "", "tokens": tokens, "stop": true, "stop_type": stop_type,
            "truncated": false, "tokens_evaluated": evaluated,
            "completion_probabilities": probabilities})
    };
    let (server, sampler) = sampler(Dialect::LlamaCpp, move |request| {
        let prompt = request.json()["prompt"].as_array().unwrap().len();
        let reply =
            if prompt == 3 { answer(&[5, 2], "eos", 3) } else { answer(&[227, 8], "limit", 5) };
        Reply::Json(200, reply)
    });
    let completion = sampler.sample(&request()).unwrap();
    assert_eq!(completion.tokens, [5, 2, 227]);
    assert_eq!(completion.logprobs.len(), 3);
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    let sent = server.seen().pop().unwrap().json();
    assert_eq!(sent["prompt"], json!([1, 50, 60, 5, 2]));
    assert_eq!(sent["n_predict"], json!(2));
    for (name, value) in [("top_k", json!(0)), ("top_p", json!(1.0)), ("min_p", json!(0.0))] {
        assert_eq!(sent[name], value, "{name}");
    }
    assert_eq!(sent["samplers"], json!(["temperature"]));
    let with_stop = SampleRequest { stop_strings: vec![b"x".to_vec()], ..request() };
    assert!(matches!(sampler.sample(&with_stop), Err(SamplerError::BadRequest(_))));
}

/// Answers that break the contract are asked for again, never used.
#[test]
fn lies_are_tried_again_and_then_refused() {
    let mut other_prompt = generated(&[5, 227], "stop");
    other_prompt["prompt_token_ids"] = json!([1, 50, 61]);
    let mut few = generated(&[5, 227], "stop");
    few["choices"][0]["logprobs"]["content"].as_array_mut().unwrap().pop();
    let cases = [
        (other_prompt, "another prompt"),
        (few, "other tokens than it drew"),
        (generated(&[5, 2], "stop"), "none of the stop tokens"),
        (generated(&[5], "length"), "ended by length after 1"),
        (generated(&[5], "abort"), "abort"),
        (json!({"choices": []}), "0 choices"),
        (json!({"text": "hello"}), "not what was agreed"),
    ];
    for (lie, text) in cases {
        let (server, sampler) =
            sampler(Dialect::VllmGenerate, move |_| Reply::Json(200, lie.clone()));
        let before = num_posts(&server);
        let error = sampler.sample(&request()).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert!(matches!(error, SamplerError::Engine(_)));
        assert_eq!(num_posts(&server) - before, 3, "one try and two more");
    }
}

#[test]
fn faults_pass_and_nothing_is_lost() {
    let mut n = 0;
    let (server, sampler) = sampler(Dialect::VllmGenerate, move |_| {
        n += 1;
        match n {
            1 => Reply::Half(generated(&[5, 227], "stop")),
            2 => Reply::Text(429, Some(("retry-after", "0")), String::new()),
            _ => Reply::Json(200, generated(&[5, 227], "stop")),
        }
    });
    assert_eq!(sampler.sample(&request()).unwrap().tokens, [5, 227]);
    assert!(server.seen().len() > 5);
    let report = &sampler.replicas().report()[0];
    assert_eq!((report.num_failures, report.num_outages, report.num_in_flight), (2, 1, 0));
}

#[test]
fn wrong_requests_are_not_sent_twice() {
    let (server, sampler) = sampler(Dialect::VllmGenerate, |_| {
        Reply::Json(400, json!({"error": {"message": "maximum context length is 64"}}))
    });
    let before = num_posts(&server);
    let error = sampler.sample(&request()).unwrap_err();
    assert!(matches!(error, SamplerError::BadRequest(_)), "{error}");
    assert!(error.to_string().contains("maximum context"), "{error}");
    assert_eq!(num_posts(&server) - before, 1);
    let long = SampleRequest { context: vec![1; 64], ..request() };
    assert!(matches!(sampler.sample(&long), Err(SamplerError::BadRequest(_))));
    let withdrawn = sampler.sample_cancellable(&request(), &|| true).unwrap_err();
    assert!(matches!(withdrawn, SamplerError::Cancelled));
}

#[test]
fn a_model_that_is_not_there_and_a_server_that_is_not_there() {
    let server = Server::new(|request| facts(request).unwrap_or(Reply::Drop));
    let named = SamplerOptions { model: "qwen".into(), ..options(vec![server.url().to_owned()]) };
    let error = RemoteSampler::connect(Dialect::VllmCompletions, named).unwrap_err();
    assert!(error.to_string().contains("no model \"qwen\"; it lists policy"), "{error}");
    let url = server.url().to_owned();
    drop(server);
    let gone = SamplerOptions { startup: Duration::from_millis(300), ..options(vec![url]) };
    let error = RemoteSampler::connect(Dialect::VllmCompletions, gone).unwrap_err();
    assert!(error.to_string().contains("is the server running"), "{error}");
}
