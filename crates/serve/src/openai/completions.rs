//! `/v1/completions`: prompts as text or as token ids.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use patchwright_core::DrawnToken;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::logprobs::{Names, Scored, take_top};
use super::sampling::{Ask, Generation, Sampling, generate, generate_all};
use super::stream::{Events, Growing, events};
use super::{Served, Shared, finish_name, logprobs, missing, now, usage};
use crate::error::ApiError;

/// Tokens of a completion if the request does not say: `OpenAI`'s default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Prompts of one request at most.
const MAX_PROMPTS: usize = 1024;

/// The forms of a prompt, told apart by what is in them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// A request, understood.
struct Asked {
    prompts: Vec<Arc<[u32]>>,
    /// Texts of the prompts, for echo.
    echo: Option<Vec<String>>,
    logprobs: bool,
    sampling: Sampling,
}

impl Asked {
    fn names<'a>(&self, served: &'a Served) -> Names<'a> {
        Names { text: &served.text, are_ids: self.sampling.form.are_ids }
    }
}

fn take(fields: &mut Fields, served: &Served) -> Result<Asked, ApiError> {
    let text = &served.text;
    let forms = |_| ApiError::param("prompt", "expected a string, token ids, or a list of either");
    let prompts: Option<Prompts> = fields.take("prompt").map_err(forms)?;
    let prompts = prompts.ok_or_else(|| missing("prompt"))?;
    let encode = |prompt: &String| text.tokenizer().encode(prompt);
    let prompts: Vec<Vec<u32>> = match prompts {
        Prompts::Text(prompt) => vec![encode(&prompt)],
        Prompts::Tokens(tokens) => vec![tokens],
        Prompts::Texts(prompts) => prompts.iter().map(encode).collect(),
        Prompts::ManyTokens(prompts) => prompts,
    };
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return Err(ApiError::param("prompt", "is empty; give at least one token"));
    }
    if prompts.len() > MAX_PROMPTS {
        return Err(ApiError::param("prompt", format!("more than {MAX_PROMPTS} prompts")));
    }
    let max_tokens = fields.take_or("max_tokens", DEFAULT_MAX_TOKENS)?;
    let mut sampling = Sampling::take(fields, served, Some(max_tokens))?;
    let logprobs = take_top(fields, "logprobs")?;
    sampling.num_top = logprobs.unwrap_or(0);
    let echo = fields.take_or("echo", false)?;
    if echo && sampling.num_top > 0 {
        let message = "above 0 is not supported with echo; 0 gives the tokens' own";
        return Err(ApiError::param("logprobs", message));
    }
    fields.neutral("suffix", &[json!("")])?;
    if echo && sampling.stream {
        return Err(ApiError::param("echo", "is not supported with stream: true"));
    }
    if max_tokens == 0 && !echo {
        return Err(ApiError::param("max_tokens", "is 0, which asks for nothing without echo"));
    }
    let echo = echo.then(|| prompts.iter().map(|p| text.tokenizer().decode(p)).collect());
    let prompts = prompts.into_iter().map(Arc::from).collect();
    Ok(Asked { prompts, echo, logprobs: logprobs.is_some(), sampling })
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
    let head = json!({
        "id": shared.answer_id("cmpl"), "object": "text_completion", "created": now(), "model": name,
    });
    if asked.sampling.stream {
        let (events, response) = events();
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let result = stream(&served, &shared, asked, &head, &events).await;
            events.end(result).await;
        });
        return Ok(response);
    }
    let scored = asked.echo.is_some() && asked.logprobs;
    let generations =
        generate_all(&served, shared, &asked.prompts, &asked.sampling, scored).await?;
    let choices: Vec<Value> = generations
        .iter()
        .enumerate()
        .map(|(index, generation)| choice(&served, &asked, index, generation))
        .collect();
    let mut answer = head;
    answer["choices"] = choices.into();
    answer["usage"] = total(&asked, &generations);
    Ok(Json(answer).into_response())
}

