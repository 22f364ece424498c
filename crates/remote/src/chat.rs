//! Evaluation of any model by chat: messages in, text out, over `POST /v1/chat/completions`.
//!
//! The agent's loop speaks tokens. [`ChatAsTokens`] speaks them with a tokenizer of its own, whose
//! tokens are bytes: the context is read back into messages, the reply is written as bytes. So the
//! loop, its tools and its limits are the same for every model; what it calls tokens are bytes then,
//! and their log-probabilities are 0: there is nothing to train on.

use std::fmt::Write;
use std::time::Duration;

use patchwright_core::{
    Completion, FinishReason, SampleRequest, Sampler, SamplerError, derive_seed,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::{Call, FailureKind, HttpClient, HttpFailure, HttpOptions, RetryBudget, retried};
use crate::replicas::{Replicas, Served};
use crate::sampler::{SamplerOptions, sampler_error};

/// The token that opens a message; its role and a line end follow.
pub const MESSAGE_START: u32 = 256;
/// The token that closes a message.
pub const MESSAGE_END: u32 = 257;
/// How the two are written in a framing.
pub const FRAMING: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
/// Bytes that a token stands for, roughly: limits in tokens become limits in bytes by it.
pub const BYTES_PER_TOKEN: usize = 4;

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A sampler over servers of the `OpenAI` chat API.
pub struct ChatAsTokens {
    replicas: Replicas,
    options: SamplerOptions,
    budget: RetryBudget,
    max_tokens: usize,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Reply,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    content: Option<String>,
}

impl ChatAsTokens {
    /// Learns the model's name where `options` names none. `max_tokens` are the model's own tokens
    /// of one turn at most.
    ///
    /// # Errors
    /// [`HttpFailure`] when no server answers, or none of several models was named.
    pub fn connect(options: SamplerOptions, max_tokens: usize) -> Result<Self, HttpFailure> {
        let client = |url: &String| {
            HttpClient::new(HttpOptions {
                token: options.token.clone(),
                timeout: options.timeout,
                max_idle_connections: options.max_in_flight,
                interrupt: options.interrupt.clone(),
                ..HttpOptions::new(url.clone())
            })
        };
        let clients = options.urls.iter().map(client).collect::<Result<Vec<_>, _>>()?;
        let model = match options.model.as_str() {
            "" => only_model(&options, &clients)?,
            model => model.to_owned(),
        };
        let served = Served { model, ..Served::default() };
        let replicas = Replicas::new(clients, options.max_in_flight, served)
            .with_outages(options.max_outage, options.listener.clone());
        replicas.set_readmit(std::sync::Arc::new(Answers));
        Ok(Self { replicas, options, budget: RetryBudget::default(), max_tokens })
    }

    /// The servers.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    fn attempt(
        &self,
        request: &SampleRequest,
        messages: &[ChatMessage],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<String, HttpFailure> {
        let lease = self.replicas.acquire(request.session, self.options.timeout, is_cancelled)?;
        let body = json!({
            "model": lease.served.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": request.params.temperature,
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": request.seed >> 12,
            "n": 1,
            "stream": false,
        });
        let result = lease
            .client
            .post_json::<_, Answer>("/v1/chat/completions", &body, &Call::default())
            .and_then(|answer| {
                let choice = answer.choices.into_iter().next();
                let what = lease.client.base_url();
                choice.ok_or_else(|| HttpFailure::garbage(what, "an answer without a choice"))
            });
        if let Err(failure) = &result {
            lease.failed(failure);
        }
        result.map(|choice| choice.message.content.unwrap_or_default())
    }
}

/// Servers of this API need not have `/health`, nor list models for everybody: what answers serves,
/// unless it says that it, or what is behind it, is not there.
struct Answers;

impl crate::replicas::Readmit for Answers {
    fn readmit(&self, client: &HttpClient, _: &Served) -> Result<(), HttpFailure> {
        let call = Call { timeout: Some(Duration::from_secs(5)), ..Call::default() };
        match client.send(ureq::http::Method::GET, "/v1/models", None, &call) {
            Err(failure)
                if matches!(
                    failure.kind,
                    FailureKind::Connect
                        | FailureKind::Dropped
                        | FailureKind::Timeout
                        | FailureKind::Cancelled
                        | FailureKind::Server(502..=504)
                ) =>
            {
                Err(failure)
            }
            _ => Ok(()),
        }
    }
}

fn only_model(options: &SamplerOptions, clients: &[HttpClient]) -> Result<String, HttpFailure> {
    let Some(client) = clients.first() else {
        let kind = crate::http::FailureKind::BadRequest;
        return Err(HttpFailure::new(kind, "servers", "none is named"));
    };
    let budget = RetryBudget::default();
    let is_cancelled = || options.interrupt.is_set();
    let models: Value = retried(&options.retry, &budget, 0, &is_cancelled, |_| {
        client.get_json("/v1/models", &Call::default())
    })?;
    let names: Vec<&str> =
        models["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
    match names.as_slice() {
        [only] => Ok((*only).to_owned()),
        names => Err(HttpFailure::new(
            crate::http::FailureKind::BadRequest,
            format!("server {}", client.base_url()),
            format!("it lists the models {}; name one", names.join(", ")),
        )),
    }
}

/// The messages of a context, the opened last one left out.
///
/// # Errors
/// What is no message.
pub fn messages(context: &[u32]) -> Result<Vec<ChatMessage>, String> {
    let mut parts = context.split(|token| *token == MESSAGE_START);
    if parts.next().is_none_or(|before| !before.is_empty()) {
        return Err("a context that begins with a message".to_owned());
    }
    let mut messages = Vec::new();
    for part in parts {
        let Some(end) = part.iter().position(|token| *token == MESSAGE_END) else { continue };
        let bytes: Option<Vec<u8>> =
            part[..end].iter().map(|token| u8::try_from(*token).ok()).collect();
        let bytes = bytes.ok_or("a context of bytes and message marks")?;
        let text = String::from_utf8_lossy(&bytes);
        let (role, content) = text.split_once('\n').ok_or("a role before each message")?;
        messages.push(ChatMessage { role: role.to_owned(), content: content.to_owned() });
    }
    Ok(messages)
}

impl Sampler for ChatAsTokens {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        self.sample_cancellable(request, &|| false)
    }

    /// A reply that was cut by the model's limit of tokens is taken as it is.
    fn sample_cancellable(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        let messages = messages(&request.context)
            .map_err(|wants| SamplerError::BadRequest(format!("this engine takes {wants}")))?;
        let seed = derive_seed(request.seed, &["retry"]);
        let is_cancelled = &|| is_cancelled() || self.options.interrupt.is_set();
        let text = retried(&self.options.retry, &self.budget, seed, is_cancelled, |_| {
            self.attempt(request, &messages, is_cancelled)
        })
        .map_err(|failure| sampler_error(&failure))?;
        let mut tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        let finish_reason = if tokens.len() < request.max_tokens {
            tokens.push(MESSAGE_END);
            FinishReason::Stop
        } else {
            tokens.truncate(request.max_tokens);
            FinishReason::Length
        };
        let served = self.replicas.served();
        Ok(Completion {
            logprobs: vec![0.0; tokens.len()],
            tokens,
            finish_reason,
            policy_version: served.policy_version,
            ..Completion::default()
        })
    }

    fn end_session(&self, _: u64) {}

    fn max_context(&self) -> usize {
        usize::MAX
    }
}

/// A Hugging Face `tokenizer.json` whose tokens are bytes (256 of them, by value) and the two
/// [`FRAMING`] tokens.
pub fn byte_tokenizer_json() -> String {
    // GPT-2's printable stand-ins: printable bytes stand for themselves, others for what follows
    // U+0100, in order.
    let mut next = 0x100;
    let mut vocabulary = String::new();
    for byte in 0..=255u8 {
        let is_itself = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if is_itself { u32::from(byte) } else { next };
        next += u32::from(!is_itself);
        let letter = char::from_u32(code).unwrap_or('?').to_string();
        let comma = if byte == 0 { "" } else { "," };
        let _ = write!(vocabulary, "{comma}{}:{byte}", json!(letter));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let added = json!([special(MESSAGE_START, FRAMING[0]), special(MESSAGE_END, FRAMING[1])]);
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false});
    format!(
        "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"normalizer\":null,\
         \"post_processor\":null,\"added_tokens\":{added},\"pre_tokenizer\":{level},\
         \"decoder\":{level},\"model\":{{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\
         \"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,\
         \"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{{{vocabulary}}},\"merges\":[]}}}}"
    )
}

#[cfg(test)]
mod tests {
    use super::{MESSAGE_END, MESSAGE_START, messages};

    fn framed(parts: &[(&str, &str)]) -> Vec<u32> {
        let mut tokens = Vec::new();
        for (role, content) in parts {
            tokens.push(MESSAGE_START);
            tokens.extend(format!("{role}\n{content}").bytes().map(u32::from));
            tokens.push(MESSAGE_END);
            tokens.push(u32::from(b'\n'));
        }
        tokens.push(MESSAGE_START);
        tokens.extend(b"assistant\n".map(u32::from));
        tokens
    }

    #[test]
    fn a_context_is_read_back_into_its_messages() {
        let said =
            [("system", "Be brief."), ("user", "Grüße\n\nline <|im_end|>"), ("assistant", "")];
        let read = messages(&framed(&said)).unwrap();
        let read: Vec<(&str, &str)> =
            read.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(read, said, "text that looks like a mark stays text");
        assert!(messages(&[104, 105]).is_err());
        assert!(messages(&[MESSAGE_START, 300, MESSAGE_END]).is_err());
        assert!(messages(&[MESSAGE_START, 104, MESSAGE_END]).is_err());
    }
}
