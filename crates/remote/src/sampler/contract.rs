//! What an engine's answer must keep before it may be used.

use patchwright_core::{FinishReason, SampleRequest};

/// An engine's answer, as its dialect read it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Drawn {
    /// The prompt that the engine says it saw; `None` where it does not say.
    pub prompt: Option<Vec<u32>>,
    /// New tokens.
    pub tokens: Vec<u32>,
    /// Log-probability of each new token.
    pub logprobs: Vec<f32>,
    /// The most likely tokens at each new one, most likely first; empty where not asked for.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// Log-probability of each token of the context (0 for the first); empty where not asked for.
    pub prompt_logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The engine's own name of the weights that drew the tokens; several where they were swapped
    /// in flight. Empty where it does not say.
    pub versions: Vec<String>,
}

/// How far above 0 rounding may lift a log-probability.
const ROUNDING: f32 = 1e-3;

/// Checks an answer against its request; says what is wrong with it. `max_context` is the engine's
/// bound, where it is known.
pub(super) fn check(
    request: &SampleRequest,
    drawn: &Drawn,
    max_context: usize,
) -> Result<(), String> {
    if let Some(prompt) = &drawn.prompt
        && *prompt != request.context
    {
        return Err(other_prompt(&request.context, prompt));
    }
    let (num_tokens, max) = (drawn.tokens.len(), request.max_tokens);
    if num_tokens == 0 || num_tokens > max {
        return Err(format!("{num_tokens} new tokens where 1 to {max} were asked for"));
    }
    if drawn.logprobs.len() != num_tokens {
        return Err(format!(
            "{num_tokens} new tokens with {} log-probabilities",
            drawn.logprobs.len()
        ));
    }
    if !drawn.top_logprobs.is_empty() && drawn.top_logprobs.len() != num_tokens {
        let num_tops = drawn.top_logprobs.len();
        return Err(format!("{num_tokens} new tokens with {num_tops} lists of likely ones"));
    }
    let wanted = if request.prompt_logprobs { request.context.len() } else { 0 };
    if drawn.prompt_logprobs.len() != wanted {
        let got = drawn.prompt_logprobs.len();
        return Err(format!("{got} log-probabilities of the prompt where {wanted} were asked for"));
    }
    let tops = drawn.top_logprobs.iter().flatten().map(|(_, logprob)| logprob);
    let all = drawn.logprobs.iter().chain(&drawn.prompt_logprobs).chain(tops);
    for logprob in all {
        // A token of probability 0 cannot have been drawn, nor a probability be above 1.
        if !(logprob.is_finite() && *logprob <= ROUNDING) {
            return Err(format!("a log-probability of {logprob}"));
        }
    }
    check_finish(request, drawn, max_context)
}

fn check_finish(request: &SampleRequest, drawn: &Drawn, max_context: usize) -> Result<(), String> {
    let is_stop = |token: &u32| request.stop_tokens.contains(token);
    let (last, before) = drawn.tokens.split_last().ok_or("no tokens")?;
    if let Some(token) = before.iter().find(|token| is_stop(token)) {
        return Err(format!("it went on after stop token {token}"));
    }
    match drawn.finish_reason {
        FinishReason::Stop if !is_stop(last) && request.stop_strings.is_empty() => Err(format!(
            "it stopped at token {last}, which is none of the stop tokens {:?}",
            request.stop_tokens
        )),
        FinishReason::Length if is_stop(last) => {
            Err(format!("its last token {last} is a stop token, and it says it ended by length"))
        }
        FinishReason::Length
            if drawn.tokens.len() < request.max_tokens
                && request.context.len() + drawn.tokens.len() < max_context =>
        {
            let (num, max) = (drawn.tokens.len(), request.max_tokens);
            Err(format!("it ended by length after {num} tokens of {max}"))
        }
        _ => Ok(()),
    }
}

fn other_prompt(asked: &[u32], seen: &[u32]) -> String {
    let at = asked.iter().zip(seen).take_while(|(a, b)| a == b).count();
    format!(
        "it saw another prompt than was asked: {} tokens for {}, the first other one at {at} \
         ({:?} for {:?})",
        seen.len(),
        asked.len(),
        seen.get(at),
        asked.get(at)
    )
}

#[cfg(test)]
mod tests {
    use patchwright_core::{FinishReason, SampleRequest};

    use super::{Drawn, check};

    fn request() -> SampleRequest {
        SampleRequest {
            context: vec![1, 2, 3],
            max_tokens: 4,
            stop_tokens: vec![9],
            ..SampleRequest::default()
        }
    }

    fn drawn(tokens: &[u32], finish_reason: FinishReason) -> Drawn {
        let logprobs = vec![-0.5; tokens.len()];
        Drawn { tokens: tokens.to_vec(), logprobs, finish_reason, ..Drawn::default() }
    }

    #[test]
    fn what_keeps_the_contract_passes() {
        let good = [
            drawn(&[5, 9], FinishReason::Stop),
            drawn(&[5, 6, 7, 8], FinishReason::Length),
            Drawn { prompt: Some(vec![1, 2, 3]), ..drawn(&[9], FinishReason::Stop) },
        ];
        for drawn in good {
            assert_eq!(check(&request(), &drawn, 100), Ok(()), "{drawn:?}");
        }
        let full = drawn(&[5, 6], FinishReason::Length);
        assert_eq!(check(&request(), &full, 5), Ok(()), "the context is full");
        let strings = SampleRequest { stop_strings: vec![b"x".to_vec()], ..request() };
        assert_eq!(check(&strings, &drawn(&[5], FinishReason::Stop), 100), Ok(()));
    }

    #[test]
    fn every_breach_is_named() {
        let stop = || drawn(&[5, 9], FinishReason::Stop);
        let cases = [
            (Drawn { prompt: Some(vec![1, 2, 4]), ..stop() }, "first other one at 2"),
            (Drawn { prompt: Some(vec![1, 2]), ..stop() }, "2 tokens for 3"),
            (drawn(&[], FinishReason::Stop), "0 new tokens"),
            (drawn(&[5; 5], FinishReason::Length), "5 new tokens where 1 to 4"),
            (Drawn { logprobs: vec![-1.0], ..stop() }, "1 log-probabilities"),
            (Drawn { logprobs: vec![-1.0, f32::NAN], ..stop() }, "NaN"),
            (Drawn { logprobs: vec![-1.0, f32::NEG_INFINITY], ..stop() }, "inf"),
            (Drawn { logprobs: vec![-1.0, 0.5], ..stop() }, "0.5"),
            (Drawn { top_logprobs: vec![vec![]], ..stop() }, "lists of likely ones"),
            (Drawn { prompt_logprobs: vec![0.0], ..stop() }, "where 0 were asked"),
            (drawn(&[9, 5, 9], FinishReason::Stop), "went on after"),
            (drawn(&[5, 8], FinishReason::Stop), "stopped at token 8"),
            (drawn(&[5, 6, 7, 9], FinishReason::Length), "says it ended by length"),
            (drawn(&[5, 6], FinishReason::Length), "after 2 tokens of 4"),
        ];
        for (drawn, text) in cases {
            let error = check(&request(), &drawn, 100).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
