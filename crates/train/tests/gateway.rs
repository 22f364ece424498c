//! The gateway's desk with an agent that is a program of its own, real sandboxes and a real grader;
//! only what the policy says is scripted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use patchwright_agent::{
    AgentConfig, GradeCache, Grader, GraderOptions, Profile, Renderer, ScriptedSampler, fixture,
};
use patchwright_core::{
    FailureClass, FileChange, InstallConfig, PolicyVersion, RepoSource, Rollout, RolloutStatus,
    SandboxProvider, TaskInstance, patch::render,
};
use patchwright_serve::gateway::{Desk, DeskError, Gateway, LeaseRequest, desk_router};
use patchwright_serve::{BearerToken, Guard, Metrics, ModelText, Server, ServerLimits, Work};
use patchwright_train::agent_environment::AgentEnvironment;
use patchwright_train::environment::Task;
use patchwright_train::events::Silent;
use patchwright_train::gateway::{DeskPlan, TaskDesk};
use patchwright_train::images::TaskImages;
use patchwright_train::recipe::Recipe;
use patchwright_train::world::open_provider;

const TOKEN: &str = "known-to-the-operator-alone";
const RIGHT: &str = "cp good.py mod.py";
const WRONG: &str = "cp bad.py mod.py";

fn task(index: usize) -> Arc<Task> {
    let file = |result| format!("def f():\n    return {result}\n");
    let files: BTreeMap<String, String> =
        [("mod.py", 1), ("good.py", 2), ("bad.py", 3)].map(|(p, n)| (p.to_owned(), file(n))).into();
    let test = "import unittest\nimport mod\n\nclass T(unittest.TestCase):\n    \
                def test_f(self):\n        self.assertEqual(mod.f(), 2)\n";
    let hidden = FileChange {
        path: "test_mod.py".into(),
        old: None,
        new: Some(test.into()),
        executable: false,
    };
    let instance = TaskInstance {
        instance_id: format!("a__repo-{index}"),
        repo: format!("a/{index}"),
        problem_statement: format!("f() returned 1, expected 2 ({index})"),
        test_patch: render(&[hidden]),
        fail_to_pass: vec!["test_mod.T.test_f".into()],
        install_config: InstallConfig {
            test_cmd: "python3 -m unittest".into(),
            log_parser: "unittest".into(),
            ..InstallConfig::default()
        },
        ..TaskInstance::default()
    };
    Arc::new(Task { instance, repo: RepoSource::Files(Arc::new(files)) })
}

/// A policy that says these texts in each episode, before the real sandboxes and the real grader.
fn environment(script: &[&str]) -> (AgentEnvironment, Arc<ModelText>) {
    let recipe = Recipe::default();
    let json = fixture::tokenizer_json(&[]);
    let text = Arc::new(ModelText::from_json(&json, None).unwrap());
    let tokenizer = Arc::clone(text.tokenizer());
    let renderer =
        Renderer::new(Arc::clone(&tokenizer), Profile::builtin("compact").unwrap()).unwrap();
    let script = script.iter().map(|said| (*said).to_owned()).collect();
    let sampler = ScriptedSampler::new(tokenizer, renderer.stop_token(), script);
    let provider = open_provider(&recipe).unwrap();
    let graders: Arc<dyn SandboxProvider> = Arc::clone(&provider) as Arc<dyn SandboxProvider>;
    let environment = AgentEnvironment {
        limits: recipe.sandbox.limits(),
        sampler: Arc::new(sampler),
        renderer,
        agent: AgentConfig::default(),
        grades: GradeCache::new(Grader::new(graders, GraderOptions::default()), 8),
        images: Arc::new(TaskImages::default()),
        provider,
    };
    (environment, text)
}

struct Rig {
    desk: Arc<TaskDesk>,
    server: Server,
}

fn rig(script: &[&str], kept: &Path, change: impl FnOnce(&mut DeskPlan)) -> Rig {
    let mut plan = DeskPlan {
        num_runs: 1,
        max_episodes: None,
        max_open: 8,
        episode_timeout: Duration::from_mins(10),
        num_retries: 1,
        seed: 0,
        policy_version: PolicyVersion(0),
        max_turns: 8,
        context_tokens: 65_536,
        temperature: 1.0,
    };
    change(&mut plan);
    let (environment, text) = environment(script);
    let (limits, metrics) = (ServerLimits::default(), Arc::new(Metrics::default()));
    let gateway = Gateway::new(Work::new(8), Arc::clone(&metrics));
    let (routes, tasks) = (gateway.router(), (0..2).map(task).collect());
    let silent = Arc::new(Silent);
    let desk = TaskDesk::open(environment, text, gateway, tasks, plan, kept, silent).unwrap();
    let desk = Arc::new(desk);
    let token = BearerToken::new(TOKEN).unwrap();
    let routes = routes.merge(desk_router(desk.clone(), Some(token.clone()), Work::new(4)));
    let knows = {
        let desk = Arc::clone(&desk);
        move |key: &str| desk.knows(key)
    };
    let router = Guard::with_keys(Some(token.clone()), limits, metrics, knows).protect(routes);
    let address = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(address, Some(&token), limits, router).unwrap();
    Rig { desk, server }
}

