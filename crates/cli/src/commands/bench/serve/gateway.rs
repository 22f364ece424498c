//! What the gateway adds to a chat completion: an engine's server that only waits, asked directly,
//! and through a gateway that asks the same server for tokens, as it would ask vLLM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchwright_core::{Completion, SampleRequest, Sampler, SamplerError};
use patchwright_remote::http::{BearerToken, Call, HttpClient, HttpOptions};
use patchwright_remote::sampler::{Dialect, RemoteSampler, SamplerOptions};
use patchwright_serve::gateway::{Episode, EpisodeSpec, Gateway, MODEL};
use patchwright_serve::{ModelText, Server, openai};
use patchwright_train::world::find_checkpoint;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::{Quantiles, quantiles};
use super::host;
use crate::error::CliError;

/// Calls of an episode, one after the other, each with all that was said before.
const NUM_TURNS: usize = 20;

/// Tokens of a conversation at most.
const MAX_CONTEXT: usize = 1 << 16;

const ISSUE: &str = "parse_header drops the last field when the line has no end. ";
const REPLY: &str = "The function that parses the header seems to be in this file. I look for its \
                     callers first.\n```command\ngrep -rn parse_header src | head -20\n```\n";
const OBSERVATION: &str = "src/header.py:17:def parse_header(line, strict=False):\n\
                           src/reader.py:88:    key, value = parse_header(line)\n\
                           src/reader.py:131:        fields.append(parse_header(line, strict=True))\n";

/// Latencies of the same requests, both ways.
#[derive(Debug, Serialize)]
pub struct GatewayFigures {
    /// Of the engine's server.
    pub direct_ms: Quantiles,
    /// Of the gateway before it.
    pub through_ms: Quantiles,
    /// Difference of the medians.
    pub added_p50_ms: f64,
    /// Requests each way.
    pub num_requests: usize,
    /// Tokens of the longest prompt.
    pub num_prompt_tokens_max: usize,
}

/// Says the same every time, after a while.
struct WaitingEngine {
    reply: Vec<u32>,
    wait: Duration,
}

impl Sampler for WaitingEngine {
    fn sample(&self, _: &SampleRequest) -> Result<Completion, SamplerError> {
        std::thread::sleep(self.wait);
        let logprobs = vec![-0.5; self.reply.len()];
        Ok(Completion { tokens: self.reply.clone(), logprobs, ..Completion::default() })
    }

    fn end_session(&self, _: u64) {}

    fn max_context(&self) -> usize {
        MAX_CONTEXT
    }
}

/// The two servers, and what an episode needs.
struct Rig {
    text: Arc<ModelText>,
    engine: Server,
    sampler: Arc<dyn Sampler>,
    gateway: Gateway,
    front: Server,
}

impl Rig {
    fn new(wait: Duration) -> Result<Self, CliError> {
        let dir = find_checkpoint("base").map_err(CliError::failed)?;
        let text = Arc::new(ModelText::from_dir(&dir).map_err(CliError::failed)?);
        let mut reply = text.tokenizer().encode_text(REPLY);
        reply.extend(text.stop_tokens().first());
        let waiting: Arc<dyn Sampler> = Arc::new(WaitingEngine { reply, wait });
        let served = openai::Served::new(waiting, Arc::clone(&text));
        let models = BTreeMap::from([(MODEL.to_owned(), served)]);
        let engine = host(|work, metrics| Ok(openai::router(models, work, metrics)))?;
        let options = SamplerOptions::new(vec![format!("http://{}", engine.address())]);
        let sampler = RemoteSampler::connect(Dialect::VllmCompletions, options);
        let sampler: Arc<dyn Sampler> = Arc::new(sampler.map_err(CliError::failed)?);
        let mut made = None;
        let front = host(|work, metrics| {
            let gateway = made.insert(Gateway::new(work, metrics));
            Ok(gateway.router())
        })?;
        let gateway = made.ok_or_else(|| CliError::failed("the gateway was not made"))?;
        Ok(Self { text, engine, sampler, gateway, front })
    }

    fn begin(&self, session: u64) -> Result<Episode, CliError> {
        let spec = EpisodeSpec {
            sampler: Arc::clone(&self.sampler),
            text: Arc::clone(&self.text),
            session,
            seed: session,
            temperature: 1.0,
            policy_version: None,
            max_turns: NUM_TURNS,
            max_turn_tokens: MAX_CONTEXT,
            context_tokens: MAX_CONTEXT,
            sandbox: None,
            workdir: String::new(),
            command_timeout: Duration::from_secs(1),
            task: BTreeMap::new(),
        };
        self.gateway.begin(spec).map_err(CliError::failed)
    }
}

fn client(server: &Server, key: Option<&str>) -> Result<HttpClient, CliError> {
    HttpClient::new(HttpOptions {
        token: key.map(BearerToken::new),
        ..HttpOptions::new(format!("http://{}", server.address()))
    })
    .map_err(CliError::failed)
}

/// Asks, with the time that it takes.
fn ask(client: &HttpClient, body: &Value) -> Result<(Duration, Value), CliError> {
    let start = Instant::now();
    let answer = client.post_json("/v1/chat/completions", body, &Call::default());
    let elapsed = start.elapsed();
    answer.map(|answer| (elapsed, answer)).map_err(CliError::failed)
}

/// Asks both, which take turns in being the first.
pub fn measure(num_requests: usize, wait_ms: u64) -> Result<GatewayFigures, CliError> {
    let rig = Rig::new(Duration::from_millis(wait_ms))?;
    let (mut direct_times, mut through_times) = (Vec::new(), Vec::new());
    let mut num_prompt_tokens_max = 0;
    let mut session = 0;
    while direct_times.len() < num_requests {
        session += 1;
        let episode = rig.begin(session)?;
        let direct = client(&rig.engine, None)?;
        let through = client(&rig.front, Some(episode.key()))?;
        let mut messages = vec![json!({"role": "user", "content": ISSUE.repeat(8)})];
        for turn in 0..NUM_TURNS {
            let body = json!({"model": MODEL, "messages": messages, "temperature": 1.0});
            let ((direct_time, expected), (through_time, answer)) = if turn % 2 == 0 {
                (ask(&direct, &body)?, ask(&through, &body)?)
            } else {
                let through = ask(&through, &body)?;
                (ask(&direct, &body)?, through)
            };
            let said = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
            if said(&answer) != said(&expected) {
                return Err(CliError::failed("the gateway answers other than its engine"));
            }
            let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
            num_prompt_tokens_max = num_prompt_tokens_max.max(tokens as usize);
            messages.push(json!({"role": "assistant", "content": said(&answer)}));
            messages.push(json!({"role": "user", "content": OBSERVATION}));
            // The first of each makes its connection.
            if turn > 0 {
                direct_times.push(direct_time);
                through_times.push(through_time);
            }
        }
        let stitched = episode.finish().recording.stitch(&rig.text);
        if (stitched.branches.len(), stitched.num_merged) != (1, NUM_TURNS - 1) {
            return Err(CliError::failed("the gateway's record of an episode is not one piece"));
        }
    }
    let num_requests = direct_times.len();
    let (direct_ms, through_ms) = (quantiles(direct_times), quantiles(through_times));
    Ok(GatewayFigures {
        added_p50_ms: super::super::round(through_ms.p50 - direct_ms.p50),
        direct_ms,
        through_ms,
        num_requests,
        num_prompt_tokens_max,
    })
}
