//! `/v1/chat/completions`: conversations by the model's chat template.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use minijinja::Value as Any;
use patchwright_core::DrawnToken;
use serde_json::{Value, json};

use super::fields::Fields;
use super::logprobs::{Names, Scored, take_top};
use super::sampling::{Ask, Generation, Sampling, generate, generate_all};
use super::stream::{Events, Growing, events};
use super::tools::{self, ToolCall};
use super::{Served, Shared, finish_name, logprobs, missing, now, usage};
use crate::error::ApiError;
use crate::text::Rendered;

/// Messages of one request at most.
const MAX_MESSAGES: usize = 10_000;

/// A request, understood.
struct Asked {
    prompt: Rendered,
    messages: Vec<Any>,
    tools: bool,
    logprobs: bool,
    sampling: Sampling,
}

impl Asked {
    fn names<'a>(&self, served: &'a Served) -> Names<'a> {
        Names { text: &served.text, are_ids: self.sampling.form.are_ids }
    }
}

fn take(fields: &mut Fields, served: &Served) -> Result<Asked, ApiError> {
    let messages: Vec<Any> = fields.take("messages")?.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        let count = messages.len();
        return Err(ApiError::param("messages", format!("{count}, expected 1 to {MAX_MESSAGES}")));
    }
    let messages: Vec<Any> =
        messages.iter().enumerate().map(|(i, m)| plain(i, m)).collect::<Result<_, _>>()?;
    let choice: Option<Value> = fields.take("tool_choice")?;
    let tools = tools::check(fields.take("tools")?, choice.as_ref())?;
    fields.neutral("parallel_tool_calls", &[json!(true)])?;
    fields.neutral("response_format", &[json!({"type": "text"})])?;
    fields.neutral("modalities", &[json!(["text"])])?;
    let old = fields.take("max_tokens")?;
    let max_tokens = fields.take("max_completion_tokens")?.or(old);
    if max_tokens == Some(0) {
        return Err(ApiError::param("max_tokens", "is 0, expected at least 1"));
    }
    let logprobs = fields.take_or("logprobs", false)?;
    let num_top = take_top(fields, "top_logprobs")?.unwrap_or(0);
    if num_top > 0 && !logprobs {
        return Err(ApiError::param("top_logprobs", "needs logprobs: true"));
    }
    let variables: BTreeMap<String, Any> =
        fields.take_or("chat_template_kwargs", BTreeMap::new())?;
    fields.neutral("add_generation_prompt", &[json!(true)])?;
    let mut sampling = Sampling::take(fields, served, max_tokens)?;
    sampling.num_top = num_top;
    let marked = served
        .text
        .render_marked(&messages, tools.as_ref(), variables)
        .map_err(|reason| ApiError::param("messages", reason))?;
    let prompt = match &served.history {
        Some(history) => history.continued(&served.text, marked),
        None => served.text.tokenized(marked),
    };
    Ok(Asked { prompt, messages, tools: tools.is_some(), logprobs, sampling })
}

/// A message whose content is text, and whose tool calls have their arguments as objects, which is
/// what templates expect.
fn plain(index: usize, message: &Any) -> Result<Any, ApiError> {
    let bad = |what: &str| ApiError::param("messages", format!("number {index} {what}"));
    let get = |name: &str| {
        let value = message.get_attr(name).unwrap_or_default();
        (!value.is_none() && !value.is_undefined()).then_some(value)
    };
    if get("role").is_none_or(|role| role.as_str().is_none()) {
        return Err(bad("has no role"));
    }
    let content = match get("content") {
        None => String::new(),
        Some(content) => match content.as_str() {
            Some(text) => text.to_owned(),
            None => joined_parts(&content).map_err(bad)?,
        },
    };
    let mut pairs = vec![("content".to_owned(), Any::from(content))];
    for key in message.try_iter().into_iter().flatten() {
        let name = key.to_string();
        let value = message.get_item(&key).unwrap_or_default();
        match name.as_str() {
            "content" => {}
            "tool_calls" if value.is_none() => {}
            "tool_calls" => pairs.push((name, with_arguments(&value))),
            _ => pairs.push((name, value)),
        }
    }
    Ok(Any::from_pairs(pairs))
}

