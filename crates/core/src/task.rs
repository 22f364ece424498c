//! The task instance: a repository at a commit, an issue, and hidden tests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

/// A row of a task set in the schema of SWE-bench and SWE-rebench, plus [`TaskInstance::files`].
///
/// Fields that a row does not have are empty; fields that are not known are kept in `extra`, so
/// that reading and writing loses nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TaskInstance {
    /// Unique name, such as `org__repo-123`.
    pub instance_id: String,
    /// `org/name`, a local directory, or a git URL.
    pub repo: String,
    /// The commit that the agent starts from; empty for a plain directory.
    #[serde(default)]
    pub base_commit: String,
    /// The gold patch: a unified diff that solves the task. Never shown to the agent.
    #[serde(default)]
    pub patch: String,
    /// A unified diff that adds the hidden tests.
    #[serde(default)]
    pub test_patch: String,
    /// The issue text.
    pub problem_statement: String,
    /// Comments on the issue from before the fix.
    #[serde(default, deserialize_with = "null_as_default")]
    pub hints_text: String,
    /// When the fix was made, ISO 8601.
    #[serde(default, deserialize_with = "null_as_default")]
    pub created_at: String,
    /// The repository's version.
    #[serde(default, deserialize_with = "null_as_default")]
    pub version: String,
    /// Commit whose environment was installed.
    #[serde(default, deserialize_with = "null_as_default")]
    pub environment_setup_commit: String,
    /// Ids of the tests that fail before and must pass after.
    #[serde(rename = "FAIL_TO_PASS", deserialize_with = "string_list")]
    pub fail_to_pass: Vec<String>,
    /// Ids of the tests that pass before and must still pass.
    #[serde(rename = "PASS_TO_PASS", deserialize_with = "string_list")]
    pub pass_to_pass: Vec<String>,
    /// How the environment is built and the tests are run.
    #[serde(default, deserialize_with = "null_as_default")]
    pub install_config: InstallConfig,
    /// The repository itself, path to text, for tasks that carry their files (embedded sets).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Every other field of the row, as it was.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

impl TaskInstance {
    /// The container image that holds the task's environment, if the row names one: `image_name`
    /// or `docker_image` of SWE-rebench.
    pub fn image(&self) -> Option<&str> {
        ["image_name", "docker_image"]
            .iter()
            .filter_map(|field| self.extra.get(*field)?.as_str())
            .find(|reference| !reference.is_empty())
    }
}

/// The part of SWE-rebench's `install_config` that running tests needs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct InstallConfig {
    /// The command that runs the tests, in the repository; the test files are appended.
    #[serde(default, deserialize_with = "null_as_default")]
    pub test_cmd: String,
    /// How its output is read: `unittest` (results per id over a private channel) or `pytest`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub log_parser: String,
    /// Host directory with installed packages, mounted read-only and put on `PYTHONPATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_packages: Option<PathBuf>,
    /// Every other field, as it was.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Where a repository's files come from.
#[derive(Debug, Clone, PartialEq)]
pub enum RepoSource {
    /// Path to text, held in memory.
    Files(std::sync::Arc<BTreeMap<String, String>>),
    /// A directory of the host; read, never written. Its `.git` is not shown inside.
    Directory(PathBuf),
    /// The root's own directory at the sandbox's working directory, such as `/testbed` of a
    /// container image.
    InRoot,
}

/// A row that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Row and reason.
    #[error("{path}:{line}: {reason}")]
    Row {
        /// The file.
        path: String,
        /// Line number from 1.
        line: usize,
        /// The field and what is wrong with it.
        reason: String,
    },
    /// An instance cannot be prepared (repository missing, patch does not apply …).
    #[error("{instance_id}: {reason}")]
    Instance {
        /// The instance.
        instance_id: String,
        /// What is wrong.
        reason: String,
    },
    /// Tasks could not be validated by running them: the sandbox or its python3 failed.
    #[error("validation: {0}")]
    Validation(String),
    /// An operation of the host failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// SWE-rebench has lists; SWE-bench has the list as a JSON string.
fn string_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum ListOrText {
        List(Vec<String>),
        Text(String),
    }
    match ListOrText::deserialize(deserializer)? {
        ListOrText::List(list) => Ok(list),
        ListOrText::Text(text) => serde_json::from_str(&text).map_err(|error| {
            serde::de::Error::custom(format!(
                "expected a list, or a JSON list in a string: {error}"
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::TaskInstance;

    #[test]
    fn lists_and_json_strings_are_the_same() {
        let list = r#"{"instance_id":"a","repo":"r","problem_statement":"p","FAIL_TO_PASS":["x"],"PASS_TO_PASS":[],"other":3}"#;
        let text = r#"{"instance_id":"a","repo":"r","problem_statement":"p","FAIL_TO_PASS":"[\"x\"]","PASS_TO_PASS":"[]","other":3,"hints_text":null}"#;
        let list: TaskInstance = serde_json::from_str(list).unwrap();
        let text: TaskInstance = serde_json::from_str(text).unwrap();
        assert_eq!(list, text);
        let again: TaskInstance =
            serde_json::from_str(&serde_json::to_string(&list).unwrap()).unwrap();
        assert_eq!(again, list);
        assert_eq!(again.extra["other"], 3);
    }
}
