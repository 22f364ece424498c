//! A gateway that runs beside a test.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::shown;

/// What an operator's agents bear.
const TOKEN: &str = "known-to-the-operator-alone";

/// A gateway that runs. Killed when dropped.
pub struct Running {
    /// The process.
    pub child: Child,
    said: BufReader<std::process::ChildStderr>,
    url: String,
}

impl Running {
    /// Starts it, and waits until it listens.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchwright"))
            .args(["gateway", "--bind", "127.0.0.1:0", "--json"])
            .args(args)
            .current_dir(dir)
            .env("NO_COLOR", "1")
            .env("PATCHWRIGHT_TOKEN", TOKEN)
            .env("XDG_CACHE_HOME", dir.join("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let said = BufReader::new(child.stderr.take().expect("is piped"));
        let mut running = Self { child, said, url: String::new() };
        let mut all = String::new();
        loop {
            let start = all.len();
            assert_ne!(running.said.read_line(&mut all).unwrap(), 0, "no address: {all}");
            let mut words = all[start..].split_whitespace();
            if let Some((url, _)) = words.find_map(|word| word.split_once("/episodes;")) {
                url.clone_into(&mut running.url);
                return running;
            }
        }
    }

    /// Runs `gateway_agent.py`; what it said.
    pub fn agent(&self, mode: &str) -> String {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/tests/gateway_agent.py");
        let output = Command::new("python3")
            .arg(program)
            .args([&*self.url, mode])
            .env("PATCHWRIGHT_TOKEN", TOKEN)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", shown(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its exit code, standard output and standard error.
    pub fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut said) = (String::new(), String::new());
        let mut stdout = self.child.stdout.take().expect("is piped");
        stdout.read_to_string(&mut out).unwrap();
        self.said.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), out, said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
