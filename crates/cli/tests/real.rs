//! The program beside a real engine, where the environment names one: `PATCHWRIGHT_LLAMA_CPP` (a
//! URL) and `PATCHWRIGHT_MODELS`, see `scripts/real_engines.sh`.

#[path = "program/running.rs"]
mod running;
#[path = "program/support.rs"]
mod support;

use std::path::Path;

use serde_json::Value;

use running::Running;
use support::{patchwright, shown};

/// A foreign agent asks the gateway, the gateway a llama.cpp server; what is kept is exported.
#[test]
fn llama_cpp_behind_the_gateway() {
    let variables = ["PATCHWRIGHT_LLAMA_CPP", "PATCHWRIGHT_MODELS"].map(std::env::var);
    let [Ok(url), Ok(models)] = variables else {
        eprintln!("PATCHWRIGHT_LLAMA_CPP or PATCHWRIGHT_MODELS is not set: not tested");
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let made = patchwright(dir, &["tasks", "generate", "--num", "2", "--out", "rows.jsonl"]);
    assert_eq!(made.status.code(), Some(0), "{}", shown(&made));
    let checkpoint = Path::new(&models).join("smollm2").display().to_string();
    let mut args = vec!["--model", &url, "--api", "llama-cpp", "--checkpoint", &checkpoint];
    args.extend(["--tasks", "rows.jsonl", "--out", "episodes"]);
    for set in ["eval.max_turns=3", "eval.context_tokens=1024", "agent.max_tokens_per_turn=24"] {
        args.extend(["--set", set]);
    }
    let running = Running::start(dir, &args);
    let said = running.agent("sandbox");
    assert_eq!(said.lines().count(), 2, "{said}");
    let (code, out, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let count = |name: &str| report["gateway"][name].as_u64().unwrap();
    assert_eq!((count("num_episodes"), count("num_failed")), (2, 0), "{report}");
    // The agent keeps its history as it is, and so every call goes on with the one before it.
    assert_eq!((count("num_branches"), count("num_merged")), (2, count("num_calls") - 2));
    let num_calls = count("num_calls") as usize;

    for format in ["parquet", "chat", "atif", "jsonl"] {
        let args = ["export", "episodes", "--format", format, "--out", format];
        let exported = patchwright(dir, &args);
        assert_eq!(exported.status.code(), Some(0), "{}", shown(&exported));
    }
    let chat = std::fs::read_to_string(dir.join("chat")).unwrap();
    let lines: Vec<Value> = chat.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let messages = || lines.iter().flat_map(|line| line["messages"].as_array().unwrap());
    let of = |role: &str| messages().filter(|message| message["role"] == role).count();
    assert_eq!((lines.len(), of("assistant"), of("user")), (2, num_calls, num_calls));
    for message in messages() {
        let content = message["content"].as_str().unwrap();
        assert!(!content.contains("<|im_"), "the template's framing is none of it: {content}");
    }
}
