//! Reading a task directory.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use patchwright_core::TaskInstance;
use serde_json::Value;

use super::{
    FIELD, Files, HarborError, MAX_FILE_BYTES, MAX_FILES, MAX_TASK_BYTES, ROW_FILE, TaskFile,
    render, to_value,
};
use crate::import::instance_of;

/// Reads a Harbor task directory as an instance.
///
/// # Errors
/// [`HarborError`] when `instruction.md` or `task.toml` is missing or wrong, when a file is a link,
/// or when a bound of this module is passed.
pub fn read_task(dir: &Path) -> Result<TaskInstance, HarborError> {
    let error = |reason: String| HarborError { path: dir.to_owned(), reason };
    let mut files = Files::new();
    let mut bytes_left = MAX_TASK_BYTES;
    collect(dir, "", &mut files, &mut bytes_left).map_err(error)?;
    let name = dir
        .canonicalize()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .unwrap_or_else(|| "task".to_owned());
    let mut instance = interpret(&name, &files).map_err(error)?;
    if render::render(&instance).as_ref() != Ok(&files) {
        files.remove(ROW_FILE);
        instance.extra.insert(FIELD.to_owned(), to_value(&files));
    }
    Ok(instance)
}

fn collect(dir: &Path, below: &str, files: &mut Files, bytes_left: &mut u64) -> Result<(), String> {
    let at =
        |error: std::io::Error| format!("{}: {error}", if below.is_empty() { "." } else { below });
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at)? {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| format!("{below}: a file name that is no UTF-8"))?;
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        entries.push((path, entry));
    }
    for (path, entry) in entries {
        let at = |error: std::io::Error| format!("{path}: {error}");
        let kind = entry.file_type().map_err(at)?;
        if kind.is_dir() {
            if path.split('/').count() > 32 {
                return Err(format!("{path}: deeper than 32 directories"));
            }
            collect(&entry.path(), &path, files, bytes_left)?;
            continue;
        }
        if !kind.is_file() {
            return Err(format!("{path}: it is a link or a special file; a task has plain files"));
        }
        if files.len() >= MAX_FILES {
            return Err(format!("the task has more than {MAX_FILES} files"));
        }
        let limit = MAX_FILE_BYTES.min(*bytes_left);
        let mut bytes = Vec::new();
        let file = File::open(entry.path()).map_err(at)?;
        let executable = file.metadata().map_err(at)?.permissions().mode() & 0o111 != 0;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(at)?;
        if bytes.len() as u64 > limit {
            return Err(format!(
                "{path}: a file has at most {MAX_FILE_BYTES} bytes, a task {MAX_TASK_BYTES}"
            ));
        }
        *bytes_left -= bytes.len() as u64;
        files.insert(path, TaskFile { bytes, executable });
    }
    Ok(())
}

/// What the files of a directory say, without the field that keeps them.
pub(super) fn interpret(dir_name: &str, files: &Files) -> Result<TaskInstance, String> {
    let text = |path: &str| -> Result<Option<&str>, String> {
        let Some(file) = files.get(path) else { return Ok(None) };
        let text = std::str::from_utf8(&file.bytes);
        text.map(Some).map_err(|_| format!("{path}: not UTF-8 text"))
    };
    let instruction = text("instruction.md")?.ok_or_else(|| {
        if files.keys().any(|path| path.starts_with("steps/")) {
            "instruction.md: missing; tasks of several steps are not supported".to_owned()
        } else {
            "instruction.md: missing".to_owned()
        }
    })?;
    let settings = text("task.toml")?.ok_or("task.toml: missing")?;
    let settings: toml::Table =
        settings.parse().map_err(|error: toml::de::Error| format!("task.toml: {error}"))?;
    let mut instance = match row_of(files)? {
        Some(row) => row,
        None => plain(dir_name, &settings, files),
    };
    instruction.clone_into(&mut instance.problem_statement);
    if let Some(patch) = text("solution/patch.diff")? {
        patch.clone_into(&mut instance.patch);
    }
    let image = settings.get("environment").and_then(|table| table.get("docker_image"));
    if let (None, Some(image)) = (instance.image(), image.and_then(toml::Value::as_str)) {
        instance.extra.insert("image_name".to_owned(), Value::String(image.to_owned()));
    }
    Ok(instance)
}

/// The row that a directory carries: ours, or the `config.json` of Harbor's adapters for SWE-bench
/// and its relatives.
fn row_of(files: &Files) -> Result<Option<TaskInstance>, String> {
    if let Some(file) = files.get(ROW_FILE) {
        let row = instance_of(&file.bytes);
        return row.map(Some).map_err(|reason| format!("{ROW_FILE}: {reason}"));
    }
    // Other tasks have other files of this name.
    Ok(files.get("tests/config.json").and_then(|file| instance_of(&file.bytes).ok()))
}

/// A row for a task that knows nothing of repositories: its tests decide by `tests/test.sh`.
fn plain(dir_name: &str, settings: &toml::Table, files: &Files) -> TaskInstance {
    let metadata = |key: &str| {
        let value = settings.get("metadata").and_then(|table| table.get(key));
        value.and_then(toml::Value::as_str).filter(|text| !text.trim().is_empty())
    };
    let package = settings.get("task").and_then(|table| table.get("name"));
    let package = package.and_then(toml::Value::as_str).filter(|name| !name.trim().is_empty());
    let repo = metadata("repo").map(str::to_owned);
    let mut instance = TaskInstance {
        instance_id: metadata("instance_id").unwrap_or(dir_name).to_owned(),
        repo: repo
            .or_else(|| package.map(|name| format!("harbor:{name}")))
            .unwrap_or_else(|| format!("harbor:{dir_name}")),
        base_commit: metadata("base_commit").unwrap_or_default().to_owned(),
        created_at: metadata("created_at").unwrap_or_default().to_owned(),
        version: metadata("version").unwrap_or_default().to_owned(),
        ..TaskInstance::default()
    };
    if files.contains_key("tests/test.sh") {
        "bash /tests/test.sh".clone_into(&mut instance.install_config.test_cmd);
        "harbor".clone_into(&mut instance.install_config.log_parser);
    }
    instance
}