/// The text of a content in parts.
fn joined_parts(content: &Any) -> Result<String, &'static str> {
    let parts = content.try_iter().map_err(|_| "has a content that is no text")?;
    let text = |part: Any| {
        let text = part.get_attr("text").ok()?;
        text.as_str().map(str::to_owned)
    };
    let other = "has a part that is no text; nothing else is supported";
    parts.map(|part| text(part).ok_or(other)).collect()
}

fn with_arguments(calls: &Any) -> Any {
    let call = |call: Any| {
        let function = call.get_attr("function").unwrap_or_default();
        let arguments = function.get_attr("arguments").unwrap_or_default();
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Any>(text).ok());
        let replace = |value: &Any, name: &str, by: Any| {
            let pairs = value.try_iter().into_iter().flatten().map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                if key.as_str() == Some(name) { (key, by.clone()) } else { (key, item) }
            });
            Any::from_pairs(pairs.collect::<Vec<_>>())
        };
        match parsed {
            Some(parsed) => replace(&call, "function", replace(&function, "arguments", parsed)),
            None => call,
        }
    };
    calls.try_iter().into_iter().flatten().map(call).collect()
}

/// Answers a request whose model is known.
pub(super) async fn answer(
    name: &str,
    served: Served,
    shared: &Arc<Shared>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let asked = take(&mut fields, &served)?;
    fields.finish()?;
    let id = shared.answer_id("chatcmpl");
    let kind = if asked.sampling.stream { "chat.completion.chunk" } else { "chat.completion" };
    let head = json!({"id": id, "object": kind, "created": now(), "model": name});
    if asked.sampling.stream {
        let (events, response) = events();
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let result = stream(&served, &shared, asked, &head, &events).await;
            events.end(result).await;
        });
        return Ok(response);
    }
    let prompt: Arc<[u32]> = asked.prompt.tokens.as_slice().into();
    let generations = generate_all(&served, shared, &[prompt], &asked.sampling, false).await?;
    remember(&served, &asked, &generations);
    let choices: Vec<Value> = generations
        .iter()
        .enumerate()
        .map(|(index, generation)| choice(&served, &asked, index, generation, &id))
        .collect();
    let mut answer = head;
    answer["choices"] = choices.into();
    answer["usage"] = total(&asked, &generations);
    if asked.sampling.return_token_ids {
        answer["prompt_token_ids"] = json!(asked.prompt.tokens);
    }
    Ok(Json(answer).into_response())
}

fn remember(served: &Served, asked: &Asked, generations: &[Generation]) {
    let Some(history) = &served.history else { return };
    history.note_messages(&asked.prompt, &asked.messages);
    for generation in generations {
        history.push(&served.text, &asked.prompt, &generation.tokens);
    }
}

fn total(asked: &Asked, generations: &[Generation]) -> Value {
    let cached = generations.first().map_or(0, |generation| generation.cached);
    let completion = generations.iter().map(|g| g.tokens.len()).sum();
    usage(asked.prompt.tokens.len(), cached, completion)
}

/// What the model said: its content, and its calls if there are tools.
fn said(asked: &Asked, generation: &Generation) -> (String, Vec<ToolCall>) {
    if asked.tools { tools::parse(&generation.text) } else { (generation.text.clone(), Vec::new()) }
}

fn choice(
    served: &Served,
    asked: &Asked,
    index: usize,
    generation: &Generation,
    id: &str,
) -> Value {
    let (content, calls) = said(asked, generation);
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !calls.is_empty() {
        if content.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = tools::to_json(&calls, &format!("{id}_{index}")).into();
    }
    let mut choice = json!({
        "index": index,
        "message": message,
        "finish_reason": finish(generation, &calls),
        "logprobs": null,
    });
    if asked.logprobs {
        let entries = logprobs::chat(asked.names(served), Scored::all(generation));
        choice["logprobs"] = json!({"content": entries, "refusal": null});
    }
    if asked.sampling.return_token_ids {
        choice["token_ids"] = json!(generation.tokens);
    }
    choice
}

