//! What the program says: whole outputs.

use crate::support::{patchwright, shown};

fn in_empty_dir(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    shown(&patchwright(dir.path(), args))
}

#[test]
fn help_of_every_command() {
    let commands: [&[&str]; 17] = [
        &[],
        &["train"],
        &["pretrain"],
        &["eval"],
        &["rollout"],
        &["export"],
        &["serve"],
        &["gateway"],
        &["tasks"],
        &["tasks", "generate"],
        &["tasks", "show"],
        &["sandbox"],
        &["sandbox", "run"],
        &["report"],
        &["doctor"],
        &["completions"],
        &["help"],
    ];
    for command in commands {
        let mut args = command.to_vec();
        args.push("--help");
        let name = ["help"].iter().chain(command).copied().collect::<Vec<_>>().join("-");
        insta::assert_snapshot!(name, in_empty_dir(&args));
    }
}

/// Wrong use: exit code 2, one or two lines that say how to mend it.
#[test]
fn wrong_use() {
    let cases: [(&str, &[&str]); 13] = [
        ("unknown-command", &["trian"]),
        ("unknown-recipe", &["train", "embeded"]),
        ("unknown-key", &["train", "--set", "rl.0.lrr=1"]),
        ("wrong-type", &["train", "--set", "run.seed=one"]),
        ("refused-value", &["train", "--set", "rl.0.group_size=1"]),
        ("remote-engine", &["train", "swe-rebench"]),
        ("resume-and-recipe", &["train", "smoke", "--resume", "runs/x"]),
        ("resume-nothing", &["train", "--resume", "runs/x"]),
        ("no-rollouts", &["export", "runs/x", "--format", "atif", "--out", "y"]),
        ("no-task-file", &["rollout", "--tasks", "tasks.jsonl"]),
        ("no-task-set", &["eval", "--tasks", "heldout"]),
        ("no-repo", &["sandbox", "run", "--repo", "nowhere", "--", "ls"]),
        ("pretrain-key", &["pretrain", "--out", "x", "--set", "num_session=1"]),
    ];
    for (name, args) in cases {
        insta::assert_snapshot!(name, in_empty_dir(args));
    }
}

#[test]
fn a_recipe_file_with_a_wrong_key_and_a_wrong_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    std::fs::write(&path, "[run]\nname = \"mine\"\n\n[rft]\nlearning_rate = 1e-3\n").unwrap();
    let key = shown(&patchwright(dir.path(), &["train", "mine.toml"]));
    std::fs::write(&path, "[run]\nname = \"mine\"\nseed = \"7\"\n").unwrap();
    let ty = shown(&patchwright(dir.path(), &["train", "mine.toml"]));
    insta::assert_snapshot!(format!("{key}\n{ty}"));
}

#[test]
fn a_task_row_without_a_field() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.jsonl"), "{\"instance_id\":\"a\",\"repo\":\"r\"}\n").unwrap();
    insta::assert_snapshot!(shown(&patchwright(dir.path(), &["tasks", "show", "t.jsonl"])));
}

#[test]
fn a_directory_that_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["train", "smoke", "--set", "engine.checkpoint=.", "--out", "run"];
    let output = patchwright(dir.path(), &args);
    assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("no checkpoint directory: it has neither config.json"), "{error}");
    assert!(!dir.path().join("run/journal.jsonl").exists(), "no run was begun");
}

#[test]
fn completions_of_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = in_empty_dir(&["completions", shell]);
        assert!(output.starts_with("exit code 0"), "{shell}");
        assert!(output.contains("rollout"), "{shell}");
    }
}

/// Colours only where they are wanted.
#[test]
fn colours() {
    let run = |force: bool| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_patchwright"));
        program.args(["report", "nowhere"]).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        if force {
            program.env("CLICOLOR_FORCE", "1");
        }
        String::from_utf8(program.output().unwrap().stderr).unwrap()
    };
    assert!(run(true).contains("\u{1b}["));
    assert!(!run(false).contains("\u{1b}["), "a pipe is no terminal");
}
