//! From calls to trajectories.
//!
//! A call whose prompt begins with all tokens of an earlier call, prompt and completion, goes on
//! with it: what is new of the prompt is an observation, which no loss is on. A call that does not
//! is a branch of its own: an agent that rewrites its history, asks several times, or has helpers.
//!
//! What the agent made of a reply is its own matter, but for one case that its calls tell: it left
//! the reply out of its history and asked again with a note. That is a formatting error.

use patchwright_core::{Message, Role, TokenSpan, Trajectory, Turn, TurnOutcome};

use super::record::Recording;
use crate::text::ModelText;

/// Calls that go on with each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// As one append-only token sequence.
    pub trajectory: Trajectory,
    /// Numbers of its calls in the recording.
    pub calls: Vec<usize>,
}

/// The trajectories of an episode.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stitched {
    /// In the order of their first calls.
    pub branches: Vec<Branch>,
    /// Calls that went on with an earlier one.
    pub num_merged: usize,
}

impl Stitched {
    /// The branch with the most sampled tokens, the first of equals: what the agent mainly did.
    pub fn main(&self) -> Option<&Branch> {
        self.main_index().map(|index| &self.branches[index])
    }

    /// Notes that the agent submitted after its last call.
    pub fn submitted(&mut self) {
        let last = self.branches.iter_mut().max_by_key(|branch| branch.calls.last().copied());
        if let Some(turn) = last.and_then(|branch| branch.trajectory.turns.last_mut())
            && turn.outcome == TurnOutcome::Executed
        {
            turn.outcome = TurnOutcome::Submitted;
        }
    }

    fn main_index(&self) -> Option<usize> {
        let tokens = |index: &usize| self.branches[*index].trajectory.num_sampled_tokens();
        (0..self.branches.len()).rev().max_by_key(tokens)
    }

    /// The trajectory of the main branch, and those of the others in their order; `None` without a
    /// call. Every call's tokens are sampled in one of them: a branch that begins with what another
    /// sampled has that as its prompt.
    pub fn into_main(mut self) -> Option<(Trajectory, Vec<Trajectory>)> {
        let main = self.branches.remove(self.main_index()?).trajectory;
        Some((main, self.branches.into_iter().map(|branch| branch.trajectory).collect()))
    }
}

impl Recording {
    /// Makes trajectories of the calls. `text` says what the tokens of turns and observations are.
    pub fn stitch(&self, text: &ModelText) -> Stitched {
        let mut stitched = Stitched::default();
        for (number, call) in self.calls.iter().enumerate() {
            let begins = |branch: &&mut Branch| call.prompt.starts_with(&branch.trajectory.tokens);
            let longest = stitched
                .branches
                .iter_mut()
                .filter(begins)
                .max_by_key(|branch| branch.trajectory.tokens.len());
            if let Some(branch) = longest {
                stitched.num_merged += 1;
                self.extend(branch, number, text);
                continue;
            }
            let mut branch = Branch { trajectory: Trajectory::default(), calls: Vec::new() };
            branch.trajectory.num_prompt_tokens = call.prompt.len();
            branch.trajectory.prompt = text.tokenizer().decode(&call.prompt);
            branch.trajectory.messages.clone_from(&call.messages);
            self.extend(&mut branch, number, text);
            stitched.branches.push(branch);
        }
        stitched
    }

    /// Appends a call's new prompt tokens and its completion.
    fn extend(&self, branch: &mut Branch, number: usize, text: &ModelText) {
        let call = &self.calls[number];
        let before = branch.calls.last().map(|number| &self.calls[*number]);
        let trajectory = &mut branch.trajectory;
        let observed = &call.prompt[trajectory.tokens.len()..];
        if let Some(last) = trajectory.turns.last_mut() {
            let answer = before.and_then(|before| answer(&before.messages, &call.messages));
            last.observation = answer.unwrap_or_else(|| text.visible(observed));
        }
        trajectory.tokens.extend_from_slice(observed);
        trajectory.sampler_logprobs.resize(trajectory.tokens.len(), 0.0);
        let start = trajectory.tokens.len();
        trajectory.tokens.extend_from_slice(&call.sampled);
        trajectory.sampler_logprobs.extend_from_slice(&call.logprobs);
        let said = text.visible(&call.sampled);
        let is_error = self.is_format_error(number, &said);
        trajectory.turns.push(Turn {
            text: said,
            command: call.commands.join("\n"),
            observation: String::new(),
            outcome: if is_error { TurnOutcome::FormatError } else { TurnOutcome::Executed },
            sampled: TokenSpan { start, end: trajectory.tokens.len() },
            finish_reason: call.finish_reason,
        });
        branch.calls.push(number);
    }

