//! A model that is spoken to by chat, in the agent's tokens.

use patchwright_core::{FinishReason, SampleRequest, Sampler, SamplerError};
use patchwright_remote::chat::{ChatAsTokens, MESSAGE_END, MESSAGE_START};
use patchwright_remote::http::BearerToken;
use patchwright_remote::sampler::SamplerOptions;
use serde_json::json;

use crate::replicas::ears;
use crate::samplers::{facts, options};
use crate::server::{Reply, Server};

fn context(user: &str) -> Vec<u32> {
    let mut tokens = vec![MESSAGE_START];
    tokens.extend(format!("user\n{user}").bytes().map(u32::from));
    tokens.extend([MESSAGE_END, 10, MESSAGE_START]);
    tokens.extend(b"assistant\n".map(u32::from));
    tokens
}

fn request(max_tokens: usize) -> SampleRequest {
    SampleRequest { context: context("grüß"), max_tokens, ..SampleRequest::default() }
}

#[test]
fn messages_go_out_and_text_comes_back_as_bytes() {
    let server = Server::new(|request| {
        facts(request).unwrap_or_else(|| {
            let message = json!({"role": "assistant", "content": "ja 😀"});
            let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
            Reply::Json(200, json!({"choices": [choice]}))
        })
    });
    let options = SamplerOptions {
        token: Some(BearerToken::new("k")),
        ..options(vec![server.url().to_owned()])
    };
    let chat = ChatAsTokens::connect(options, 77).unwrap();
    let completion = chat.sample(&request(100)).unwrap();
    let (end, text) = completion.tokens.split_last().unwrap();
    let text: Vec<u8> = text.iter().map(|token| *token as u8).collect();
    assert_eq!((*end, text.as_slice()), (MESSAGE_END, "ja 😀".as_bytes()));
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    let sent = server.seen().pop().unwrap();
    assert_eq!(sent.path, "/v1/chat/completions");
    assert_eq!(sent.header("authorization"), Some("Bearer k"));
    let sent = sent.json();
    assert_eq!(sent["messages"], json!([{"role": "user", "content": "grüß"}]));
    assert_eq!((&sent["model"], &sent["max_tokens"]), (&json!("policy"), &json!(77)));
    let cut = chat.sample(&request(3)).unwrap();
    assert_eq!((cut.tokens.len(), cut.finish_reason), (3, FinishReason::Length));
}

#[test]
fn a_server_that_is_gone_is_told_of_once_and_not_waited_for_without_end() {
    let mut answers = true;
    let server = Server::new(move |request| {
        if answers && request.method == "GET" {
            return facts(request).unwrap_or(Reply::Drop);
        }
        answers = false;
        Reply::Drop
    });
    let (listener, lines) = ears();
    let options = SamplerOptions {
        max_outage: std::time::Duration::ZERO,
        listener,
        ..options(vec![server.url().to_owned()])
    };
    let chat = ChatAsTokens::connect(options, 10).unwrap();
    for _ in 0..3 {
        let error = chat.sample(&request(10)).unwrap_err().to_string();
        assert!(error.contains("none has served") && error.contains(server.url()), "{error}");
    }
    let lines = lines.lock().unwrap();
    assert!(lines.len() == 1 && lines[0].contains("is down"), "{lines:?}");
}

#[test]
fn faults_are_classed_and_tried_again() {
    let mut n = 0;
    let server = Server::new(move |request| {
        n += usize::from(request.method == "POST");
        facts(request).unwrap_or_else(|| match n {
            1 => Reply::Drop,
            2 => Reply::Json(500, json!({"error": {"message": "oops"}})),
            3 => {
                let message = json!({"role": "assistant", "content": null});
                Reply::Json(200, json!({"choices": [{"message": message}]}))
            }
            _ => Reply::Json(401, json!({"error": {"message": "bad key"}})),
        })
    });
    let chat = ChatAsTokens::connect(options(vec![server.url().to_owned()]), 10).unwrap();
    let empty = chat.sample(&request(10)).unwrap();
    assert_eq!(empty.tokens, [MESSAGE_END], "a reply without text is an empty turn");
    let error = chat.sample(&request(10)).unwrap_err();
    assert!(matches!(error, SamplerError::Engine(_)));
    assert!(error.to_string().contains("bad key; is the token right?"), "{error}");
}
