//! The whole pipeline with nothing faked: the embedded engine, native sandboxes, Python tests. The
//! policy is tiny and knows two commands, of which one solves the task; it has to find out which.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchwright_agent::{
    AgentConfig, Profile, Renderer, ScriptedSampler, Tokenizer, fixture, run_agent, sandbox_spec,
};
use patchwright_algo::supervised::CrossEntropy;
use patchwright_core::patch::render;
use patchwright_core::{
    AdamParams, FailureClass, FileChange, InstallConfig, RepoSource, Rollout, RolloutStatus,
    SandboxProvider, TaskInstance, Trainer, TrainingSample,
};
use patchwright_engine::{Engine, EngineOptions, ModelConfig, ModelType};
use patchwright_train::TrainError;
use patchwright_train::environment::{RolloutSpec, Task};
use patchwright_train::events::{CancelToken, Observer, RolloutFinished, RunEvent, Silent};
use patchwright_train::journal::read_journal;
use patchwright_train::pipeline;
use patchwright_train::recipe::Recipe;
use patchwright_train::report::Report;
use patchwright_train::run::World;
use patchwright_train::run_dir::RunDir;
use patchwright_train::task_sets::TaskSets;
use patchwright_train::world::open_provider;

const RIGHT: &str = "cp good.py mod.py";
const WRONG: &str = "cp bad.py mod.py";

fn task(prefix: &str, index: usize) -> Arc<Task> {
    let files: BTreeMap<String, String> = [
        ("mod.py", "def f():\n    return 1\n"),
        ("good.py", "def f():\n    return 2\n"),
        ("bad.py", "def f():\n    return 3\n"),
    ]
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .into();
    let test = "import unittest\nimport mod\n\nclass T(unittest.TestCase):\n    \
                def test_f(self):\n        self.assertEqual(mod.f(), 2)\n\n    \
                def test_type(self):\n        self.assertIsInstance(mod.f(), int)\n";
    let hidden = FileChange {
        path: "test_mod.py".into(),
        old: None,
        new: Some(test.into()),
        executable: false,
    };
    let instance = TaskInstance {
        instance_id: format!("{prefix}__repo-{index}"),
        repo: format!("{prefix}/{index}"),
        problem_statement: format!("f {index}"),
        test_patch: render(&[hidden]),
        fail_to_pass: vec!["test_mod.T.test_f".into()],
        pass_to_pass: vec!["test_mod.T.test_type".into()],
        install_config: InstallConfig {
            test_cmd: "python3 -m unittest".into(),
            log_parser: "unittest".into(),
            ..InstallConfig::default()
        },
        ..TaskInstance::default()
    };
    Arc::new(Task { instance, repo: RepoSource::Files(Arc::new(files)) })
}

fn recipe(checkpoint: &Path, overrides: &[String]) -> Recipe {
    let text = r#"
        [run]
        name = "tiny"
        seed = 3
        [engine]
        checkpoint = "CHECKPOINT"
        num_threads = 2
        [agent]
        max_tokens_per_turn = 8
        [eval]
        num_runs = 4
        pass_k = 4
        num_runs_transfer = 4
        max_turns = 3
        context_tokens = 64
        [rft]
        num_tasks = 0
        rollouts_per_task = 4
        max_turns = 3
        context_tokens = 64
        batch_size = 4
        lr = 1e-3
        [[rl]]
        name = "rl-1"
        iterations = 3
        problems_per_iteration = 3
        group_size = 6
        max_turns = 3
        length_threshold = 3
        context_tokens = 64
        batch_size = 8
        lr = 3e-3
        [[rl]]
        name = "rl-2"
        iterations = 2
        problems_per_iteration = 3
        group_size = 6
        max_turns = 4
        length_threshold = 3
        context_tokens = 96
        batch_size = 8
        lr = 3e-3
        refresh_pool = true
        pool_max_success_rate = 0.9
        [infrastructure]
        num_workers = 8
    "#;
    let text = text.replace("CHECKPOINT", &checkpoint.display().to_string());
    Recipe::parse(&text, "tiny", overrides).unwrap()
}