    /// Whether the agent ran nothing after a call, left its reply out and asked again with a note
    /// in its place, which does not quote it.
    fn is_format_error(&self, number: usize, said: &str) -> bool {
        let call = &self.calls[number];
        let Some(next) = self.calls.get(number + 1) else { return false };
        let asked = &call.messages;
        !asked.is_empty()
            && call.commands.is_empty()
            && next.messages.starts_with(asked)
            && next.messages.get(asked.len()).is_some_and(|note| {
                let quotes = !said.trim().is_empty() && note.content.contains(said.trim());
                note.role != Role::Assistant && !quotes
            })
    }
}

/// What the agent was answered between two calls, the second of which goes on with the first;
/// `None` where their messages do not tell.
fn answer(before: &[Message], now: &[Message]) -> Option<String> {
    let rest = now.strip_prefix(before).filter(|_| !before.is_empty())?;
    let (said, answers) = rest.split_first()?;
    let is_plain = |message: &Message| message.role != Role::Assistant;
    if said.role != Role::Assistant || !answers.iter().all(is_plain) {
        return None;
    }
    let contents: Vec<&str> = answers.iter().map(|message| &*message.content).collect();
    Some(contents.join("\n"))
}

#[cfg(test)]
mod tests {
    use patchwright_agent::fixture::tokenizer_json;
    use patchwright_core::{
        FinishReason, Message, PolicyVersion, Role, Rollout, RolloutStatus, Trajectory, TurnOutcome,
    };
    use proptest::prelude::*;

    use super::super::record::{Call, Recording};
    use crate::text::ModelText;

    fn call(prompt: &[u32], sampled: &[u32]) -> Call {
        Call {
            prompt: prompt.to_vec(),
            messages: Vec::new(),
            sampled: sampled.to_vec(),
            logprobs: sampled.iter().map(|token| -(*token as f32)).collect(),
            finish_reason: FinishReason::Stop,
            policy_version: PolicyVersion(0),
            commands: Vec::new(),
        }
    }

    fn text() -> ModelText {
        ModelText::from_json(&tokenizer_json(&[]), None).unwrap()
    }

    fn rollout() -> Rollout {
        Rollout {
            instance_id: "a".to_owned(),
            sibling: 0,
            attempt: 0,
            policy_version: PolicyVersion(0),
            status: RolloutStatus::Submitted,
            failure: None,
            failure_detail: None,
            solved: Some(true),
            patch: String::new(),
            trajectory: Trajectory::default(),
            branches: Vec::new(),
        }
    }

