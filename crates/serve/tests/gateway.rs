//! The gateway with real sandboxes: by plain HTTP, and by mini-swe-agent from `PyPI` where
//! `PATCHWRIGHT_MINI_VENV` names a virtual environment that has it (`scripts/sdk_venvs.sh`).

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use patchwright_agent::ScriptedSampler;
use patchwright_agent::fixture::tokenizer_json;
use patchwright_core::{RepoSource, RootFs, Sampler, SandboxLimits, SandboxProvider, patch};
use patchwright_engine::{Engine, EngineOptions};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use patchwright_serve::gateway::{Episode, EpisodeSpec, Gateway};
use patchwright_serve::{Guard, Metrics, ModelText, Server, ServerLimits, Work};
use serde_json::{Value, json};

const WORKDIR: &str = "/testbed";

struct Rig {
    server: Server,
    gateway: Gateway,
    sandboxes: NativeSandboxes,
    text: Arc<ModelText>,
}

fn rig(text: ModelText) -> Rig {
    let (limits, metrics) = (ServerLimits::default(), Arc::new(Metrics::default()));
    let gateway = Gateway::new(Work::new(limits.max_samples), Arc::clone(&metrics));
    let router = Guard::new(None, limits, metrics).protect(gateway.router());
    let server = Server::start("127.0.0.1:0".parse().unwrap(), None, limits, router).unwrap();
    let sandboxes = NativeSandboxes::new(NativeOptions::default()).unwrap();
    Rig { server, gateway, sandboxes, text: Arc::new(text) }
}

/// A policy that says these texts, one a call.
fn scripted(texts: &[&str]) -> (Arc<dyn Sampler>, ModelText) {
    let text = ModelText::from_json(&tokenizer_json(&[]), None).unwrap();
    let stop = text.stop_tokens()[0];
    let script = texts.iter().map(|text| (*text).to_owned()).collect();
    let sampler = ScriptedSampler::new(Arc::clone(text.tokenizer()), stop, script);
    (Arc::new(sampler), text)
}

impl Rig {
    fn begin(&self, sampler: Arc<dyn Sampler>, max_turns: usize) -> Episode {
        let files = [("f.py".to_owned(), "def f():\n    return 1\n".to_owned())];
        let spec = patchwright_core::SandboxSpec {
            root: RootFs::default(),
            repo: RepoSource::Files(Arc::new(files.into_iter().collect())),
            workdir: WORKDIR.to_owned(),
            read_only_mounts: Vec::new(),
            env: BTreeMap::new(),
            limits: SandboxLimits::default(),
        };
        let spec = EpisodeSpec {
            sampler,
            text: Arc::clone(&self.text),
            session: 7,
            seed: 1,
            temperature: 1.0,
            policy_version: None,
            max_turns,
            max_turn_tokens: 4096,
            context_tokens: 65_536,
            sandbox: Some(self.sandboxes.create(&spec).unwrap()),
            workdir: WORKDIR.to_owned(),
            command_timeout: Duration::from_secs(20),
            task: [("problem_statement".to_owned(), "f() returned 1, expected 2".to_owned())]
                .into(),
        };
        self.gateway.begin(spec).unwrap()
    }

    fn post(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        support::post(self.server.address(), path, key, body)
    }

    fn mini(&self, venv: &Path, key: &str, config: &str) -> (bool, String) {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integrations/mini_swe_agent");
        let url = format!("http://{}", self.server.address());
        let output = Command::new(venv.join("bin/python"))
            .arg(here.join("patchwright_mini.py"))
            .args((!config.is_empty()).then(|| format!("--config={}", here.join(config).display())))
            .env("OPENAI_BASE_URL", format!("{url}/v1"))
            .env("OPENAI_API_BASE", format!("{url}/v1"))
            .env("OPENAI_API_KEY", key)
            .env("PATCHWRIGHT_GATEWAY", url)
            .env("PATCHWRIGHT_MODEL", "policy")
            .env("PATCHWRIGHT_TASK", "f() returned 1, expected 2")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    }
}

