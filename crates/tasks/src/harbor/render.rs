//! The files of a task directory for a row.

use std::fmt::Write;
use std::path::{Component, Path};

use patchwright_core::TaskInstance;
use serde_json::Value;
use toml::value::Table;

use super::read::interpret;
use super::{FIELD, Files, ROW_FILE, TaskFile, from_value};

const TEST_SH: &str = include_str!("test.sh");
const SCORE_PY: &str = include_str!("score.py");

/// A directory's name for an id: letters, digits, `.`, `_` and `-`; all else becomes `-`.
pub(super) fn dir_name(id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = id.chars().map(plain).take(200).collect();
    if name.starts_with('.') || name.is_empty() { format!("task{name}") } else { name }
}

/// All files of the directory.
///
/// # Errors
/// A path that would leave the directory, or a field `harbor` that is not one of ours.
pub(super) fn render(instance: &TaskInstance) -> Result<Files, String> {
    let mut row = instance.clone();
    let files = if let Some(kept) = row.extra.remove(FIELD) {
        let mut files = from_value(&kept)?;
        files.insert("instruction.md".into(), TaskFile::text(row.problem_statement.clone()));
        if interpret(&dir_name(&row.instance_id), &files).as_ref() != Ok(&row) {
            files.insert(ROW_FILE.into(), row_file(&row)?);
        }
        files
    } else {
        generate(&row)?
    };
    for path in files.keys() {
        let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || path.is_empty() || path.contains('\0') || path.len() > 1000 {
            return Err(format!("{path:?} is no path below the task's directory"));
        }
    }
    Ok(files)
}

fn row_file(row: &TaskInstance) -> Result<TaskFile, String> {
    let text = serde_json::to_string_pretty(row).map_err(|error| error.to_string())?;
    Ok(TaskFile::text(text + "\n"))
}

fn generate(row: &TaskInstance) -> Result<Files, String> {
    let mut files = Files::new();
    files.insert("instruction.md".into(), TaskFile::text(row.problem_statement.clone()));
    files.insert("task.toml".into(), TaskFile::text(settings(row)?));
    files.insert("environment/Dockerfile".into(), TaskFile::text(dockerfile(row)));
    for (path, text) in &row.files {
        files.insert(format!("environment/repo/{path}"), TaskFile::text(text.clone()));
    }
    files.insert("tests/test.sh".into(), TaskFile::script(test_script(row)));
    files.insert("tests/score.py".into(), TaskFile::text(SCORE_PY));
    files.insert("tests/test.patch".into(), TaskFile::text(row.test_patch.clone()));
    files.insert(ROW_FILE.into(), row_file(row)?);
    files.insert("solution/patch.diff".into(), TaskFile::text(row.patch.clone()));
    let solve = "#!/bin/bash\n# Applies the gold patch.\nset -eu\n\
        here=\"$(cd \"$(dirname \"${BASH_SOURCE[0]}\")\" && pwd)\"\n\
        cd \"${REPO_DIR:-/testbed}\"\n\
        git apply \"$here/patch.diff\" 2>/dev/null || patch -p1 --forward -i \"$here/patch.diff\"\n";
    files.insert("solution/solve.sh".into(), TaskFile::script(solve));
    Ok(files)
}

/// `task.toml`: what the agent may not see is not in it, since some programs show it.
fn settings(row: &TaskInstance) -> Result<String, String> {
    let text = |text: &str| toml::Value::String(text.to_owned());
    let mut metadata = Table::new();
    let known = [
        ("instance_id", &row.instance_id),
        ("repo", &row.repo),
        ("base_commit", &row.base_commit),
        ("version", &row.version),
        ("created_at", &row.created_at),
    ];
    for (key, value) in known {
        if !value.is_empty() {
            metadata.insert(key.to_owned(), text(value));
        }
    }
    for key in ["language", "difficulty"] {
        if let Some(value) = row.extra.get(key).and_then(Value::as_str) {
            metadata.insert(key.to_owned(), text(value));
        }
    }
    let seconds =
        |seconds: f64| Table::from_iter([("timeout_sec".to_owned(), toml::Value::Float(seconds))]);
    let environment = Table::from_iter([
        ("build_timeout_sec".to_owned(), toml::Value::Float(1800.0)),
        ("cpus".to_owned(), toml::Value::Integer(1)),
        ("memory_mb".to_owned(), toml::Value::Integer(4096)),
        ("storage_mb".to_owned(), toml::Value::Integer(10240)),
    ]);
    let org = row.repo.rsplit('/').nth(1).map_or_else(|| "swe".to_owned(), dir_name);
    let name = format!("{org}/{}", dir_name(&row.instance_id));
    let task = Table::from_iter([("name".to_owned(), text(&name))]);
    let document = Table::from_iter([
        ("schema_version".to_owned(), text("1.1")),
        ("task".to_owned(), task.into()),
        ("metadata".to_owned(), metadata.into()),
        ("verifier".to_owned(), seconds(3000.0).into()),
        ("agent".to_owned(), seconds(3000.0).into()),
        ("environment".to_owned(), environment.into()),
    ]);
    toml::to_string(&document).map_err(|error| error.to_string())
}

fn dockerfile(row: &TaskInstance) -> String {
    if let Some(image) = row.image() {
        return format!("FROM {}\nWORKDIR /testbed\n", one_line(image));
    }
    if !row.files.is_empty() {
        return "FROM python:3.11-slim\nRUN apt-get update && apt-get install -y git patch\n\
                COPY repo /testbed\nWORKDIR /testbed\n"
            .to_owned();
    }
    let config = |key: &str| match row.install_config.extra.get(key) {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => {
            texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    let python = config("python").first().cloned().unwrap_or_else(|| "3.11".to_owned());
    let mut text = format!(
        "FROM python:{}\nRUN apt-get update && apt-get install -y git patch\n",
        one_line(&python)
    );
    let url = if row.repo.contains("://") {
        row.repo.clone()
    } else {
        format!("https://github.com/{}.git", row.repo)
    };
    let _ = writeln!(text, "RUN git clone {} /testbed", quote(&one_line(&url)));
    text += "WORKDIR /testbed\n";
    if !row.base_commit.is_empty() {
        let _ = writeln!(text, "RUN git checkout {}", quote(&one_line(&row.base_commit)));
    }
    for package in config("pip_packages") {
        let _ = writeln!(text, "RUN pip install {}", quote(&one_line(&package)));
    }
    for command in config("pre_install").iter().chain(&config("install")) {
        let _ = writeln!(text, "RUN {}", one_line(command));
    }
    text
}

fn test_script(row: &TaskInstance) -> String {
    let config = &row.install_config;
    let mut command = config.test_cmd.trim().to_owned();
    if command.is_empty() {
        "python -m pytest -rA".clone_into(&mut command);
    }
    // The results are read from the lines that these options print.
    if command.contains("pytest") && !command.contains("-rA") {
        command += " -rA";
    } else if command.contains("unittest") && !command.contains(" -v") {
        command += " -v";
    }
    let files: Vec<String> = test_files(&row.test_patch).iter().map(|path| quote(path)).collect();
    TEST_SH
        .replace("@FILES@", &files.join(" "))
        .replace("@BASE@", &quote(&row.base_commit))
        .replace("@COMMAND@", &command)
}

/// The files that a patch leaves behind.
fn test_files(patch: &str) -> Vec<String> {
    let mut files: Vec<String> = patch
        .lines()
        .filter_map(|line| line.strip_prefix("+++ b/"))
        .map(|path| path.split('\t').next().unwrap_or(path).trim_end().to_owned())
        .collect();
    files.dedup();
    files
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// A word of the shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