/// Prompts count once, however many completions they have.
fn total(asked: &Asked, generations: &[Generation]) -> Value {
    let prompt = asked.prompts.iter().map(|p| p.len()).sum();
    let firsts = generations.iter().step_by(asked.sampling.n);
    let cached = firsts.map(|generation| generation.cached).sum();
    usage(prompt, cached, generations.iter().map(|g| g.tokens.len()).sum())
}

fn choice(served: &Served, asked: &Asked, index: usize, generation: &Generation) -> Value {
    let number = index / asked.sampling.n;
    let prompt = &asked.prompts[number];
    let echoed = asked.echo.as_ref().map_or("", |texts| texts[number].as_str());
    let mut choice = json!({
        "index": index,
        "text": format!("{echoed}{}", generation.text),
        "finish_reason": finish_name(generation.finish),
        "stop_reason": null,
        "logprobs": null,
    });
    if asked.logprobs {
        // Empty where they were not asked for.
        let scored = &generation.prompt_logprobs;
        let before = if scored.is_empty() { &[][..] } else { &prompt[..] };
        let names = asked.names(served);
        choice["logprobs"] =
            logprobs::completion(names, (before, scored), Scored::all(generation), 0);
    }
    if asked.sampling.return_token_ids {
        choice["prompt_token_ids"] = json!(&prompt[..]);
        choice["token_ids"] = json!(generation.tokens);
    }
    choice
}

/// All completions at once, each token as it comes.
async fn stream(
    served: &Served,
    shared: &Arc<Shared>,
    asked: Asked,
    head: &Value,
    events: &Events,
) -> Result<(), ApiError> {
    let asked = Arc::new(asked);
    let jobs = asked.prompts.iter().flat_map(|p| (0..asked.sampling.n).map(move |_| p)).enumerate();
    let calls = jobs.map(|(index, prompt)| {
        let (served, shared, prompt) = (served.clone(), Arc::clone(shared), Arc::clone(prompt));
        let (asked, head, events) = (Arc::clone(&asked), head.clone(), events.clone());
        async move {
            let work = shared.work.clone();
            work.run(move |gone| {
                let mut piece = Piece { served: &served, asked: &asked, head, index, offset: 0 };
                let mut growing = Growing::new(&asked.sampling.stop);
                let gone = gone.or_closed(&events);
                let sampling = &asked.sampling;
                let mut tell = |drawn: &DrawnToken| {
                    let text = growing.push(&served.text, drawn.token);
                    piece.send(&events, &text, Some(drawn), None);
                };
                let ask = Ask { prompt: &prompt, sampling, index, prompt_logprobs: false };
                let generation = generate(&served, &shared, ask, Some(&mut tell), &gone)?;
                let rest = growing.finish(&generation.text);
                piece.send(&events, &rest, None, Some(&generation));
                Ok(generation)
            })
            .await
        }
    });
    let generations = futures_util::future::try_join_all(calls).await?;
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
    served: &'a Served,
    asked: &'a Asked,
    head: Value,
    index: usize,
    /// Characters shown.
    offset: usize,
}

impl Piece<'_> {
    fn send(
        &mut self,
        events: &Events,
        text: &str,
        drawn: Option<&DrawnToken>,
        end: Option<&Generation>,
    ) {
        let ids = self.asked.sampling.return_token_ids || self.asked.logprobs;
        if text.is_empty() && end.is_none() && !ids {
            return;
        }
        let finish = end.map(|generation| finish_name(generation.finish));
        let mut choice = json!({
            "index": self.index, "text": text, "finish_reason": finish, "logprobs": null,
        });
        if let Some(drawn) = drawn {
            if self.asked.logprobs {
                let names = self.asked.names(self.served);
                let scored = Scored::one(drawn);
                choice["logprobs"] = logprobs::completion(names, (&[], &[]), scored, self.offset);
            }
            if self.asked.sampling.return_token_ids {
                choice["token_ids"] = json!([drawn.token]);
            }
        }
        self.offset += text.chars().count();
        self.head["choices"] = json!([choice]);
        events.send(&self.head);
    }
}