#[test]
fn calls_are_recorded_and_commands_run_in_the_sandbox() {
    let (sampler, text) = scripted(&["first <|end|> words", "second", "elsewhere", "never"]);
    let rig = rig(text);
    let episode = rig.begin(sampler, 3);
    let key = episode.key().to_owned();
    let ask = |messages: Value| {
        rig.post("/v1/chat/completions", &key, &json!({"model": "policy", "messages": messages}))
    };
    let user = |content: &str| json!({"role": "user", "content": content});
    let (status, first) = ask(json!([user("a")]));
    assert_eq!(status, 200, "{first}");
    let reply = first["choices"][0]["message"].clone();
    assert_eq!(reply["content"], "first <|end|> words");
    let (_, ran) = rig.post("/episode/exec", &key, &json!({"command": "cat f.py; ls /nowhere"}));
    assert!(ran["output"].as_str().unwrap().contains("return 1"), "{ran}");
    assert!(ran["output"].as_str().unwrap().contains("/nowhere"), "{ran}");
    assert_ne!(ran["returncode"], 0);
    // With the same history it goes on; with another it is a branch.
    assert_eq!(ask(json!([user("a"), reply, user("b")])).0, 200);
    assert_eq!(ask(json!([user("a"), {"role": "assistant", "content": "?"}, user("b")])).0, 200);
    let (status, refused) = ask(json!([user("a")]));
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("out_of_turns")));
    // The key is nowhere inside, and neither is the gateway.
    let port = rig.server.address().port();
    let spy = format!(
        "env | grep -c {key}; cat /proc/*/environ 2>/dev/null | grep -ac {key}; \
         (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>&1"
    );
    let (_, ran) = rig.post("/episode/exec", &key, &json!({"command": spy}));
    let seen = ran["output"].as_str().unwrap();
    assert!(seen.starts_with("0\n0\n") && seen.contains("onnect"), "{seen}");
    let write = json!({"command": "sed -i 's/1/2/' f.py", "cwd": "", "timeout": 5});
    assert_eq!(rig.post("/episode/exec", &key, &write).1["returncode"], 0);
    assert_eq!(rig.post("/episode/exec", "another-key", &write).0, 401);
    let (status, shown) = support::call(rig.server.address(), "GET", "/episode", &key, "");
    assert!(status == 200 && shown.contains("expected 2") && !shown.contains(&key), "{shown}");

    let finished = episode.finish();
    assert_eq!(rig.post("/episode/exec", &key, &write).0, 401);
    assert_eq!(rig.gateway.num_episodes(), 0);
    let mut sandbox = finished.sandbox.unwrap();
    assert!(patch::render(&sandbox.diff().unwrap()).contains("+    return 2"));
    sandbox.destroy().unwrap();
    assert!(finished.recording.out_of_turns && finished.recording.engine_failure.is_none());
    let stitched = finished.recording.stitch(&rig.text);
    assert_eq!((stitched.branches.len(), stitched.num_merged), (2, 1));
    let main = &stitched.main().unwrap().trajectory;
    let shown = rig.text.tokenizer().decode(&main.tokens);
    assert_eq!(
        shown,
        "<|user|>a<|assistant|>first <|end|> words<|end|><|user|>b<|assistant|>second<|end|>"
    );
    // What the policy spelled is text, its own end is a token.
    let ends = main.tokens.iter().filter(|t| **t == rig.text.stop_tokens()[0]).count();
    assert_eq!(ends, 2);
}

const FIX: [&str; 3] = [
    "THOUGHT: look\n\n```mswea_bash_command\ncat f.py\n```",
    "THOUGHT: mend\n\n```mswea_bash_command\nsed -i 's/return 1/return 2/' f.py\n```",
    "THOUGHT: done\n\n```mswea_bash_command\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n```",
];

#[test]
fn mini_swe_agent_works_unchanged() {
    let Some(venv) = std::env::var_os("PATCHWRIGHT_MINI_VENV") else {
        eprintln!("skipped: PATCHWRIGHT_MINI_VENV is not set (scripts/sdk_venvs.sh)");
        return;
    };
    let venv = Path::new(&venv);
    let (sampler, text) = scripted(&FIX);
    let scripted = rig(text);
    let episode = scripted.begin(sampler, 10);
    let (good, said) = scripted.mini(venv, episode.key(), "");
    assert!(good && said.contains("Submitted"), "{said}");
    let finished = episode.finish();
    let mut sandbox = finished.sandbox.unwrap();
    assert!(patch::render(&sandbox.diff().unwrap()).contains("+    return 2"));
    sandbox.destroy().unwrap();
    let stitched = finished.recording.stitch(&scripted.text);
    assert_eq!((stitched.branches.len(), stitched.num_merged), (1, 2), "its history is stable");

    // The real policy, token by token.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/base");
    let options = EngineOptions { num_threads: 1, ..EngineOptions::default() };
    let engine = Engine::load(&dir, options).unwrap();
    let real = rig(ModelText::from_dir(&dir).unwrap());
    let episode = real.begin(engine.sampler(), 4);
    let (_, said) = real.mini(venv, episode.key(), "compact.yaml");
    let finished = episode.finish();
    let recording = finished.recording;
    assert!(!recording.calls.is_empty() && recording.engine_failure.is_none(), "{said}");
    let stitched = recording.stitch(&real.text);
    let (calls, branches) = (recording.calls.len(), stitched.branches.len());
    assert_eq!(stitched.num_merged + branches, calls);
    println!("mini-swe-agent on the base policy: {calls} calls, {branches} branches");
}
