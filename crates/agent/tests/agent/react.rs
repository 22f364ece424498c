//! The loop from prompt to patch, driven by a script.

use crate::common::{WORKDIR, renderer, sandbox, scripted, task};
use patchwright_agent::{AgentConfig, AgentRun, Profile, run_agent};
use patchwright_core::{
    Completion, ExecOutput, ExecRequest, FailureClass, FileChange, FinishReason, PolicyVersion,
    RolloutStatus, SampleRequest, Sampler, SamplerError, Sandbox, SandboxError, TurnOutcome,
};
use std::sync::atomic::{AtomicUsize, Ordering};

const FIX: &str = "edit 2:2 <<'EOF'\n    result = 0\nEOF";

fn config() -> AgentConfig {
    AgentConfig { command_timeout_seconds: 20, ..AgentConfig::default() }
}

fn run(profile: Profile, config: &AgentConfig, replies: &[&str]) -> AgentRun {
    let (task, repo) = task();
    let renderer = renderer(profile);
    let sampler = scripted(&renderer, replies);
    let mut sandbox = sandbox(&repo);
    run_agent(&task, sandbox.as_mut(), &sampler, &renderer, config, 1, 7)
}

fn outcomes(run: &AgentRun) -> Vec<TurnOutcome> {
    run.trajectory.turns.iter().map(|turn| turn.outcome).collect()
}

#[test]
fn a_compact_rollout_from_prompt_to_patch() {
    let run = run(Profile::compact(), &config(), &["open sums.py", FIX, "submit"]);
    assert_eq!((run.status, run.failure), (RolloutStatus::Submitted, None));
    assert_eq!(
        run.patch,
        "diff --git a/sums.py b/sums.py\nindex abbbee3..844d2f7 100644\n--- a/sums.py\n+++ b/sums.py\n@@ -1,5 +1,5 @@\n \
         def total(values):\n-    result = 1\n+    result = 0\n     for value in values:\n         \
         result += value\n     return result\n"
    );
    let trajectory = &run.trajectory;
    assert_eq!(
        outcomes(&run),
        [TurnOutcome::Executed, TurnOutcome::Executed, TurnOutcome::Submitted]
    );
    assert_eq!(trajectory.turns[1].observation, "2:    result = 0");
    let renderer = renderer(Profile::compact());
    let whole = renderer.tokenizer().decode(&trajectory.tokens);
    assert_eq!(
        whole,
        format!(
            "<|user|>sums.total([1, 2]) returned 4, expected 3<|assistant|>open sums.py<|end|>\
             <|user|>{}<|assistant|>{FIX}<|end|><|user|>2:    result = 0<|assistant|>submit<|end|>",
            trajectory.turns[0].observation
        )
    );
    assert_eq!(trajectory.sampler_logprobs.len(), trajectory.tokens.len());
    let sample = trajectory.to_sample(1.0, |_| true);
    assert_eq!(sample.num_loss_tokens(), trajectory.num_sampled_tokens());
    for turn in &trajectory.turns {
        let sampled = &trajectory.tokens[turn.sampled.start..turn.sampled.end];
        assert_eq!(renderer.turn_text(sampled), turn.text);
        assert_eq!(sampled.last(), Some(&renderer.stop_token()));
    }
}

#[test]
fn a_full_rollout_reasons_around_one_fenced_command() {
    use TurnOutcome::{Executed, FormatError, Submitted};

    let replies = [
        "I look first.\n```command\nopen sums.py\n```",
        "No command here.",
        "```command\nls\n```\n```command\npwd\n```",
        "```command\nedit 5:1\n```",
        "```command\ncat README.md\n```",
        "It starts at 1.\n```command\nreplace 'result = 1' 'result = 0'\n```",
        "```command\nsubmit\n```",
    ];
    let run = run(Profile::full(), &config(), &replies);
    assert_eq!(run.status, RolloutStatus::Submitted);
    assert!(run.patch.contains("+    result = 0\n"), "{}", run.patch);
    let expected = [Executed, FormatError, FormatError, FormatError, Executed, Executed, Submitted];
    assert_eq!(outcomes(&run), expected);
    let seen: Vec<&str> =
        run.trajectory.turns.iter().map(|turn| turn.observation.as_str()).collect();
    let suffix = "\n(Current directory: /testbed, current file: sums.py) bash-$";
    assert!(seen[0].starts_with("[File: sums.py (9 lines total)]\n1:def total(values):\n"));
    assert!(seen[0].ends_with(suffix));
    assert!(seen[1].starts_with("Your message holds no command"));
    assert!(seen[2].starts_with("Your message holds several commands"));
    assert_eq!(
        seen[3],
        format!("The command was not run: the range 5:1 ends before it starts{suffix}")
    );
    assert_eq!(seen[4], format!("Sums.{suffix}"));
    assert_eq!(seen[6], "");
    assert_eq!(run.trajectory.num_format_errors(), 3);
}