fn finish(generation: &Generation, calls: &[ToolCall]) -> &'static str {
    if calls.is_empty() { finish_name(generation.finish) } else { "tool_calls" }
}

/// All completions at once, each token as it comes; with tools, each in one piece when it is
/// finished, for what begins as text may be a call.
async fn stream(
    served: &Served,
    shared: &Arc<Shared>,
    asked: Asked,
    head: &Value,
    events: &Events,
) -> Result<(), ApiError> {
    let asked = Arc::new(asked);
    let calls = (0..asked.sampling.n).map(|index| {
        let (served, shared) = (served.clone(), Arc::clone(shared));
        let (asked, head, events) = (Arc::clone(&asked), head.clone(), events.clone());
        async move {
            let work = shared.work.clone();
            work.run(move |gone| {
                let mut piece = Piece { asked: &asked, head, index, events: &events };
                let mut growing = Growing::new(&asked.sampling.stop);
                let gone = gone.or_closed(&events);
                piece.delta(&json!({"role": "assistant", "content": ""}), &[], None);
                let mut tell = |drawn: &DrawnToken| {
                    let text = growing.push(&served.text, drawn.token);
                    piece.token(&served, &text, drawn);
                };
                let prompt = &asked.prompt.tokens;
                let ask = Ask { prompt, sampling: &asked.sampling, index, prompt_logprobs: false };
                let generation = generate(&served, &shared, ask, Some(&mut tell), &gone)?;
                piece.last(&mut growing, &generation);
                Ok(generation)
            })
            .await
        }
    });
    let generations = futures_util::future::try_join_all(calls).await?;
    remember(served, &asked, &generations);
    if asked.sampling.include_usage {
        let mut last = head.clone();
        last["choices"] = json!([]);
        last["usage"] = total(&asked, &generations);
        events.tell(&last).await;
    }
    Ok(())
}

/// One choice of an answer in pieces.
struct Piece<'a> {
    asked: &'a Asked,
    head: Value,
    index: usize,
    events: &'a Events,
}

impl Piece<'_> {
    fn delta(&mut self, delta: &Value, logprobs: &[Value], finish: Option<&str>) {
        let mut choice = json!({
            "index": self.index, "delta": delta, "finish_reason": finish, "logprobs": null,
        });
        if !logprobs.is_empty() {
            choice["logprobs"] = json!({"content": logprobs, "refusal": null});
        }
        self.head["choices"] = json!([choice]);
        self.events.send(&self.head);
    }

    fn token(&mut self, served: &Served, text: &str, drawn: &DrawnToken) {
        let entries = if self.asked.logprobs {
            logprobs::chat(self.asked.names(served), Scored::one(drawn))
        } else {
            Vec::new()
        };
        let ids = self.asked.sampling.return_token_ids;
        let text = if self.asked.tools { "" } else { text };
        if text.is_empty() && entries.is_empty() && !ids {
            return;
        }
        let mut delta = json!({"content": text});
        if ids {
            delta["token_ids"] = json!([drawn.token]);
        }
        self.delta(&delta, &entries, None);
    }

    fn last(&mut self, growing: &mut Growing, generation: &Generation) {
        let (content, calls) = said(self.asked, generation);
        let mut delta = json!({});
        if self.asked.tools {
            if !content.is_empty() {
                delta["content"] = content.into();
            }
            if !calls.is_empty() {
                let id = format!("{}_{}", self.head["id"].as_str().unwrap_or_default(), self.index);
                delta["tool_calls"] = tools::to_json(&calls, &id).into();
            }
        } else {
            let rest = growing.finish(&generation.text);
            if !rest.is_empty() {
                delta["content"] = rest.into();
            }
        }
        self.delta(&delta, &[], Some(finish(generation, &calls)));
    }
}
