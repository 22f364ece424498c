//! How the tests of a task are run: with `unittest` or `pytest`, by a runner of our own.

use std::collections::{BTreeMap, BTreeSet};

use patchwright_core::{FileChange, TaskInstance};

use super::channel::Nonce;
use super::pristine::Pristine;
use crate::command::split_words;
use crate::environment::SITE_PACKAGES;

/// Runs what [`COMPILE`] made of a program: the first message. Only built-in modules are imported.
const BOOT: &str = "import sys, marshal, posix\n\
    def take(n):\n    \
        data = b''\n    \
        while len(data) < n:\n        \
            data += posix.read(0, n - len(data)) or sys.exit(9)\n    \
        return data\n\
    exec(marshal.loads(take(int(take(10)))))\n";
/// Compiles programs, parted by NULs, to messages. A quarter of a run would be spent on that.
const COMPILE: &str = "import sys, marshal\n\
    for text in sys.stdin.buffer.read().split(b'\\0'):\n    \
        code = marshal.dumps(compile(text, '<string>', 'exec'))\n    \
        sys.stdout.buffer.write(b'%010d' % len(code) + code)\n";
const UNITTEST: &str = concat!(include_str!("supervisor.py"), include_str!("unittest_tests.py"));
const PYTEST: &str = concat!(include_str!("supervisor.py"), include_str!("pytest_tests.py"));
const AUDIT: &str = include_str!("audit.py");

/// What the supervisor is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Run the tests; if all pass, run their twins at once where the first run left no trace.
    Quick,
    /// Run the tests; if all pass, ask for a second sandbox.
    Slow,
    /// Run the twins: the second sandbox.
    Audit,
    /// Run the tests and believe them. For tests of the grader.
    Believe,
    /// The same, all in one process. For tests of the grader.
    Bare,
}

