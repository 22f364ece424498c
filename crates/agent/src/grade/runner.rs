//! How the tests of a task are run: with `unittest` or `pytest`, by a runner of our own.

use std::collections::{BTreeMap, BTreeSet};

use patchwright_core::{FileChange, RepoSource, TaskInstance};

use super::channel::Nonce;
use super::pristine;
use crate::command::split_words;
use crate::environment::SITE_PACKAGES;

const UNITTEST_RUNNER: &str = include_str!("unittest_runner.py");
const PYTEST_RUNNER: &str = include_str!("pytest_runner.py");

/// The tests of a task and what runs them.
pub(super) struct Runner {
    kind: Kind,
    /// `FAIL_TO_PASS` and `PASS_TO_PASS`, sorted; a result is given by its index.
    ids: Vec<String>,
    /// The files that hold them.
    test_files: BTreeSet<String>,
    site_packages: bool,
}

enum Kind {
    /// Each test as file, class and method; `None` for an id that names no test.
    Unittest(Vec<Option<[String; 3]>>),
    /// Options for pytest.
    Pytest(Vec<String>),
}

impl Runner {
    /// Reads `install_config`. The error names the field.
    pub(super) fn new(
        task: &TaskInstance,
        repo: &RepoSource,
        tests: &[FileChange],
    ) -> Result<Self, String> {
        let ids: BTreeSet<String> =
            task.fail_to_pass.iter().chain(&task.pass_to_pass).cloned().collect();
        let ids: Vec<String> = ids.into_iter().collect();
        if let Some(id) = ids.iter().find(|id| id.contains('\0')) {
            return Err(format!("the test id {id:?} holds a NUL"));
        }
        let config = &task.install_config;
        let command = split_words(&config.test_cmd)
            .map_err(|reason| format!("install_config.test_cmd: {reason}"))?;
        let has = |path: &str| {
            let changed = tests.iter().find(|change| change.path == path);
            changed.map_or_else(|| pristine::has(repo, path), |change| change.new.is_some())
        };
        let (kind, test_files) = match config.log_parser.as_str() {
            "unittest" => {
                let options = options_after(&command, "unittest");
                if !options.is_some_and(|o| o.iter().all(|o| matches!(o.as_str(), "-v" | "-q"))) {
                    return Err(format!(
                        "install_config.test_cmd is {:?}; with log_parser unittest it is empty or \
                         `python3 -m unittest`, with -v or -q at most",
                        config.test_cmd
                    ));
                }
                let tests: Vec<_> = ids.iter().map(|id| unittest_id(id, &has)).collect();
                let files = tests.iter().flatten().map(|[file, _, _]| file.clone()).collect();
                (Kind::Unittest(tests), files)
            }
            "pytest" => {
                let Some(options) = options_after(&command, "pytest") else {
                    return Err(format!(
                        "install_config.test_cmd is {:?}; with log_parser pytest it is empty, or \
                         `pytest` or `python3 -m pytest` with options",
                        config.test_cmd
                    ));
                };
                let file = |id: &String| id.split("::").next().unwrap_or_default().to_owned();
                (Kind::Pytest(options), ids.iter().map(file).collect())
            }
            other => {
                return Err(format!(
                    "install_config.log_parser is {other:?}; it must be \"unittest\" or \"pytest\""
                ));
            }
        };
        Ok(Self { kind, ids, test_files, site_packages: config.site_packages.is_some() })
    }

    /// The tests, by index.
    pub(super) fn ids(&self) -> &[String] {
        &self.ids
    }

    /// The files that hold the tests.
    pub(super) fn test_files(&self) -> &BTreeSet<String> {
        &self.test_files
    }

    /// Program with arguments, and what it reads on standard input: fields that NULs part.
    pub(super) fn command(&self, workdir: &str, nonce: &Nonce) -> (Vec<String>, Vec<u8>) {
        let site_packages = if self.site_packages { SITE_PACKAGES } else { "" };
        let mut fields = vec![nonce.as_str(), workdir, site_packages];
        let num_options;
        let (flags, program): (&[&str], _) = match &self.kind {
            Kind::Unittest(tests) => {
                for test in tests {
                    match test {
                        Some(test) => fields.extend(test.iter().map(String::as_str)),
                        // Holds the index; the runner finds no such file.
                        None => fields.extend(["", "", ""]),
                    }
                }
                (&["-s", "-S", "-B"], UNITTEST_RUNNER)
            }
            Kind::Pytest(options) => {
                num_options = options.len().to_string();
                fields.push(&num_options);
                fields.extend(options.iter().chain(&self.ids).map(String::as_str));
                let flags: &[&str] =
                    if self.site_packages { &["-s", "-S", "-B"] } else { &["-s", "-B"] };
                (flags, PYTEST_RUNNER)
            }
        };
        let argv = [&["python3"], flags, &["-c", program]].concat();
        (argv.into_iter().map(str::to_owned).collect(), fields.join("\0").into_bytes())
    }
}

/// Environment of the runners: no randomness that a test could depend on.
pub(super) fn environment() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("PYTHONHASHSEED".to_owned(), "0".to_owned()),
        ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
    ])
}

/// What follows `tool` or `python -m tool`; an empty command has no options.
fn options_after(command: &[String], tool: &str) -> Option<Vec<String>> {
    match command {
        [] => Some(Vec::new()),
        [first, options @ ..] if first == tool => Some(options.to_vec()),
        [python, m, first, options @ ..]
            if python.starts_with("python") && m == "-m" && first == tool =>
        {
            Some(options.to_vec())
        }
        _ => None,
    }
}

/// File, class and method of `package.module.Class.method` or `path/module.py::Class::method`.
fn unittest_id(id: &str, has: &dyn Fn(&str) -> bool) -> Option<[String; 3]> {
    if let Some((file, rest)) = id.split_once("::") {
        let (class, method) = rest.split_once("::")?;
        return has(file).then(|| [file, class, method].map(str::to_owned));
    }
    let (rest, method) = id.rsplit_once('.')?;
    let (module, class) = rest.rsplit_once('.')?;
    let path = module.replace('.', "/");
    let file =
        [format!("{path}.py"), format!("{path}/__init__.py")].into_iter().find(|f| has(f))?;
    Some([file, class.to_owned(), method.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::{options_after, unittest_id};

    #[test]
    fn test_ids_of_unittest() {
        let has = |path: &str| ["test_a.py", "t/test_b.py", "t/c/__init__.py"].contains(&path);
        let triple = |id| unittest_id(id, &has).map(|t| t.join(" "));
        assert_eq!(triple("test_a.A.test_x").as_deref(), Some("test_a.py A test_x"));
        assert_eq!(triple("t.test_b.B.test_y").as_deref(), Some("t/test_b.py B test_y"));
        assert_eq!(triple("t.c.C.test_z").as_deref(), Some("t/c/__init__.py C test_z"));
        assert_eq!(triple("t/test_b.py::B::test_y").as_deref(), Some("t/test_b.py B test_y"));
        for id in ["", "x", "a.b", "no.such.C.m", "no.py::A::b", "test_a.py::A"] {
            assert_eq!(triple(id), None, "{id}");
        }
    }

    #[test]
    fn test_commands() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(options_after(&[], "pytest"), Some(vec![]));
        assert_eq!(options_after(&words("pytest -x"), "pytest"), Some(vec!["-x".to_owned()]));
        assert_eq!(options_after(&words("python3 -m pytest"), "pytest"), Some(vec![]));
        assert_eq!(options_after(&words("tox -e py"), "pytest"), None);
        assert_eq!(options_after(&words("python3 -m unittest"), "pytest"), None);
    }
}
