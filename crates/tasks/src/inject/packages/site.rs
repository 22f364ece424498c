//! One package: its tests mapped, its bugs chosen and run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use patchwright_core::{RepoSource, SandboxProvider, TaskError, TaskInstance, stream};
use rand::seq::SliceRandom;

use super::tasks::{Found, TaskMaker};
use super::warm::{Bug, Coverage, Outcome, Warm};
use super::{PackageOptions, PackageReport, PackageSpec};
use crate::environment::{EnvironmentError, Pip, Watch, declared_test_requirements};
use crate::inject::{self, Mutation};
use crate::releases::pair::{Bench, Release, Setup, best_bench, fetch, is_volatile, runtime};
use crate::releases::trees::{TestPlaces, is_source, package_roots};
use crate::releases::{Refusal, ReleaseOptions};
use crate::validate::suite::{Suite, run_suite};

/// Bugs that are run by one warm process: enough to share its start.
const BATCH: usize = 64;
/// Candidates of one file; each holds the file's whole text.
const MAX_PER_FILE: usize = 400;

/// The next bugs to run for `missing` tasks, and the rest: about two of three become a task.
fn split<T>(left: &[T], missing: usize) -> Option<(&[T], &[T])> {
    let size = (missing + missing / 2 + 4).min(BATCH).min(left.len());
    (missing > 0 && size > 0).then(|| left.split_at(size))
}

/// What all packages share.
pub(super) struct Maker<'a> {
    pub pip: &'a Pip,
    pub provider: &'a dyn SandboxProvider,
    pub options: &'a PackageOptions,
    pub watch: &'a dyn Watch,
    /// Tasks of all packages, for progress.
    pub num_done: &'a AtomicUsize,
}

/// A package whose bugs can be run.
pub(super) struct Site<'a> {
    maker: &'a Maker<'a>,
    release: &'a Release,
    repo: RepoSource,
    bench: Bench,
    targets: Vec<String>,
    sources: Vec<String>,
    /// Tests that pass every time, in order of their ids, and how long they take.
    stable: Vec<String>,
    coverage: Coverage,
    candidates: Vec<Mutation>,
}

impl Maker<'_> {
    pub fn fetch(&self, spec: &PackageSpec) -> Result<Release, EnvironmentError> {
        let version = spec.version.as_deref();
        fetch(&spec.name, version, self.pip, &self.options.cache_dir, self.watch)
    }

    /// Builds the environment, finds the tests that pass every time and the lines that they run.
    /// The error says why there is nothing to do.
    pub fn prepare<'a>(
        &'a self,
        release: &'a Release,
        report: &mut PackageReport,
    ) -> Result<Site<'a>, String> {
        let places = TestPlaces::find(&release.tree);
        if places.targets.is_empty() {
            return Err("the source distribution holds no tests".to_owned());
        }
        let repo = RepoSource::Directory(release.dir.clone());
        let bench = self.bench(release, &repo, &places.targets)?;
        let roots = package_roots(&release.tree, &release.tree);
        let files: BTreeMap<String, String> = release
            .tree
            .iter()
            .filter(|(path, _)| {
                std::path::Path::new(path).extension().is_some_and(|e| e == "py")
                    && is_source(path, &roots)
                    && !places.has(path)
            })
            .filter_map(|(path, bytes)| {
                Some((path.clone(), String::from_utf8(bytes.clone()).ok()?))
            })
            .collect();
        let mut site = Site {
            maker: self,
            release,
            repo,
            targets: places.targets,
            sources: files.keys().cloned().collect(),
            stable: bench.first.passing().into_iter().filter(|id| !is_volatile(id)).collect(),
            bench,
            coverage: Coverage::default(),
            candidates: Vec::new(),
        };
        let timeout = self.options.limits.timeout * 6;
        site.coverage = site.warm().map(timeout).map_err(|e| e.to_string())?;
        let seconds = &site.coverage.seconds;
        site.stable.retain(|id| seconds.contains_key(id));
        site.check_stable().map_err(|e| e.to_string())?;
        report.num_tests = site.stable.len();
        if site.stable.len() < 2 {
            return Err("fewer than two of its tests pass every time".to_owned());
        }
        let limits = inject::InjectOptions {
            max_per_file: self.options.inject.max_per_file.min(MAX_PER_FILE),
            ..self.options.inject.clone()
        };
        let candidates = inject::candidates(&files, &limits);
        report.num_candidates = candidates.len();
        site.candidates = site.reached(candidates);
        report.num_reached = site.candidates.len();
        Ok(site)
    }

    fn bench(
        &self,
        release: &Release,
        repo: &RepoSource,
        targets: &[String],
    ) -> Result<Bench, String> {
        let metadata = &release.metadata;
        let setup = Setup {
            package: &metadata.name,
            metadata,
            runtime: runtime(&[metadata]),
            declared: declared_test_requirements(&release.dir, &metadata.requires),
            extra: &[],
        };
        let limits = &self.options.limits;
        let options = ReleaseOptions {
            cache_dir: self.options.cache_dir.clone(),
            repeats: 2,
            jobs: 1,
            limits: limits.clone(),
        };
        best_bench(&setup, self.pip, &options, self.watch, &mut |environment, options| {
            let site_packages = &environment.site_packages;
            let suite = Suite { repo, site_packages, changes: &[], options, targets, hash_seed: 0 };
            Ok(run_suite(&suite, self.provider, limits)?)
        })
        .map_err(|refusal| match refusal {
            Refusal::Lasting(reason) | Refusal::Passing(reason) => reason,
        })
    }
}