/// A policy that has seen both commands equally often, each followed by a submission.
fn base_policy(dir: &Path, provider: &dyn SandboxProvider) {
    let json = fixture::tokenizer_json(&[RIGHT, WRONG, "submit"]);
    let tokenizer = Arc::new(Tokenizer::from_bytes(json.as_bytes()).unwrap());
    let renderer =
        Renderer::new(Arc::clone(&tokenizer), Profile::builtin("compact").unwrap()).unwrap();
    let config = ModelConfig {
        model_type: ModelType::Qwen3,
        vocab_size: 128,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 128,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: false,
        rope_scaling: None,
    };
    let mut trainer = Engine::new(config, 1, EngineOptions::default()).unwrap().trainer;
    trainer.attach_file("tokenizer.json", json.into_bytes()).unwrap();
    let mut samples = Vec::new();
    for (index, command) in [RIGHT, WRONG, RIGHT, WRONG].iter().enumerate() {
        let task = task("shown", index / 2);
        let agent = AgentConfig { max_turns: 3, ..AgentConfig::default() };
        let limits = patchwright_core::SandboxLimits::default();
        let spec = sandbox_spec(&task.instance, &task.repo, &agent.workdir, limits);
        let mut sandbox = provider.create(&spec).unwrap();
        let script = vec![(*command).to_owned(), "submit".to_owned()];
        let sampler = ScriptedSampler::new(Arc::clone(&tokenizer), renderer.stop_token(), script);
        let run = run_agent(&task.instance, sandbox.as_mut(), &sampler, &renderer, &agent, 1, 1);
        sandbox.destroy().unwrap();
        samples.push(run.trajectory.to_sample(1.0, |_| true));
    }
    let adam = AdamParams {
        lr: 5e-3,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_clip: 1.0,
    };
    for _ in 0..80 {
        trainer.forward_backward(&samples, &CrossEntropy::of_batch(&samples)).unwrap();
        trainer.optim_step(&adam).unwrap();
    }
    trainer.reset_optimizer();
    trainer.save(dir).unwrap();
}

fn world(recipe: &Recipe, cancel: &CancelToken) -> World {
    let set = |prefix: &str, count| (0..count).map(|index| task(prefix, index)).collect();
    let sets = TaskSets {
        train: set("train", 4),
        evaluation_sets: vec![("held-out".into(), set("held", 3))],
    };
    World::with_tasks(recipe, open_provider(recipe).unwrap(), sets, &Silent, cancel).unwrap()
}

fn start(
    dir: &Path,
    recipe: &Recipe,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Report, TrainError> {
    let run_dir = RunDir::create(dir, recipe)?;
    pipeline::start(recipe, run_dir, world(recipe, cancel), 0.0, observer, cancel)
}

fn resume(dir: &Path, observer: &dyn Observer, cancel: &CancelToken) -> Result<Report, TrainError> {
    let (run_dir, recipe) = RunDir::open(dir)?;
    let world = world(&recipe, cancel);
    pipeline::resume(recipe, run_dir, world, observer, cancel)
}

/// Cancels at the n-th rollout of RL.
struct Stopper<'a> {
    cancel: &'a CancelToken,
    left: AtomicUsize,
}

impl Observer for Stopper<'_> {
    fn event(&self, event: &RunEvent) {
        if let RunEvent::RolloutFinished(RolloutFinished { stage, .. }) = event
            && stage.starts_with("rl")
            && self.left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            self.cancel.cancel();
        }
    }
}

fn weights(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("checkpoints/6/model.safetensors")).unwrap()
}

#[test]
fn it_learns_and_resumes_bit_for_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { scratch.path().join(name) };
    let recipe = recipe(&at("base"), &[]);
    base_policy(&at("base"), open_provider(&recipe).unwrap().as_ref());

    let report = start(&at("whole"), &recipe, &Silent, &CancelToken::new()).unwrap();
    let pass = |policy: &str| {
        let found = report.evaluations.iter().find(|e| e.policy == policy);
        found.map(|e| e.pass_at_1.mean).unwrap()
    };
    assert!((0.1..0.9).contains(&pass("base")), "{}", pass("base"));
    assert!(pass("rl-2") > pass("base"), "{} {}", pass("base"), pass("rl-2"));
    assert!(report.throughput.num_optimizer_steps >= 4);
    for metrics in &report.iterations {
        assert!(metrics.logprob_difference_max < 1e-4, "{metrics:?}");
        assert_eq!(metrics.funnel.num_failed_infrastructure, 0, "{metrics:?}");
    }
    assert!(at("whole").join("checkpoints/6/tokenizer.json").is_file());

    // Stopped in the middle of rl-1 and of rl-2, resumed twice.
    let run = at("stopped");
    for (left, first) in [(25, true), (40, false)] {
        let cancel = CancelToken::new();
        let stopper = Stopper { cancel: &cancel, left: AtomicUsize::new(left) };
        let result = if first {
            start(&run, &recipe, &stopper, &cancel)
        } else {
            resume(&run, &stopper, &cancel)
        };
        assert!(matches!(result, Err(TrainError::Interrupted { .. })), "{result:?}");
    }
    resume(&run, &Silent, &CancelToken::new()).unwrap();
    assert!(weights(&run) == weights(&at("whole")), "not the same weights");
    assert_eq!(read_journal(&run.join("journal.jsonl")).unwrap().num_bytes_cut, 0);
}

/// The recipe whose agent is `program`, run by Python.
fn foreign_recipe(checkpoint: &Path, program: &str) -> Recipe {
    let command = serde_json::json!(["python3", "-c", program]);
    let overrides = [
        format!("agent.foreign_command={command}"),
        "rl.0.iterations=1".to_owned(),
        "rl.1.iterations=1".to_owned(),
        "rl.1.pool_max_success_rate=1.0".to_owned(),
    ];
    recipe(checkpoint, &overrides)
}

