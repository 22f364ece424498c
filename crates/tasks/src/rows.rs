//! SWE-bench and SWE-rebench rows as JSON lines: a file, or a directory of `*.jsonl`. Other
//! formats are made such files by [`crate::import`].

mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use patchwright_core::{TaskError, TaskInstance};

pub use writer::RowWriter;

/// Longest row that is read, in bytes.
pub const MAX_ROW_BYTES: u64 = 64 << 20;

/// Reads rows one at a time, over all files of a task set. Ends after its first error.
pub struct RowReader {
    /// Files still to come, the next one last.
    files: Vec<PathBuf>,
    current: Option<(PathBuf, BufReader<File>)>,
    line: usize,
    /// Where each `instance_id` was seen.
    seen: BTreeMap<String, String>,
    failed: bool,
}

impl RowReader {
    /// Opens a file, or a directory of `*.jsonl` files (not its subdirectories), read in the order
    /// of their names.
    ///
    /// # Errors
    /// [`TaskError::Io`] when there is no such file, or no `*.jsonl` file in the directory.
    pub fn open(path: &Path) -> Result<Self, TaskError> {
        let mut files = if path.is_dir() { row_files(path)? } else { vec![path.to_owned()] };
        files.sort_unstable_by(|a, b| b.cmp(a));
        let mut reader =
            Self { files, current: None, line: 0, seen: BTreeMap::new(), failed: false };
        reader.next_file()?;
        Ok(reader)
    }

    fn next_file(&mut self) -> Result<(), TaskError> {
        self.line = 0;
        self.current = match self.files.pop() {
            None => None,
            Some(path) => {
                let file = File::open(&path).map_err(|e| io("opening", &path, e))?;
                Some((path, BufReader::new(file)))
            }
        };
        Ok(())
    }

    fn next_row(&mut self) -> Result<Option<TaskInstance>, TaskError> {
        let mut bytes = Vec::new();
        while let Some((path, reader)) = &mut self.current {
            bytes.clear();
            let read = reader.by_ref().take(MAX_ROW_BYTES + 1).read_until(b'\n', &mut bytes);
            if read.map_err(|e| io("reading", path, e))? == 0 {
                self.next_file()?;
                continue;
            }
            self.line += 1;
            let error = |reason: String| TaskError::Row {
                path: path.display().to_string(),
                line: self.line,
                reason,
            };
            if bytes.len() as u64 > MAX_ROW_BYTES {
                return Err(error(format!("the row is longer than {MAX_ROW_BYTES} bytes")));
            }
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let instance = parse(&bytes).map_err(error)?;
            let place = format!("{}:{}", path.display(), self.line);
            if let Some(earlier) = self.seen.get(&instance.instance_id) {
                let id = &instance.instance_id;
                return Err(error(format!("instance_id: {id} was already at {earlier}")));
            }
            self.seen.insert(instance.instance_id.clone(), place);
            return Ok(Some(instance));
        }
        Ok(None)
    }
}

impl Iterator for RowReader {
    type Item = Result<TaskInstance, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_row();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Reads a whole task set.
///
/// # Errors
/// [`TaskError::Row`] with file, line and field of the first row that cannot be used, also for an
/// `instance_id` that came before; [`TaskError::Io`] when there is nothing to read.
pub fn read_task_set(path: &Path) -> Result<Vec<TaskInstance>, TaskError> {
    RowReader::open(path)?.collect()
}

/// Writes a task set as one file, one row a line, whole or not at all. Returns the number of rows.
///
/// # Errors
/// [`TaskError::Io`].
pub fn write_task_set<'a>(
    path: &Path,
    instances: impl IntoIterator<Item = &'a TaskInstance>,
) -> Result<usize, TaskError> {
    let mut writer = RowWriter::create(path)?;
    for instance in instances {
        writer.write(instance)?;
    }
    writer.finish()
}

fn row_files(dir: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let entries = std::fs::read_dir(dir).map_err(|e| io("reading", dir, e))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| io("reading", dir, e))?.path();
        if path.extension().is_some_and(|e| e == "jsonl") && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        let none = std::io::Error::new(std::io::ErrorKind::NotFound, "no *.jsonl file in it");
        return Err(io("reading", dir, none));
    }
    Ok(files)
}

/// The reason of an error starts with the field's path, where there is one.
pub(crate) fn parse(bytes: &[u8]) -> Result<TaskInstance, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let instance: TaskInstance =
        serde_path_to_error::deserialize(&mut json).map_err(|e| describe(&e))?;
    json.end().map_err(|e| format!("more than one JSON value on the line: {e}"))?;
    check(&instance)?;
    Ok(instance)
}