impl Site<'_> {
    fn warm(&self) -> Warm<'_> {
        Warm {
            provider: self.maker.provider,
            repo: &self.repo,
            environment: &self.bench.environment,
            options: &self.bench.options,
            targets: &self.targets,
            sources: &self.sources,
            limits: &self.maker.options.limits.sandbox,
            sandbox: None,
        }
    }

    /// How long all tests take that pass every time.
    fn seconds(&self) -> f64 {
        let seconds = |id: &String| self.coverage.seconds.get(id).copied().unwrap_or_default();
        // Watching lines makes tests slower, so this is a bound that is not reached.
        self.stable.iter().map(seconds).sum::<f64>()
    }

    /// Leaves out tests that fail in a warm process without any bug.
    fn check_stable(&mut self) -> Result<(), TaskError> {
        let none = Bug {
            id: 0,
            changed: BTreeMap::new(),
            tests: self.stable.clone(),
            seconds: self.seconds(),
        };
        let outcomes = self.warm().bugs(&[none], &[], 0.0)?;
        let Some(phase) = &outcomes[0].phases[0] else {
            let end = &outcomes[0].end;
            return Err(TaskError::Validation(format!("its tests do not run twice ({end})")));
        };
        self.stable.retain(|id| !phase.failed.contains(id));
        Ok(())
    }

    /// Candidates that a stable test reaches, outside of functions that run at import.
    fn reached(&mut self, candidates: Vec<Mutation>) -> Vec<Mutation> {
        let stable: BTreeSet<&String> = self.stable.iter().collect();
        for tests in self.coverage.tests.values_mut() {
            tests.retain(|id| stable.contains(id));
        }
        self.coverage.tests.retain(|_, tests| !tests.is_empty());
        let place = |m: &Mutation| (m.path.clone(), m.line);
        let early: BTreeSet<(String, String)> = candidates
            .iter()
            .filter(|m| self.coverage.import.contains(&place(m)))
            .map(|m| (m.path.clone(), m.function.clone()))
            .collect();
        candidates
            .into_iter()
            .filter(|m| self.coverage.tests.contains_key(&place(m)))
            .filter(|m| !early.contains(&(m.path.clone(), m.function.clone())))
            .collect()
    }

    /// Runs bugs until there are enough tasks or no more bugs.
    pub fn make(
        &mut self,
        quota: usize,
        report: &mut PackageReport,
    ) -> Result<Vec<TaskInstance>, TaskError> {
        let options = self.maker.options;
        let name = format!("{}-{}", report.package, report.version);
        let mut rng = stream(options.seed, &["packages", &name]);
        let order = inject::draw_order(&self.candidates, &mut rng);
        let mut warm = self.warm();
        let maker = TaskMaker::new(self.release, &self.bench, &self.coverage, self.maker.pip);
        let mut singles: Vec<Found> = Vec::new();
        let mut found: Vec<Found> = Vec::new();
        // Several bugs are drawn from twice as many single ones, each of which is seen alone.
        let wanted = if options.num_bugs > 1 { 2 * quota } else { quota };
        let mut left = order.as_slice();
        while let Some((batch, rest)) = split(left, wanted - singles.len()) {
            left = rest;
            let combined: Vec<Vec<&Mutation>> =
                batch.iter().map(|index| vec![&self.candidates[*index]]).collect();
            let room = wanted - singles.len();
            singles.extend(self.run(&mut warm, &combined, room, report)?);
        }
        if options.num_bugs > 1 {
            let tuples = self.tuples(&singles, options.num_bugs, 2 * quota);
            let mut left = tuples.as_slice();
            while let Some((batch, rest)) = split(left, quota - found.len()) {
                left = rest;
                let combined: Vec<Vec<&Mutation>> =
                    batch.iter().map(|tuple| tuple.iter().collect()).collect();
                let room = quota - found.len();
                found.extend(self.run(&mut warm, &combined, room, report)?);
            }
        } else {
            found = singles;
        }
        let mut tasks = Vec::new();
        for found in found {
            let number = tasks.len() + 1;
            match maker.task(&format!("{name}-bug-{number}"), &found, options.seed, &self.stable) {
                Ok(task) => {
                    let operator = found.mutations[0].operator.name().to_owned();
                    *report.accepted_by_operator.entry(operator).or_default() += 1;
                    tasks.push(task);
                }
                Err(reason) => *report.rejected.entry(reason).or_default() += 1,
            }
        }
        Ok(tasks)
    }

    /// Sets of bugs in different functions, drawn anew for each.
    fn tuples(&self, singles: &[Found], num_bugs: usize, num: usize) -> Vec<Vec<Mutation>> {
        let name = self.release.dir.file_name().unwrap_or_default().to_string_lossy();
        let mut tuples = Vec::new();
        for index in 0..num {
            let mut rng = stream(self.maker.options.seed, &["several", &name, &index.to_string()]);
            let mut order: Vec<usize> = (0..singles.len()).collect();
            order.shuffle(&mut rng);
            let mut functions = BTreeSet::new();
            let mut tuple = Vec::new();
            for mutation in order.into_iter().map(|at| &singles[at].mutations[0]) {
                if functions.insert((mutation.path.clone(), mutation.function.clone())) {
                    tuple.push(mutation.clone());
                }
                if tuple.len() == num_bugs {
                    tuples.push(tuple);
                    break;
                }
            }
        }
        tuples
    }

    /// Runs sets of bugs; at most `room` of those that are tasks, in their order.
    fn run(
        &self,
        warm: &mut Warm<'_>,
        sets: &[Vec<&Mutation>],
        room: usize,
        report: &mut PackageReport,
    ) -> Result<Vec<Found>, TaskError> {
        if self.maker.watch.is_stopped() {
            return Err(TaskError::Validation("it was asked to stop".to_owned()));
        }
        let mut bugs = Vec::new();
        for (id, set) in sets.iter().enumerate() {
            let Some(changed) = merge(&self.release.tree, set) else {
                *report.rejected.entry("bugs that touch each other".to_owned()).or_default() += 1;
                continue;
            };
            let tests: BTreeSet<&String> = set
                .iter()
                .filter_map(|m| self.coverage.tests.get(&(m.path.clone(), m.line)))
                .flatten()
                .collect();
            let seconds =
                |id: &&String| self.coverage.seconds.get(*id).copied().unwrap_or_default();
            let seconds = tests.iter().map(seconds).sum::<f64>();
            let tests = tests.into_iter().cloned().collect();
            bugs.push(Bug { id, changed, tests, seconds });
        }
        let outcomes = warm.bugs(&bugs, &self.stable, self.seconds())?;
        report.num_tried += bugs.len();
        let mut found = Vec::new();
        for (bug, outcome) in bugs.into_iter().zip(outcomes) {
            match self.verdict(&bug, &outcome) {
                Ok(_) if found.len() >= room => {
                    *report.rejected.entry("not needed".to_owned()).or_default() += 1;
                }
                Ok(failing) => found.push(Found {
                    mutations: sets[bug.id].iter().map(|m| (*m).clone()).collect(),
                    changed: bug.changed,
                    failing,
                    failures: outcome.failures,
                }),
                Err(reason) => *report.rejected.entry(reason.to_owned()).or_default() += 1,
            }
        }
        let done = self.maker.num_done.fetch_add(found.len(), Ordering::Relaxed) + found.len();
        self.maker.watch.progress(done, self.maker.options.num, &report.package);
        Ok(found)
    }

    /// The tests that fail with a bug, or why it is no task.
    fn verdict(&self, bug: &Bug, outcome: &Outcome) -> Result<Vec<String>, &'static str> {
        match outcome.end.as_str() {
            "fails" => {}
            "passes" if outcome.phases[1].is_none() => return Err("no test fails"),
            "passes" => return Err("repeats differ"),
            "unsupported" => return Err("its code cannot be put into a living function"),
            _ => return Err("cut off by a limit"),
        }
        let [Some(reached), Some(all)] = &outcome.phases else { return Err("cut off by a limit") };
        if all.num != self.stable.len() || reached.num != bug.tests.len() {
            return Err("a test has no result");
        }
        if all.failed.iter().any(|id| !bug.tests.contains(id)) {
            return Err("a test fails that does not reach it");
        }
        if all.failed != reached.failed {
            return Err("repeats differ");
        }
        let failing: Vec<String> = all.failed.iter().cloned().collect();
        if failing.len() * 2 > self.stable.len() {
            return Err("more than half of the tests fail");
        }
        Ok(failing)
    }
}