/// The tests of a task and what runs them.
pub(super) struct Runner {
    kind: Kind,
    /// `FAIL_TO_PASS` and `PASS_TO_PASS`, sorted; a result is given by its index.
    ids: Vec<String>,
    /// The files that hold them.
    test_files: BTreeSet<String>,
    /// Indices of those of `FAIL_TO_PASS`.
    required: BTreeSet<usize>,
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
        pristine: &Pristine,
        tests: &[FileChange],
    ) -> Result<Self, String> {
        let ids: BTreeSet<String> =
            task.fail_to_pass.iter().chain(&task.pass_to_pass).cloned().collect();
        let ids: Vec<String> = ids.into_iter().collect();
        if let Some(id) = ids.iter().find(|id| id.contains('\0')) {
            return Err(format!("the test id {id:?} holds a NUL"));
        }
        let fails: BTreeSet<&String> = task.fail_to_pass.iter().collect();
        let required =
            ids.iter().enumerate().filter(|(_, id)| fails.contains(id)).map(|(i, _)| i).collect();
        let config = &task.install_config;
        let command = split_words(&config.test_cmd)
            .map_err(|reason| format!("install_config.test_cmd: {reason}"))?;
        let has = |path: &str| {
            let changed = tests.iter().find(|change| change.path == path);
            changed.map_or_else(|| pristine.has(path), |change| change.new.is_some())
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
        Ok(Self { kind, ids, test_files, required, site_packages: config.site_packages.is_some() })
    }

    /// The tests, by index.
    pub(super) fn ids(&self) -> &[String] {
        &self.ids
    }

    /// The files that hold the tests.
    pub(super) fn test_files(&self) -> &BTreeSet<String> {
        &self.test_files
    }

    /// How the programs of [`Runner::command`] are compiled for the interpreter of a sandbox:
    /// program with arguments, and what it reads on standard input. It prints [`Compiled`].
    pub(super) fn compiler(&self, image: bool) -> (Vec<String>, Vec<u8>) {
        let program = match self.kind {
            Kind::Unittest(_) => UNITTEST,
            Kind::Pytest(_) => PYTEST,
        };
        (self.python(image, COMPILE), [program, AUDIT].join("\0").into_bytes())
    }

    /// Whether the tests run with pytest: that is another program.
    pub(super) fn is_pytest(&self) -> bool {
        matches!(self.kind, Kind::Pytest(_))
    }

    /// An interpreter that finds the task's packages, and those of its site only where they are
    /// the task's.
    fn python(&self, image: bool, program: &str) -> Vec<String> {
        let isolated = match self.kind {
            Kind::Unittest(_) => !image,
            Kind::Pytest(_) => self.site_packages,
        };
        let flags: &[&str] = if isolated { &["-s", "-S", "-B"] } else { &["-s", "-B"] };
        let argv = [&["python3"], flags, &["-c", program]].concat();
        argv.into_iter().map(str::to_owned).collect()
    }

    /// Program with arguments, and the messages it reads on standard input.
    ///
    /// In the end the nonce comes once more, for the time when every child is dead.
    pub(super) fn command(&self, call: &Call<'_>) -> (Vec<String>, Vec<u8>) {
        let mode = match call.mode {
            Mode::Quick => "quick",
            Mode::Slow => "slow",
            Mode::Audit => "audit",
            Mode::Believe => "",
            Mode::Bare => "bare",
        };
        let seconds = call.seconds.to_string();
        let site_packages = if self.site_packages { SITE_PACKAGES } else { "" };
        // No path of a repository holds an empty or a dot component.
        let files = self.test_files.iter().map(String::as_str).collect::<Vec<_>>().join("/./");
        let mut fields = vec![mode, &seconds, call.workdir, site_packages, &files];
        let num_options;
        match &self.kind {
            Kind::Unittest(tests) => {
                for test in tests {
                    match test {
                        Some(test) => fields.extend(test.iter().map(String::as_str)),
                        // Holds the index; the runner finds no such file.
                        None => fields.extend(["", "", ""]),
                    }
                }
            }
            Kind::Pytest(options) => {
                num_options = options.len().to_string();
                fields.push(&num_options);
                fields.extend(options.iter().chain(&self.ids).map(String::as_str));
            }
        }
        let nonce = call.nonce.as_str();
        let audit = self.audit(call.seed);
        let fields = fields.join("\0");
        let mut stdin = call.compiled.program.clone();
        push_message(&mut stdin, fields.as_bytes());
        if matches!(call.mode, Mode::Quick | Mode::Audit) {
            stdin.extend(&call.compiled.audit);
            push_message(&mut stdin, nonce.as_bytes());
            push_message(&mut stdin, audit.as_bytes());
        }
        push_message(&mut stdin, nonce.as_bytes());
        (self.python(call.image, BOOT), stdin)
    }

    /// What the program that changes the tests is told: a seed, and where each test stands.
    fn audit(&self, seed: u64) -> String {
        let mut fields = vec![seed.to_string()];
        for (index, id) in self.ids.iter().enumerate() {
            let place = match &self.kind {
                Kind::Unittest(tests) => match &tests[index] {
                    Some(test) => test.join("::"),
                    None => continue,
                },
                // The parameters of a test share its function.
                Kind::Pytest(_) => id.split('[').next().unwrap_or_default().to_owned(),
            };
            let mark = if self.required.contains(&index) { "!" } else { "-" };
            fields.push(format!("{index} {mark} {place}"));
        }
        fields.join("\0")
    }
}

/// Digits of a message's length, which comes before it.
const LENGTH_DIGITS: usize = 10;

fn push_message(stdin: &mut Vec<u8>, message: &[u8]) {
    stdin.extend(format!("{:010}", message.len()).into_bytes());
    stdin.extend(message);
}

/// The programs for one interpreter, each as a message with its length.
pub(super) struct Compiled {
    program: Vec<u8>,
    audit: Vec<u8>,
}

impl Compiled {
    /// Reads what [`Runner::compiler`] printed.
    pub(super) fn read(printed: &[u8]) -> Option<Self> {
        let message = |bytes: &[u8]| {
            let digits = std::str::from_utf8(bytes.get(..LENGTH_DIGITS)?).ok()?;
            let end = LENGTH_DIGITS.checked_add(digits.parse::<usize>().ok()?)?;
            Some(bytes.get(..end)?.to_vec())
        };
        let program = message(printed)?;
        let audit = message(&printed[program.len()..])?;
        (program.len() + audit.len() == printed.len()).then_some(Self { program, audit })
    }
}

/// One call of the supervisor.
pub(super) struct Call<'a> {
    pub mode: Mode,
    pub workdir: &'a str,
    pub nonce: &'a Nonce,
    pub seconds: f64,
    pub seed: u64,
    pub compiled: &'a Compiled,
    /// The root is an image's, whose packages are the task's.
    pub image: bool,
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