impl Rig {
    /// The agent's program; what it said, and how it ended.
    fn agent(&self, mode: &str, token: &str) -> (bool, String) {
        let url = format!("http://{}", self.server.address());
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/gateway_agent.py");
        let output = Command::new("python3")
            .arg(program)
            .args([&*url, mode])
            .env("PATCHWRIGHT_TOKEN", token)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

fn kept_rollouts(path: &Path) -> Vec<Rollout> {
    let text = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

#[test]
fn an_agent_from_elsewhere_is_given_tasks_and_graded() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("rollouts.jsonl.zst");
    let rig = rig(&["ls", RIGHT, "submit"], &kept, |plan| plan.num_runs = 2);
    let (good, said) = rig.agent("copy", "a-wrong-token-of-some-length");
    assert!(!good && said.contains("401"), "{said}");
    let (good, said) = rig.agent("copy", TOKEN);
    assert!(good, "{said}");
    let solved: Vec<String> = [0, 1, 0, 1].map(|index| format!("a__repo-{index} True 1.0")).into();
    assert_eq!(said.lines().collect::<Vec<_>>(), solved);
    assert_eq!((rig.desk.num_left(), rig.desk.num_ungraded()), (0, 0));
    let (result, counts) = rig.desk.result("scripted", "mine", 2, 1.0);
    assert!((result.pass_at_1.mean - 1.0).abs() < 1e-12, "{result:?}");
    assert_eq!((counts.num_episodes, counts.num_solved, counts.num_failed), (4, 4, 0));
    assert_eq!((counts.num_calls, counts.num_merged, counts.num_branches), (12, 8, 4));
    let rollouts = kept_rollouts(&kept);
    assert_eq!(rollouts.len(), 4);
    for rollout in &rollouts {
        assert_eq!((rollout.status, rollout.solved), (RolloutStatus::Submitted, Some(true)));
        assert!(rollout.patch.contains("+    return 2"), "{}", rollout.patch);
        assert_eq!(rollout.trajectory.turns.len(), 3);
        assert!(rollout.trajectory.turns[0].observation.contains("good.py"), "{rollout:?}");
    }
    assert_eq!(rollouts.iter().map(|rollout| rollout.sibling).collect::<Vec<_>>(), [0, 0, 1, 1]);
}

#[test]
fn episodes_are_left_given_away_again_and_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("rollouts.jsonl.zst");
    let first = rig(&[WRONG, "submit"], &kept, |plan| {
        plan.max_episodes = Some(1);
        plan.episode_timeout = Duration::ZERO;
    });
    let (good, said) = first.agent("leave", TOKEN);
    assert!(good, "{said}");
    assert_eq!((first.desk.num_open(), first.desk.num_left()), (1, 1));
    first.desk.expire();
    assert_eq!((first.desk.num_open(), first.desk.num_left()), (0, 1), "it is given away again");
    // In time: nobody looked at the clock.
    let (good, said) = first.agent("sandbox", TOKEN);
    assert!(good && said == "a__repo-0 False 0.0\n", "{said}");
    let (result, counts) = first.desk.result("scripted", "mine", 1, 1.0);
    assert!(result.pass_at_1.mean.abs() < 1e-12, "{result:?}");
    assert_eq!((counts.num_episodes, counts.num_failed, counts.num_agent_failed), (2, 1, 1));
    let failures: Vec<_> = kept_rollouts(&kept).iter().map(|rollout| rollout.failure).collect();
    assert_eq!(failures, [Some(FailureClass::Agent), Some(FailureClass::Model)]);
    let attempts: Vec<_> = kept_rollouts(&kept).iter().map(|rollout| rollout.attempt).collect();
    assert_eq!(attempts, [0, 1]);
    drop(first);

    // With more episodes, those that have a grade are not given away again.
    let second = rig(&[RIGHT, "submit"], &kept, |plan| plan.num_runs = 1);
    assert_eq!(second.desk.num_left(), 1);
    let (good, said) = second.agent("sandbox", TOKEN);
    assert!(good && said == "a__repo-1 True 1.0\n", "{said}");
    let (result, counts) = second.desk.result("scripted", "mine", 1, 1.0);
    assert!((result.pass_at_1.mean - 0.5).abs() < 1e-12, "{result:?}");
    assert_eq!((counts.num_episodes, counts.num_solved), (3, 1));
}

#[test]
fn what_does_not_fit_an_episode_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(&["submit"], &dir.path().join("rollouts.jsonl.zst"), |plan| {
        plan.num_retries = 0;
        plan.max_open = 2;
    });
    let desk = &rig.desk;
    let own = desk.lease(LeaseRequest::default()).unwrap();
    let ours = desk.lease(LeaseRequest { sandbox: true }).unwrap();
    assert!(matches!(desk.lease(LeaseRequest::default()), Err(DeskError::Busy(_))));
    assert!(desk.repository(&own.id, &own.key).unwrap().len() > 100);
    let refused = |id: &str, key: &str, patch: Option<&str>| {
        let refused = desk.submit(id, key, patch.map(str::to_owned)).unwrap_err();
        assert_eq!(desk.num_open(), 2, "the episode goes on");
        refused
    };
    assert_eq!(refused(&own.id, &ours.key, Some("")), DeskError::Key);
    assert_eq!(refused("99", &own.key, Some("")), DeskError::Key);
    for (id, key, patch, said) in [
        (&own.id, &own.key, Some("what?"), "no unified diff"),
        (&own.id, &own.key, None, "is missing"),
        (&ours.id, &ours.key, Some(""), "has a sandbox"),
    ] {
        let error = refused(id, key, patch);
        assert!(matches!(error, DeskError::Refused(_)) && error.to_string().contains(said));
    }
    // Nobody asked the policy anything: there is nothing to reward.
    let report = desk.submit(&own.id, &own.key, Some(String::new())).unwrap();
    assert_eq!((report.solved, report.reward), (None, None));
    assert!(report.failure.as_ref().unwrap().starts_with("agent: "), "{report:?}");
    assert_eq!(desk.report(&own.id, &own.key).unwrap(), report);
    desk.abandon();
    assert_eq!(desk.num_open(), 0);
    assert!(matches!(desk.lease(LeaseRequest::default()), Err(DeskError::Closing)));
    assert_eq!(desk.num_ungraded(), 2);
}