/// The changed files of several bugs; `None` when two touch the same lines.
fn merge(
    tree: &BTreeMap<String, Vec<u8>>,
    mutations: &[&Mutation],
) -> Option<BTreeMap<String, String>> {
    let mut by_path: BTreeMap<&str, Vec<(usize, usize, &str)>> = BTreeMap::new();
    for mutation in mutations {
        let old = std::str::from_utf8(tree.get(&mutation.path)?).ok()?;
        by_path.entry(&mutation.path).or_default().push(edit(old, &mutation.new_source));
    }
    let mut changed = BTreeMap::new();
    for (path, mut edits) in by_path {
        let old = std::str::from_utf8(tree.get(path)?).ok()?;
        edits.sort_unstable();
        if edits.windows(2).any(|pair| pair[0].1 >= pair[1].0) {
            return None;
        }
        let (mut text, mut at) = (String::with_capacity(old.len()), 0);
        for (start, end, replacement) in edits {
            text.push_str(&old[at..start]);
            text.push_str(replacement);
            at = end;
        }
        text.push_str(&old[at..]);
        changed.insert(path.to_owned(), text);
    }
    Some(changed)
}

/// The whole lines of `old` that differ (byte range), and what stands there in `new`.
fn edit<'t>(old: &str, new: &'t str) -> (usize, usize, &'t str) {
    let lines = |text: &'_ str| text.split_inclusive('\n').map(str::len).collect::<Vec<_>>();
    let (old_lines, new_lines) = (lines(old), lines(new));
    let mut start = 0;
    let mut head = 0;
    while head < old_lines.len().min(new_lines.len()) && old_lines[head] == new_lines[head] {
        let end = start + old_lines[head];
        if old.as_bytes()[start..end] != new.as_bytes()[start..end] {
            break;
        }
        start = end;
        head += 1;
    }
    let (mut old_end, mut new_end) = (old.len(), new.len());
    let (mut i, mut j) = (old_lines.len(), new_lines.len());
    while i > head && j > head && old_lines[i - 1] == new_lines[j - 1] {
        let (a, b) = (old_end - old_lines[i - 1], new_end - new_lines[j - 1]);
        if old.as_bytes()[a..old_end] != new.as_bytes()[b..new_end] {
            break;
        }
        (old_end, new_end, i, j) = (a, b, i - 1, j - 1);
    }
    (start, old_end, &new[start..new_end])
}

#[cfg(test)]
mod tests {
    use super::{edit, merge};
    use crate::inject::{Mutation, Operator};

    #[test]
    fn edits_of_one_file_are_merged() {
        let old = "a\nb\nc\nd\ne\n";
        assert_eq!(edit(old, "a\nX\nc\nd\ne\n"), (2, 4, "X\n"));
        assert_eq!(edit(old, "a\nb\nd\ne\n"), (4, 6, ""));
        assert_eq!(edit("a\na\n", "a\n"), (2, 4, ""));
        let mutation = |new_source: &str| Mutation {
            path: "p.py".to_owned(),
            operator: Operator::OffByOne,
            line: 1,
            function: "f".to_owned(),
            new_source: new_source.to_owned(),
            description: String::new(),
        };
        let tree = [("p.py".to_owned(), old.as_bytes().to_vec())].into();
        let (one, two) = (mutation("a\nX\nc\nd\ne\n"), mutation("a\nb\nc\ne\n"));
        assert_eq!(merge(&tree, &[&one, &two]).unwrap()["p.py"], "a\nX\nc\ne\n");
        let near = mutation("a\nb\nY\nd\ne\n");
        assert!(merge(&tree, &[&one, &near]).is_none());
    }
}