#[test]
fn the_same_seed_gives_the_same_rollout() {
    let once = || {
        run(Profile::full(), &config(), &["```command\nls; ls /\n```", "```command\nsubmit\n```"])
    };
    assert_eq!(once(), once());
}

#[test]
fn what_stands_in_the_sandbox_is_the_patch_at_every_limit() {
    let few_turns = AgentConfig { max_turns: 2, ..config() };
    let ended = run(Profile::compact(), &few_turns, &["open sums.py", FIX, "submit"]);
    assert_eq!(
        (ended.status, ended.failure),
        (RolloutStatus::TurnLimit, Some(FailureClass::Turns))
    );
    assert_eq!(ended.trajectory.turns.len(), 2);
    assert!(ended.patch.contains("+    result = 0\n"));

    let strict = AgentConfig { max_consecutive_format_errors: 2, ..config() };
    let replies = ["goto x", "open sums.py", FIX, "goto x", "open", "submit"];
    let ended = run(Profile::compact(), &strict, &replies);
    assert_eq!(
        (ended.status, ended.failure),
        (RolloutStatus::FormatLimit, Some(FailureClass::Format))
    );
    assert_eq!(ended.trajectory.turns.len(), 5);
    assert!(ended.patch.contains("+    result = 0\n"));
}

#[test]
fn the_context_limit_ends_a_rollout_and_is_never_passed() {
    let whole = run(Profile::compact(), &config(), &["open sums.py", FIX, "submit"]);
    let num_tokens = whole.trajectory.tokens.len();
    // Wherever the context ends: at an observation, within a turn, in the prompt.
    for max_context_tokens in (0..num_tokens).step_by(7) {
        let tight = AgentConfig { max_context_tokens, ..config() };
        let ended = run(Profile::compact(), &tight, &["open sums.py", FIX, "submit"]);
        assert_eq!(ended.status, RolloutStatus::ContextLimit, "{max_context_tokens}");
        assert_eq!(ended.failure, Some(FailureClass::Context));
        let trajectory = &ended.trajectory;
        let prompt = trajectory.num_prompt_tokens;
        assert!(trajectory.tokens.len() <= max_context_tokens.max(prompt));
        assert!(whole.trajectory.tokens.starts_with(&trajectory.tokens));
        assert_eq!(trajectory.turns.is_empty(), max_context_tokens <= prompt);
    }
    let exact = AgentConfig { max_context_tokens: num_tokens, ..config() };
    assert_eq!(
        run(Profile::compact(), &exact, &["open sums.py", FIX, "submit"]).status,
        RolloutStatus::Submitted
    );
}

#[test]
fn a_turn_that_is_too_long_is_cut_off_and_not_run() {
    let short = AgentConfig { max_turn_tokens: 20, ..config() };
    let long = "touch some_file_with_a_long_name.txt";
    let run = run(Profile::full(), &short, &[long, long, long, long, long]);
    assert_eq!(run.status, RolloutStatus::FormatLimit);
    assert_eq!(outcomes(&run), [TurnOutcome::Truncated; 5]);
    assert!(run.trajectory.turns[0].observation.contains("cut off after 20 tokens"));
    assert_eq!(run.patch, "");
    let renderer = renderer(Profile::full());
    // The stop token that the model did not draw is there, but not as its own.
    let end = run.trajectory.turns[0].sampled.end;
    assert_eq!(run.trajectory.tokens[end], renderer.stop_token());
    assert_eq!(run.trajectory.to_sample(1.0, |_| true).loss_mask[end].to_bits(), 0);
}

