//! The journal of a run that never was.

use std::path::Path;

use patchwright_core::PolicyVersion;
use patchwright_train::journal::{Journal, Record, RolloutRecord, SCHEMA_VERSION};
use patchwright_train::metrics::{EvaluationResult, Funnel, IterationMetrics, MeanSem};
use serde_json::json;

const POLICIES: [(&str, f64); 4] =
    [("base", 0.061), ("rft", 0.104), ("rl-1", 0.27), ("rl-2", 0.352)];

/// Writes a finished run into `dir`: four policies, one RFT and fifty RL iterations.
pub fn write_run(dir: &Path) {
    let header = Record::Header {
        schema_version: SCHEMA_VERSION,
        program_version: "0.1.0".into(),
        recipe: "embedded".into(),
        seed: 7,
    };
    let mut journal = Journal::create(&dir.join("journal.jsonl"), &header).unwrap();
    let mut put = |record: &Record| journal.append(record).unwrap();
    let mut version = 0;
    for (policy, mean) in POLICIES {
        let iterations = match policy {
            "base" => 0,
            "rft" => 1,
            "rl-1" => 30,
            _ => 20,
        };
        if iterations > 0 {
            put(&Record::StageStarted { stage: policy.into(), num_tasks: 2000 });
            for i in 0..iterations {
                version += 1;
                put(&Record::Rollout(rollout(policy, i, "", i % 3 == 0)));
                put(&Record::Iteration {
                    metrics: iteration(policy, i, version),
                    checkpoint: true,
                    num_sandboxes: 540,
                });
            }
            put(&finished(policy, 5.0 * f64::from(u32::try_from(iterations).unwrap()), version));
        }
        let stage = format!("eval-{policy}");
        put(&Record::StageStarted { stage: stage.clone(), num_tasks: 100 });
        for set in ["held-out", "transfer"] {
            for solved in [true, false] {
                put(&Record::Rollout(rollout(&stage, 0, set, solved)));
            }
            let mean = if set == "held-out" { mean } else { mean / 5.0 };
            put(&Record::Evaluation {
                result: evaluation(policy, set, mean, version),
                num_sandboxes: 1700,
                num_sampled_tokens: 160_000,
            });
        }
        put(&finished(&stage, 30.0, version));
    }
    put(&Record::RunFinished { policy_version: PolicyVersion(version) });
    journal.sync().unwrap();
    let recipe =
        json!({"program_version": "0.1.0", "recipe": {"run": {"name": "embedded", "seed": 7}}});
    std::fs::write(dir.join("recipe.json"), recipe.to_string()).unwrap();
}

fn finished(stage: &str, wall_seconds: f64, version: u64) -> Record {
    Record::StageFinished {
        stage: stage.into(),
        policy_version: PolicyVersion(version),
        wall_seconds,
        peak_memory_bytes: 900 << 20,
    }
}

/// A wave that looks like noise and is the same every time.
fn wave(i: usize) -> f64 {
    ((i * 37 % 11) as f64 - 5.0) / 5.0
}

fn iteration(stage: &str, i: usize, version: u64) -> IterationMetrics {
    let progress = 1.0 - (-(version as f64) / 18.0).exp();
    let solve_rate = 0.1 + 0.4 * progress + 0.02 * wave(i);
    IterationMetrics {
        stage: stage.into(),
        iteration: i,
        policy_version: PolicyVersion(version),
        funnel: Funnel {
            num_rollouts: 300,
            num_solved: (300.0 * solve_rate) as usize,
            num_failed_infrastructure: usize::from(i == 3),
            num_groups: 30,
            num_groups_all_solved: (6.0 * progress) as usize,
            num_groups_all_failed: (20.0 - 9.0 * progress + wave(i)) as usize,
            num_dropped_rollouts: 200,
            num_trained: 99,
            ..Funnel::default()
        },
        reward_mean: solve_rate - 0.06,
        solve_rate,
        num_turns_mean: 6.4 - 1.5 * progress + 0.1 * wave(i),
        format_error_rate: 0.08 * (1.0 - progress),
        entropy: 0.43 - 0.25 * progress + 0.01 * wave(i),
        loss: -0.01,
        grad_norm: 0.8 + 0.2 * wave(i),
        lr: 1e-3,
        clipped_fraction: 0.012 + 0.004 * wave(i),
        logprob_difference_max: (2e-6 * (1.5 + wave(i))) as f32,
        num_optimizer_steps: 4,
        num_sampled_tokens: 48_000,
        num_trained_tokens: 21_000,
        rollout_seconds: 3.2,
        train_seconds: 2.0,
        ..IterationMetrics::default()
    }
}

fn evaluation(policy: &str, set: &str, mean: f64, version: u64) -> EvaluationResult {
    EvaluationResult {
        policy: policy.into(),
        policy_version: PolicyVersion(version),
        task_set: set.into(),
        num_tasks: if set == "held-out" { 100 } else { 40 },
        num_runs: 10,
        pass_at_1: MeanSem { mean, sem: 0.004 + mean / 40.0 },
        pass_k: 10,
        pass_at_10: (mean * 2.0 + 0.1).min(1.0),
        mean_turns: 6.4,
        num_failed_infrastructure: 0,
        entropy: 0.3,
        submit_rate: 0.83,
        wall_seconds: 15.0,
    }
}

fn rollout(stage: &str, iteration: usize, set: &str, solved: bool) -> RolloutRecord {
    let reward = set.is_empty().then(|| json!({"outcome": 1.0, "length": -0.1, "shaping": 0.0}));
    serde_json::from_value(json!({
        "stage": stage,
        "iteration": iteration,
        "task_set": set,
        "instance_id": format!("gen__lantern_{iteration}-{}", u8::from(solved)),
        "sibling": 2,
        "policy_version": iteration,
        "status": if solved { "submitted" } else { "turn_limit" },
        "failure": if solved { None } else { Some("turns") },
        "solved": solved,
        "reward": reward,
        "advantage": if set.is_empty() { Some(1.21) } else { None },
        "num_turns": 3,
        "num_format_errors": 0,
        "num_tokens": 310,
        "num_sampled_tokens": 90,
        "prompt": "Fix the bug in this repository.\n\n`clamp(3, 1, 2)` gives 3, it should give 2.\n",
        "turns": [
            {"text": "open lantern/core.py", "observation": "1: def clamp(x, low, high):\n2:     if x > high:\n3:         return x\n4:     return max(low, x) <script>alert(1)</script>"},
            {"text": "edit 3\n        return high", "observation": "edited line 3 & nothing else"},
            {"text": "submit", "observation": ""}
        ],
        "patch": if solved { "diff --git a/lantern/core.py b/lantern/core.py\n--- a/lantern/core.py\n+++ b/lantern/core.py\n@@ -1,4 +1,4 @@\n def clamp(x, low, high):\n     if x > high:\n-        return x\n+        return high\n     return max(low, x)\n" } else { "" },
    }))
    .unwrap()
}
