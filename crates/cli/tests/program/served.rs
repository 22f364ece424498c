//! `patchwright serve`, and `patchwright train` against it: RFT and RL over the Tinker API.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use serde_json::Value;

use crate::support::shown;

const TOKEN: &str = "tml-known-to-the-test-alone";

/// The shipped policy, served. Killed when dropped.
struct Served {
    child: Child,
    said: BufReader<ChildStderr>,
    url: String,
}

impl Served {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchwright"))
            .args(["serve", "--bind", "127.0.0.1:0", "--name", "tiny", "--threads", "2"])
            .current_dir(dir)
            .env("NO_COLOR", "1")
            .env("PATCHWRIGHT_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut said = BufReader::new(child.stderr.take().expect("is piped"));
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("no address: {line}")).to_owned();
        Self { child, said, url }
    }

    fn train(&self, dir: &Path, key: &str) -> Output {
        let url = format!("tinker.url={}", self.url);
        let sets = [
            "trainer=tinker",
            &url,
            "tinker.base_model=tiny",
            "tinker.lora_rank=0",
            "tasks.held-out.num_instances=1",
            "tasks.transfer.source=none",
            // The base policy solves few: enough for some to learn from.
            "rft.num_tasks=24",
            "rft.rollouts_per_task=12",
            "rl.0.iterations=1",
        ];
        Command::new(env!("CARGO_BIN_EXE_patchwright"))
            .args(["train", "smoke", "--out", "run"])
            .args(sets.iter().flat_map(|set| ["--set", *set]))
            .current_dir(dir)
            .env("NO_COLOR", "1")
            .env("TINKER_API_KEY", key)
            .output()
            .expect("the program starts")
    }

    /// As Ctrl-C does.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let said: Vec<String> = BufRead::lines(self.said.by_ref()).map_while(Result::ok).collect();
        assert_eq!(status.code(), Some(0), "{said:?}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn trained_over_the_tinker_api() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let served = Served::start(dir);

    let refused = shown(&served.train(dir, "tml-wrong"));
    assert!(refused.starts_with("exit code 1") && refused.contains("token"), "{refused}");

    let output = served.train(dir, TOKEN);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let metrics = std::fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
    let metrics: Vec<Value> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stages: Vec<&str> = metrics.iter().filter_map(|row| row["stage"].as_str()).collect();
    assert_eq!(stages, ["rft", "rl-1", "rl-2"]);
    assert!(metrics[0]["num_optimizer_steps"].as_u64() >= Some(1), "{}", metrics[0]);
    for row in &metrics {
        assert_eq!(row["funnel"]["num_failed_infrastructure"], 0, "{row}");
        let difference = row["logprob_difference_max"].as_f64().unwrap();
        assert!(difference < 1e-4, "sampler and trainer agree: {row}");
    }
    served.stop();
}