#[test]
fn training_prompts_leave_the_demonstration_out() {
    let shown = AgentConfig { demonstration: true, ..config() };
    let replies = ["```command\nls\n```", "```command\nsubmit\n```"];
    let with = run(Profile::full(), &shown, &replies);
    let renderer = renderer(Profile::full());
    let (task, _) = task();
    let without = renderer.without_demonstration(&with.trajectory, &task, WORKDIR).unwrap();
    assert_eq!(without, run(Profile::full(), &config(), &replies).trajectory);
    assert!(with.trajectory.num_prompt_tokens > without.num_prompt_tokens);
}

/// Answers with what a test gives it, and counts the ends of sessions.
struct Broken {
    answer: fn() -> Result<Completion, SamplerError>,
    num_ended: AtomicUsize,
}

impl Sampler for Broken {
    fn sample(&self, _: &SampleRequest) -> Result<Completion, SamplerError> {
        (self.answer)()
    }

    fn end_session(&self, session: u64) {
        assert_eq!(session, 1);
        self.num_ended.fetch_add(1, Ordering::Relaxed);
    }

    fn max_context(&self) -> usize {
        1000
    }
}

fn completion(tokens: &[u32], finish_reason: FinishReason) -> Completion {
    Completion {
        tokens: tokens.to_vec(),
        logprobs: vec![0.0; tokens.len()],
        finish_reason,
        policy_version: PolicyVersion(3),
        ..Completion::default()
    }
}

#[test]
fn an_engine_that_fails_or_breaks_its_contract_is_an_engine_failure() {
    type Answer = fn() -> Result<Completion, SamplerError>;
    let answers: [(Answer, &str); 5] = [
        (|| Err(SamplerError::Engine("out of memory".to_owned())), "out of memory"),
        (|| Ok(completion(&[], FinishReason::Length)), "0 tokens"),
        (|| Ok(completion(&vec![9; 5000], FinishReason::Length)), "5000 tokens"),
        (|| Ok(completion(&[9], FinishReason::Stop)), "finish reason"),
        (
            || Ok(Completion { logprobs: vec![], ..completion(&[9], FinishReason::Length) }),
            "0 logprobs",
        ),
    ];
    for (answer, said) in answers {
        let (task, repo) = task();
        let renderer = renderer(Profile::compact());
        let sampler = Broken { answer, num_ended: AtomicUsize::new(0) };
        let mut sandbox = sandbox(&repo);
        let run = run_agent(&task, sandbox.as_mut(), &sampler, &renderer, &config(), 1, 0);
        assert_eq!((run.status, run.failure), (RolloutStatus::Failed, Some(FailureClass::Engine)));
        assert!(run.failure_detail.as_deref().unwrap_or_default().contains(said));
        assert_eq!(sampler.num_ended.load(Ordering::Relaxed), 1);
    }
}

/// A sandbox that is dead.
struct Dead;

fn dead<T>() -> Result<T, SandboxError> {
    Err(SandboxError::Died("killed".to_owned()))
}

impl Sandbox for Dead {
    fn exec(&mut self, _: &ExecRequest) -> Result<ExecOutput, SandboxError> {
        dead()
    }
    fn read(&mut self, _: &str, _: usize) -> Result<Vec<u8>, SandboxError> {
        dead()
    }
    fn write(&mut self, _: &str, _: &[u8]) -> Result<(), SandboxError> {
        dead()
    }
    fn diff(&mut self) -> Result<Vec<FileChange>, SandboxError> {
        dead()
    }
    fn fork(&mut self) -> Result<Box<dyn Sandbox>, SandboxError> {
        dead()
    }
    fn destroy(self: Box<Self>) -> Result<(), SandboxError> {
        dead()
    }
}

#[test]
fn a_sandbox_that_dies_is_a_sandbox_failure_whatever_was_tried() {
    let (task, _) = task();
    let renderer = renderer(Profile::compact());
    for command in ["ls", "open a", "create a", "search_dir x", "edit --file a 1:1", "submit"] {
        let sampler = scripted(&renderer, &[command]);
        let run = run_agent(&task, &mut Dead, &sampler, &renderer, &config(), 1, 0);
        assert_eq!((run.status, run.failure), (RolloutStatus::Failed, Some(FailureClass::Sandbox)));
        assert!(run.failure_detail.as_deref().unwrap_or_default().contains("killed"));
        assert_eq!(run.patch, "");
    }
}