/// Some rollouts by the recipe's foreign agent.
fn foreign_rollouts(recipe: &Recipe, count: u32, max_turns: usize) -> Vec<Rollout> {
    let world = world(recipe, &CancelToken::new());
    let roll = |sibling| {
        let spec = RolloutSpec {
            sibling,
            session: u64::from(sibling),
            seed: u64::from(sibling),
            policy_version: world.trainer.policy_version(),
            max_turns,
            context_tokens: 64,
            temperature: 1.0,
            demonstration: false,
        };
        world.environment.rollout(&world.train[0], &spec, &CancelToken::new())
    };
    (0..count).map(roll).collect()
}

#[test]
fn a_foreign_agent_is_graded_and_trained_on() {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("base");
    let recipe = foreign_recipe(&base, include_str!("foreign_agent.py"));
    base_policy(&base, open_provider(&recipe).unwrap().as_ref());

    let rollouts = foreign_rollouts(&recipe, 12, 3);
    let tokenizer = Tokenizer::from_file(&base.join("tokenizer.json")).unwrap();
    let mut grades = [false; 2];
    for rollout in &rollouts {
        assert_ne!(rollout.status, RolloutStatus::Failed, "{rollout:?}");
        assert!(!rollout.trajectory.turns.is_empty());
        if rollout.status != RolloutStatus::Submitted {
            continue;
        }
        // What the policy did last decides, and it is what the sandbox was left with.
        let is_right = rollout.patch.contains("+    return 2");
        assert_eq!(rollout.solved, Some(is_right), "{rollout:?}");
        grades[usize::from(is_right)] = true;
        let said = tokenizer.decode(&rollout.trajectory.tokens);
        assert_eq!(is_right, said.contains(RIGHT) && !said.contains(WRONG), "{said}");
    }
    assert_eq!(grades, [true; 2], "both grades are given: {rollouts:?}");
    // One turn is not enough to submit after a command.
    let cut = foreign_rollouts(&recipe, 4, 1);
    assert!(cut.iter().any(|rollout| rollout.status == RolloutStatus::TurnLimit), "{cut:?}");

    let run = scratch.path().join("run");
    let report = start(&run, &recipe, &Silent, &CancelToken::new()).unwrap();
    assert!(report.throughput.num_optimizer_steps >= 1);
    for metrics in &report.iterations {
        assert!(metrics.logprob_difference_max < 1e-4, "{metrics:?}");
        assert_eq!(metrics.funnel.num_failed_infrastructure, 0, "{metrics:?}");
    }
}

/// An agent that asks for a first opinion and throws it away: what it sampled there is trained on
/// as well.
#[test]
fn all_branches_of_a_foreign_agent_are_trained_on() {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("base");
    let asks = "asked = {\"model\": \"policy\", \"messages\": messages}\n    \
                post(os.environ[\"OPENAI_BASE_URL\"] + \"/chat/completions\", asked)\n    \
                while True:";
    let agent = include_str!("foreign_agent.py").replacen("while True:", asks, 1);
    let recipe = foreign_recipe(&base, &agent);
    base_policy(&base, open_provider(&recipe).unwrap().as_ref());
    for rollout in foreign_rollouts(&recipe, 4, 3) {
        assert_ne!(rollout.status, RolloutStatus::Failed, "{rollout:?}");
        assert_eq!(rollout.branches.len(), 1, "{rollout:?}");
        let samples = rollout.to_samples(1.0, |_| true);
        let num_trained: usize = samples.iter().map(TrainingSample::num_loss_tokens).sum();
        assert_eq!((samples.len(), num_trained), (2, rollout.num_sampled_tokens()));
        assert!(rollout.num_turns() > rollout.trajectory.turns.len());
    }
    let report = start(&scratch.path().join("run"), &recipe, &Silent, &CancelToken::new()).unwrap();
    for metrics in &report.iterations {
        assert!(metrics.logprob_difference_max < 1e-4, "{metrics:?}");
        let funnel = &metrics.funnel;
        let sum = funnel.num_trained + funnel.num_dropped_rollouts;
        assert_eq!(sum + funnel.num_failed_infrastructure, funnel.num_rollouts, "{metrics:?}");
    }
    assert!(report.iterations.iter().any(|metrics| metrics.funnel.num_trained > 0));
}

#[test]
fn a_foreign_agent_that_fails_is_infrastructure() {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("base");
    let recipe = foreign_recipe(&base, "import sys; sys.exit('no such thing')");
    base_policy(&base, open_provider(&recipe).unwrap().as_ref());
    for rollout in foreign_rollouts(&recipe, 2, 3) {
        assert_eq!((rollout.status, rollout.solved), (RolloutStatus::Failed, None));
        assert_eq!(rollout.failure, Some(FailureClass::Agent));
        let detail = rollout.failure_detail.unwrap_or_default();
        assert!(detail.contains("exit status: 1") && detail.contains("no such thing"), "{detail}");
    }
}