    #[test]
    fn calls_that_go_on_are_merged_and_others_are_branches() {
        let calls = vec![
            call(&[1, 10], &[20, 3]),
            call(&[1, 10, 20, 3, 1, 30], &[21, 3]),
            // The same prompt again, and a history that was rewritten.
            call(&[1, 10], &[22]),
            call(&[1, 10, 9, 3, 1, 30], &[23]),
        ];
        let stitched = Recording { calls, ..Recording::default() }.stitch(&text());
        assert_eq!(stitched.num_merged, 1);
        let numbers: Vec<&[usize]> = stitched.branches.iter().map(|b| &b.calls[..]).collect();
        assert_eq!(numbers, [&[0, 1][..], &[2], &[3]]);
        let main = &stitched.main().unwrap().trajectory;
        assert_eq!(main.tokens, [1, 10, 20, 3, 1, 30, 21, 3]);
        assert_eq!(main.sampler_logprobs, [0.0, 0.0, -20.0, -3.0, 0.0, 0.0, -21.0, -3.0]);
        let sample = main.to_sample(2.0, |_| true);
        assert_eq!(sample.loss_mask, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(main.turns[1].sampled.start, 6);
    }

    fn conversation(said: &[(Role, &str)]) -> Vec<Message> {
        let message = |(role, content): &(Role, &str)| Message {
            role: *role,
            content: (*content).to_owned(),
        };
        said.iter().map(message).collect()
    }

    #[test]
    fn conversations_are_known_by_their_messages() {
        use Role::{Assistant, Tool, User};
        use TurnOutcome::{Executed, FormatError, Submitted};

        let asked = [(User, "fix it")];
        let noted = [(User, "fix it"), (User, "write a command")];
        let answered = [&noted[..], &[(Assistant, "ls"), (Tool, "a.py"), (User, "hurry")]].concat();
        let mut calls = vec![
            call(&[1, 10], &[20, 3]),
            call(&[1, 10, 11], &[21, 3]),
            call(&[1, 10, 11, 21, 3, 12], &[22]),
            // The same again, which says nothing about what was said before.
            call(&[1, 10, 11, 21, 3, 12], &[23]),
        ];
        let said = [&asked[..], &noted, &answered, &answered];
        for (call, said) in calls.iter_mut().zip(said) {
            call.messages = conversation(said);
        }
        calls[1].commands = vec!["ls".to_owned(), "pwd".to_owned()];
        let recording = Recording { calls, ..Recording::default() };
        let mut stitched = recording.stitch(&text());
        stitched.submitted();
        let outcomes: Vec<Vec<TurnOutcome>> = stitched
            .branches
            .iter()
            .map(|branch| branch.trajectory.turns.iter().map(|turn| turn.outcome).collect())
            .collect();
        assert_eq!(outcomes, [&[FormatError][..], &[Executed, Executed], &[Submitted]]);
        let main = &stitched.branches[1].trajectory;
        assert_eq!(main.messages, conversation(&noted));
        assert_eq!(
            (&*main.turns[0].command, &*main.turns[0].observation),
            ("ls\npwd", "a.py\nhurry")
        );

        // A note that quotes the reply is a question about it.
        let mut quoting = recording;
        let first = text().visible(&quoting.calls[0].sampled);
        quoting.calls[1].messages[1].content = format!("is {first:?} right?").replace('"', "");
        let main = &quoting.stitch(&text()).branches[0].trajectory;
        assert_eq!(
            main.turns[0].outcome,
            if first.trim().is_empty() { FormatError } else { Executed }
        );
    }

    /// A conversation that forks: each call asks after a prefix of what was said before.
    fn forks(shapes: &[(usize, usize, usize)]) -> Vec<Call> {
        let mut said: Vec<Vec<u32>> = vec![vec![1, 2]];
        let mut calls = Vec::new();
        for (number, (from, cut, len)) in shapes.iter().enumerate() {
            let known = &said[from % said.len()];
            let mut prompt = known[..known.len() - cut % known.len()].to_vec();
            prompt.extend((0..cut % 3).map(|n| 3 + n as u32));
            // Each sampled token is one of a kind, so that it can be found again.
            let first = 100 + 10 * number as u32;
            let sampled: Vec<u32> = (first..first + *len as u32).collect();
            said.push([&prompt[..], &sampled].concat());
            calls.push(call(&prompt, &sampled));
        }
        calls
    }

    proptest! {
        /// No token is lost or doubled, whatever the calls.
        #[test]
        fn every_sampled_token_is_in_one_branch(
            shapes in prop::collection::vec((prop::collection::vec(0u32..3, 1..5), 1usize..3), 1..8)
        ) {
            let calls: Vec<Call> =
                shapes.iter().map(|(prompt, n)| call(prompt, &vec![1; *n])).collect();
            let total: usize = calls.iter().map(|call| call.sampled.len()).sum();
            let stitched = Recording { calls, ..Recording::default() }.stitch(&text());
            let kept = stitched.branches.iter().map(|b| b.trajectory.num_sampled_tokens());
            prop_assert_eq!(kept.sum::<usize>(), total);
            for branch in &stitched.branches {
                let t = &branch.trajectory;
                prop_assert_eq!(t.tokens.len(), t.sampler_logprobs.len());
                prop_assert_eq!(t.turns.last().unwrap().sampled.end, t.tokens.len());
            }
        }

        /// Whatever an agent does with its history, all that was sampled is trained on, each token
        /// once, with its own log-probability, after the very tokens that it was sampled after.
        #[test]
        fn every_sampled_token_is_trained_on_once(
            shapes in prop::collection::vec((0usize..9, 0usize..9, 1usize..4), 1..9)
        ) {
            let calls = forks(&shapes);
            let recording = Recording { calls: calls.clone(), ..Recording::default() };
            let (trajectory, branches) = recording.stitch(&text()).into_main().unwrap();
            let rollout = Rollout { trajectory, branches, ..rollout() };
            let mut trained = Vec::new();
            for sample in rollout.to_samples(0.5, |_| true) {
                for (t, token) in sample.tokens.iter().enumerate() {
                    let is_trained = sample.loss_mask[t] > 0.0;
                    prop_assert_eq!(sample.advantages[t].to_bits(), (if is_trained { 0.5f32 } else { 0.0 }).to_bits());
                    if is_trained {
                        trained.push((sample.tokens[..t].to_vec(), *token));
                        prop_assert_eq!(sample.sampler_logprobs[t].to_bits(), (-(*token as f32)).to_bits());
                    }
                }
            }
            let mut sampled: Vec<(Vec<u32>, u32)> = calls
                .iter()
                .flat_map(|call| call.sampled.iter().enumerate().map(|(t, token)| {
                    ([&call.prompt[..], &call.sampled[..t]].concat(), *token)
                }))
                .collect();
            trained.sort();
            sampled.sort();
            prop_assert_eq!(trained, sampled);
        }
    }
}