/// Refuses an instance that nothing can be done with.
pub(crate) fn check(instance: &TaskInstance) -> Result<(), String> {
    for (field, value) in [("instance_id", &instance.instance_id), ("repo", &instance.repo)] {
        if value.trim().is_empty() {
            return Err(format!("{field}: it is empty"));
        }
    }
    Ok(())
}

pub(crate) fn describe(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let text = error.inner().to_string();
    // Serde counts lines within the row; the row is one line, and its number is said elsewhere.
    let text = match text.rsplit_once(" at line ") {
        Some((text, place)) => match place.rsplit_once(' ') {
            Some((_, column)) => format!("{text} (column {column})"),
            None => text.to_owned(),
        },
        None => text,
    };
    match error.path().to_string().as_str() {
        // Nothing was entered yet.
        "." | "?" => text,
        path => format!("{path}: {text}"),
    }
}

pub(crate) fn io(doing: &str, path: &Path, source: std::io::Error) -> TaskError {
    TaskError::Io { context: format!("{doing} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{read_task_set, write_task_set};

    const ROW: &str = r#"{"instance_id":"ID","repo":"org/r","base_commit":"abc","problem_statement":"p","FAIL_TO_PASS":["t"],"PASS_TO_PASS":"[\"u\", \"v\"]","hints_text":null,"meta":{"is_lite":true},"install_config":{"test_cmd":"pytest","python":"3.9","pip_packages":null}}"#;

    fn row(id: &str) -> String {
        ROW.replace("ID", id)
    }

    fn read(text: &str) -> Result<usize, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, text).unwrap();
        let home = dir.path().display().to_string();
        read_task_set(&path).map(|rows| rows.len()).map_err(|e| e.to_string().replace(&home, ""))
    }

    #[test]
    fn rows_survive_reading_and_writing() {
        let dir = tempfile::tempdir().unwrap();
        for (name, ids) in [("b.jsonl", ["3", "4"]), ("a.jsonl", ["1", "2"])] {
            let text = format!("{}\n\n{}\n", row(ids[0]), row(ids[1]));
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        std::fs::write(dir.path().join("notes.txt"), "not a row").unwrap();
        let rows = read_task_set(dir.path()).unwrap();
        let ids: Vec<&str> = rows.iter().map(|r| r.instance_id.as_str()).collect();
        assert_eq!(ids, ["1", "2", "3", "4"]);
        assert_eq!(rows[0].pass_to_pass, ["u", "v"]);
        assert_eq!(rows[0].extra["meta"]["is_lite"], true);
        assert_eq!(rows[0].install_config.extra["python"], "3.9");

        let copy = dir.path().join("new/copy.jsonl");
        assert_eq!(write_task_set(&copy, &rows).unwrap(), 4);
        assert_eq!(read_task_set(&copy).unwrap(), rows);
        assert_eq!(std::fs::read_dir(copy.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_bad_row_is_named_by_file_line_and_field() {
        let check = |bad: &str, expected: &str| {
            let error = read(&format!("{}\n\n{bad}\n", row("good"))).unwrap_err();
            assert!(error.starts_with("/rows.jsonl:3: "), "{error}");
            assert!(error.contains(expected), "{error}");
            assert_eq!(error.lines().count(), 1);
        };
        check(&row("x").replace("\"repo\":\"org/r\",", ""), "missing field `repo`");
        check(&row("x").replace("\"org/r\"", "7"), "repo: invalid type: integer `7`");
        check(&row("x").replace("[\"t\"]", "7"), "FAIL_TO_PASS: ");
        check(
            &row("x").replace(r#""[\"u\", \"v\"]""#, "\"u\""),
            "PASS_TO_PASS: expected a list, or",
        );
        check(&row("x").replace("\"pytest\"", "[]"), "install_config.test_cmd: invalid type");
        check(&row("").replace("org/r", "r"), "instance_id: it is empty");
        check(&row("good"), "instance_id: good was already at /rows.jsonl:1");
        check("{", "EOF while parsing");
        check("nonsense", "expected");
        check(&format!("{} {}", row("x"), row("y")), "more than one JSON value");
        check("\u{fffd}", "expected value");
    }

    #[test]
    fn missing_files_say_so() {
        let error = read_task_set(Path::new("/no/such/rows.jsonl")).unwrap_err().to_string();
        assert!(error.contains("opening /no/such/rows.jsonl"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        assert!(read_task_set(dir.path()).unwrap_err().to_string().contains("no *.jsonl file"));
        assert_eq!(read("").unwrap(), 0);
    }
}
