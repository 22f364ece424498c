//! Searching. Results are sorted, so that they do not depend on the order of a directory.

use patchwright_core::{ExecRequest, ExecStatus, SandboxError};

use super::{Fault, Told, Tool, lines_of};
use crate::profile::say;

impl Tool<'_> {
    pub(super) fn search_file(&mut self, term: &str, file: Option<&str>) -> Told {
        let path = self.path_of(file)?;
        let bytes = self.read(&path)?;
        let matches = String::from_utf8_lossy(&bytes)
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains(term))
            .map(|(at, line)| format!("{}:{line}", at + 1))
            .collect();
        let place = self.workspace.shown(&path).to_owned();
        Ok(self.found(term, &place, matches))
    }

    pub(super) fn search_dir(&mut self, term: &str, dir: Option<&str>) -> Told {
        let dir = dir.unwrap_or(".");
        let argv = ["grep", "-rnIFZ", "--exclude-dir=.git", "-e", term, "--", dir];
        let output = self.search(&argv)?;
        // `path NUL line:text`, one a line.
        let mut matches: Vec<(&str, usize, &str)> = output
            .lines()
            .filter_map(|line| {
                let (path, rest) = line.split_once('\0')?;
                let (number, text) = rest.split_once(':')?;
                Some((path.strip_prefix("./").unwrap_or(path), number.parse().ok()?, text))
            })
            .collect();
        matches.sort_unstable();
        let matches =
            matches.iter().map(|(path, line, text)| format!("{path}:{line}:{text}")).collect();
        let place = self.place(dir);
        Ok(self.found(term, &place, matches))
    }

    pub(super) fn find_file(&mut self, name: &str, dir: Option<&str>) -> Told {
        let dir = dir.unwrap_or(".");
        // A directory called `-x` must not read as an option.
        let start = if dir.starts_with('-') { format!("./{dir}") } else { dir.to_owned() };
        let argv = ["find", &start, "-name", ".git", "-prune", "-o", "-name", name, "-print0"];
        let output = self.search(&argv)?;
        let mut matches: Vec<String> = output
            .split('\0')
            .filter(|path| !path.is_empty())
            .map(|path| path.strip_prefix("./").unwrap_or(path).to_owned())
            .collect();
        matches.sort_unstable();
        let place = self.place(dir);
        Ok(self.found(name, &place, matches))
    }

    fn place(&self, dir: &str) -> String {
        let path = self.workspace.resolve(dir);
        self.workspace.shown(&path).to_owned()
    }

    /// Runs a search and gives what it printed. Finding nothing is no failure; complaints count
    /// only when there is nothing else.
    fn search(&mut self, argv: &[&str]) -> Told {
        let request = ExecRequest::argv(argv, &self.workspace.directory, self.timeout);
        let output = match self.sandbox.exec(&request) {
            Ok(output) => output,
            Err(SandboxError::Path { reason, .. }) => return Err(self.search_failed(&reason)),
            Err(error) => return Err(Fault::Broken(error)),
        };
        let complaint = match output.status {
            ExecStatus::Exited(0 | 1) => None,
            ExecStatus::Exited(_) if !output.stdout.is_empty() => None,
            ExecStatus::Exited(_) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            ExecStatus::TimedOut => Some(format!("it took more than {} s", self.timeout.as_secs())),
            ExecStatus::Signaled(signal) => Some(format!("ended by signal {signal}")),
        };
        match complaint.as_deref().map(str::trim_end) {
            None | Some("") => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Some(reason) => Err(self.search_failed(reason)),
        }
    }

    fn search_failed(&self, reason: &str) -> Fault {
        Fault::Said(say(&self.profile.texts.search_failed, &[("reason", reason.into())]))
    }

    fn found(&self, term: &str, place: &str, mut matches: Vec<String>) -> String {
        let texts = &self.profile.texts;
        if matches.is_empty() {
            return say(&texts.no_matches, &[("term", term.into()), ("place", place.into())]);
        }
        let num_matches = matches.len();
        let head = say(
            &texts.matches,
            &[("num_matches", num_matches.into()), ("term", term.into()), ("place", place.into())],
        );
        matches.truncate(self.profile.listing.num_matches_max);
        let num_more = num_matches - matches.len();
        let more = if num_more == 0 {
            String::new()
        } else {
            say(&texts.more_matches, &[("num_more", num_more.into())])
        };
        matches.insert(0, head);
        matches.push(more);
        lines_of(&matches)
    }
}
