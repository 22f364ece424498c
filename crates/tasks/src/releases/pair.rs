//! One pair, from two names to a task.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use patchwright_core::{InstallConfig, RepoSource, SandboxProvider, TaskInstance};

use super::trees::{self, Difference, TestPlaces, Tree};
use super::{PairReport, Refusal, ReleaseOptions, ReleasePair, statement};
use crate::environment::{
    Environment, EnvironmentError, EnvironmentSpec, Metadata, Pip, SdistLimits, Watch,
    declared_test_requirements, requirement_name, unpack_sdist, unpinned,
};
use crate::validate::suite::{Suite, SuiteRun, WORKDIR, run_suite};

/// The pytests that are tried one after the other, where the former breaks the suite.
const PYTESTS: [&str; 3] = ["pytest", "pytest<8", "pytest<7"];

pub(super) struct PairWork<'a> {
    pub releases: &'a ReleasePair,
    pub pip: &'a Pip,
    pub provider: &'a dyn SandboxProvider,
    pub options: &'a ReleaseOptions,
    pub watch: &'a dyn Watch,
}

/// A release, unpacked.
pub(crate) struct Release {
    pub dir: PathBuf,
    pub tree: Tree,
    pub metadata: Metadata,
    /// Seconds since 1970 of its newest file; 0 is not known.
    pub newest: u64,
}

/// An environment and how pytest is called in it.
pub(crate) struct Bench {
    pub environment: Environment,
    pub options: Vec<String>,
    /// The whole suite on the fixed side.
    pub first: SuiteRun,
}

/// Fetches, unpacks and reads a release; the newest one without a version.
pub(crate) fn fetch(
    package: &str,
    version: Option<&str>,
    pip: &Pip,
    cache_dir: &std::path::Path,
    watch: &dyn Watch,
) -> Result<Release, EnvironmentError> {
    let sdist = pip.sdist(package, version, &cache_dir.join("sdists"), watch)?;
    let name = sdist.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = name.trim_end_matches(".gz").trim_end_matches(".tar").trim_end_matches(".tgz");
    let dir = cache_dir.join("sources").join(stem);
    if !dir.is_dir() {
        unpack_sdist(&sdist, &dir, SdistLimits::default())?;
    }
    let dir = std::path::absolute(&dir).map_err(|e| crate::environment::io("finding", &dir, e))?;
    let metadata = Metadata::of_source(&dir)?;
    let tree = trees::read_tree(&dir)?;
    let newest = newest(&dir, &tree);
    Ok(Release { dir, tree, metadata, newest })
}

/// A release is about as old as its newest file.
fn newest(dir: &std::path::Path, tree: &Tree) -> u64 {
    tree.keys()
        .filter_map(|path| dir.join(path).metadata().ok()?.modified().ok())
        .filter_map(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map(|time| time.as_secs())
        .max()
        // The time that some build tools write for reproducible archives: 2020-02-02.
        .filter(|time| *time != 1_580_601_600)
        .unwrap_or(0)
}

impl PairWork<'_> {
    pub fn build(&self, report: &mut PairReport) -> Result<TaskInstance, Refusal> {
        let ReleasePair { package, buggy, fixed, .. } = self.releases;
        let cache_dir = &self.options.cache_dir;
        let old = fetch(package, Some(buggy), self.pip, cache_dir, self.watch)?;
        let new = fetch(package, Some(fixed), self.pip, cache_dir, self.watch)?;
        let places = if self.releases.tests.is_empty() {
            TestPlaces::find(&new.tree)
        } else {
            TestPlaces { targets: self.releases.tests.clone() }
        };
        let holds = |target: &String| new.tree.keys().any(|path| path.starts_with(target.as_str()));
        let targets: Vec<String> = places.targets.iter().filter(|t| holds(t)).cloned().collect();
        if targets.is_empty() {
            return Err(Refusal::Lasting(format!(
                "the source distribution of {package} {fixed} holds no tests"
            )));
        }
        let difference = trees::difference(&old.tree, &new.tree, &places);
        report.files_changed = difference.gold.len();
        if difference.gold.is_empty() {
            return Err(Refusal::Lasting("no source file of the package differs".to_owned()));
        }
        let repo = RepoSource::Directory(old.dir.clone());
        let bench = self.bench(&old, &new, &repo, &difference, &targets)?;
        let pytest = bench.environment.locked.iter().find(|line| line.starts_with("pytest=="));
        report.pytest = pytest.cloned().unwrap_or_default();
        let sides = self.run_sides(&repo, &bench, &difference, &targets)?;
        let judged = judge(&sides, report)?;
        self.task(&old, &new, &difference, &bench, &sides, judged).map_err(Refusal::Lasting)
    }

    /// Builds the environment under which most tests of the fixed side pass.
    fn bench(
        &self,
        old: &Release,
        new: &Release,
        repo: &RepoSource,
        difference: &Difference,
        targets: &[String],
    ) -> Result<Bench, Refusal> {
        let changes: Vec<_> = difference.gold.iter().chain(&difference.tests).cloned().collect();
        let setup = Setup {
            package: &self.releases.package,
            metadata: &old.metadata,
            runtime: runtime(&[&old.metadata, &new.metadata]),
            declared: declared_test_requirements(&new.dir, &new.metadata.requires),
            extra: &self.releases.requirements,
        };
        best_bench(&setup, self.pip, self.options, self.watch, &mut |environment, options| {
            let suite = Suite {
                repo,
                site_packages: &environment.site_packages,
                changes: &changes,
                options,
                targets,
                hash_seed: 0,
            };
            Ok(run_suite(&suite, self.provider, &self.options.limits)?)
        })
    }

    /// All runs of both sides: (buggy, fixed).
    fn run_sides(
        &self,
        repo: &RepoSource,
        bench: &Bench,
        difference: &Difference,
        targets: &[String],
    ) -> Result<Sides, Refusal> {
        let both: Vec<_> = difference.gold.iter().chain(&difference.tests).cloned().collect();
        let run = |changes: &[_], targets: &[String]| {
            if self.watch.is_stopped() {
                return Err(Refusal::Passing("stopped".to_owned()));
            }
            let site_packages = &bench.environment.site_packages;
            let options = &bench.options;
            // As graders do: ids may be made of sets.
            let hash_seed = 0;
            let suite = Suite { repo, site_packages, changes, options, targets, hash_seed };
            Ok(run_suite(&suite, self.provider, &self.options.limits)?)
        };
        let mut sides = Sides { buggy: Vec::new(), fixed: vec![bench.first.clone()] };
        sides.buggy.push(run(&difference.tests, targets)?);
        // The grader names the files that hold the tests; directories and files must agree.
        let files: BTreeSet<String> = bench.first.tests.keys().map(|id| file_of(id)).collect();
        let files: Vec<String> = files.into_iter().collect();
        for _ in 1..self.options.repeats.max(2) {
            sides.buggy.push(run(&difference.tests, &files)?);
            sides.fixed.push(run(&both, &files)?);
        }
        Ok(sides)
    }

    fn task(
        &self,
        old: &Release,
        new: &Release,
        difference: &Difference,
        bench: &Bench,
        sides: &Sides,
        judged: Judged,
    ) -> Result<TaskInstance, String> {
        let ReleasePair { package, buggy, fixed, .. } = self.releases;
        let patch = trees::checked_patch(&difference.gold, &old.tree)?;
        let test_patch = trees::checked_patch(&difference.tests, &old.tree)?;
        let entry = statement::changelog_entry(&new.tree, fixed);
        let first = &sides.buggy[0];
        let failures: Vec<String> = judged
            .fail_to_pass
            .iter()
            .filter_map(|id| first.tests.get(id))
            .filter(|test| test.failed)
            .map(|test| test.message.clone())
            .collect();
        let summary = old.metadata.summary.trim();
        let extra = [
            ("requirements", bench.environment.locked.join("\n").into()),
            ("source", format!("release {buggy} -> {fixed} of {package}").into()),
        ];
        Ok(TaskInstance {
            instance_id: self.releases.instance_id(),
            repo: old.dir.display().to_string(),
            patch,
            test_patch,
            problem_statement: statement::write(
                package,
                buggy,
                entry.as_deref(),
                summary,
                &failures,
            ),
            created_at: date(new.newest),
            version: buggy.clone(),
            fail_to_pass: judged.fail_to_pass,
            pass_to_pass: judged.pass_to_pass,
            install_config: install_config(bench, &self.pip.python_version),
            extra: extra.map(|(name, value)| (name.to_owned(), value)).into(),
            ..TaskInstance::default()
        })
    }
}

/// How the tests of a task are run.
pub(crate) fn install_config(bench: &Bench, python_version: &str) -> InstallConfig {
    let mut test_cmd = "pytest".to_owned();
    for option in &bench.options {
        test_cmd.push(' ');
        test_cmd.push_str(option);
    }
    let requested = bench.environment.requested.clone();
    InstallConfig {
        test_cmd,
        log_parser: "pytest".to_owned(),
        site_packages: Some(bench.environment.site_packages.clone()),
        extra: BTreeMap::from([
            ("python".to_owned(), python_version.into()),
            ("pip_packages".to_owned(), requested.into()),
        ]),
    }
}

/// What environments are tried.
pub(crate) struct Setup<'a> {
    pub package: &'a str,
    pub metadata: &'a Metadata,
    pub runtime: Vec<String>,
    pub declared: Vec<String>,
    pub extra: &'a [String],
}

/// Requirements of running the package itself, without its extras.
pub(crate) fn runtime(all: &[&Metadata]) -> Vec<String> {
    let needed = |r: &&String| !r.split_once(';').is_some_and(|(_, m)| m.contains("extra"));
    all.iter().flat_map(|metadata| metadata.requires.iter().filter(needed).cloned()).collect()
}

/// Runs the suite in an environment, with options for pytest.
pub(crate) type RunIn<'a> = dyn FnMut(&Environment, &[String]) -> Result<SuiteRun, Refusal> + 'a;

/// Tries environments until one runs the suite well; else the one under which most tests pass.
pub(crate) fn best_bench(
    setup: &Setup<'_>,
    pip: &Pip,
    options: &ReleaseOptions,
    watch: &dyn Watch,
    run: &mut RunIn<'_>,
) -> Result<Bench, Refusal> {
    let mut best: Option<Bench> = None;
    let fixed_pytest = setup.extra.iter().any(|r| requirement_name(r) == "pytest");
    for pytest in PYTESTS {
        if watch.is_stopped() {
            return Err(Refusal::Passing("stopped".to_owned()));
        }
        let environment = match install(setup, pytest, pip, options, watch) {
            Ok(environment) => environment,
            // The first must be; the others are help for old suites.
            Err(error) if best.is_none() => return Err(error.into()),
            Err(_) => continue,
        };
        let mut pytest_options = Vec::new();
        let mut first = run(&environment, &pytest_options)?;
        if first.tests.is_empty() && first.exit_code == Some(4) {
            // Options of the package's configuration belong to a plugin that is not here.
            pytest_options = vec!["-o".to_owned(), "addopts=".to_owned()];
            first = run(&environment, &pytest_options)?;
        }
        let is_good = first.collect_errors.is_empty()
            && !first.tests.is_empty()
            && first.num_failed() * 10 <= first.tests.len();
        let num_passing = first.passing().len();
        if best.as_ref().is_none_or(|best| num_passing > best.first.passing().len()) {
            best = Some(Bench { environment, options: pytest_options, first });
        }
        if is_good || fixed_pytest {
            break;
        }
    }
    let bench = best.ok_or_else(|| Refusal::Passing("no environment could be built".to_owned()))?;
    if bench.first.passing().is_empty() {
        let first = bench.first.collect_errors.iter().next();
        let last = |text: &str| text.trim().lines().last().unwrap_or_default().trim().to_owned();
        let why = match first {
            Some((file, message)) => format!("{file} cannot be collected: {}", last(message)),
            None => last(&bench.first.printed),
        };
        return Err(Refusal::Lasting(format!("no test passes on the fixed release: {why}")));
    }
    Ok(bench)
}

/// Installs what is declared; where that cannot be had, without its versions, then nothing but
/// what the package itself needs.
fn install(
    setup: &Setup<'_>,
    pytest: &str,
    pip: &Pip,
    options: &ReleaseOptions,
    watch: &dyn Watch,
) -> Result<Environment, EnvironmentError> {
    let pinned = pytest != PYTESTS[0];
    let loose: Vec<String> = setup.declared.iter().map(|r| unpinned(r)).collect();
    let mut failed = None;
    for declared in [&setup.declared, &loose, &Vec::new()] {
        let own = |r: &&String| !(pinned && requirement_name(r) == "pytest");
        let mut requirements: Vec<String> = setup.runtime.clone();
        requirements.extend(declared.iter().filter(own).cloned());
        requirements.extend(setup.extra.iter().cloned());
        if !requirements.iter().any(|r| requirement_name(r) == "pytest") {
            requirements.push(pytest.to_owned());
        }
        let spec = EnvironmentSpec {
            package: setup.package.to_owned(),
            requirements,
            metadata: Some(setup.metadata.clone()),
        };
        let place = options.cache_dir.join("environments");
        match Environment::build(pip, &spec, &place, watch) {
            Err(error @ EnvironmentError::Pip { .. }) => _ = failed.get_or_insert(error),
            other => return other,
        }
    }
    Err(failed.unwrap_or(EnvironmentError::Stopped))
}

/// Runs of the two sides.
struct Sides {
    buggy: Vec<SuiteRun>,
    fixed: Vec<SuiteRun>,
}

struct Judged {
    fail_to_pass: Vec<String>,
    pass_to_pass: Vec<String>,
}

fn judge(sides: &Sides, report: &mut PairReport) -> Result<Judged, Refusal> {
    let always = |runs: &[SuiteRun]| {
        let sets = runs.iter().map(SuiteRun::passing);
        sets.reduce(|a, b| &a & &b).unwrap_or_default()
    };
    let ever = |runs: &[SuiteRun]| {
        let sets = runs.iter().map(SuiteRun::passing);
        sets.reduce(|a, b| &a | &b).unwrap_or_default()
    };
    let (old_always, old_ever) = (always(&sides.buggy), ever(&sides.buggy));
    let (new_always, new_ever) = (always(&sides.fixed), ever(&sides.fixed));
    let stable = |ids: BTreeSet<String>, volatile: &mut usize| {
        let (bad, good): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| is_volatile(id));
        *volatile += bad.len();
        good
    };
    report.unstable =
        new_ever.difference(&new_always).count() + old_ever.difference(&old_always).count();
    report.fail_on_fixed = sides.fixed[0].num_failed();
    report.pass_to_fail = old_always.difference(&new_ever).count();
    let fail_to_pass = stable(&new_always - &old_ever, &mut report.volatile);
    let pass_to_pass = stable(&new_always & &old_always, &mut report.volatile);
    let explicit =
        |id: &&String| sides.buggy.iter().all(|run| run.tests.get(*id).is_some_and(|t| t.failed));
    report.fail_to_pass = fail_to_pass.len();
    report.fail_to_pass_explicit = fail_to_pass.iter().filter(explicit).count();
    report.pass_to_pass = pass_to_pass.len();
    let reason = if fail_to_pass.is_empty() {
        "no test tells the two releases apart".to_owned()
    } else if report.fail_to_pass_explicit == 0 {
        let why = sides.buggy[0].collect_errors.values().next();
        let why = why.map_or("", |text| text.trim().lines().last().unwrap_or_default());
        format!("its tests cannot be run on the buggy release, so that none fails there: {why}")
    } else if pass_to_pass.is_empty() {
        "no test passes on both releases".to_owned()
    } else {
        return Ok(Judged { fail_to_pass, pass_to_pass });
    };
    Err(Refusal::Lasting(reason))
}

fn file_of(id: &str) -> String {
    id.split("::").next().unwrap_or_default().to_owned()
}

/// Whether an id holds what differs from run to run or from day to day: a directory of the run, an
/// address of an object, or a time within two days of now.
pub(crate) fn is_volatile(id: &str) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |time| time.as_secs());
    let name = id.split_once("::").map_or("", |(_, name)| name);
    let days = (now / 86_400).saturating_sub(2)..=now / 86_400 + 2;
    name.contains(WORKDIR)
        || name.contains("/tmp/")
        || name.contains(" at 0x")
        || days.clone().any(|day| {
            let date = date(day * 86_400);
            let day = date.get(..10).unwrap_or(&date);
            name.contains(day) || name.contains(&day.replace('-', ""))
        })
        || numbers(name).any(|n| days.contains(&(n / 86_400)))
}

/// Runs of ten digits or more: seconds since 1970 have ten, and finer units only follow.
fn numbers(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.split(|c: char| !c.is_ascii_digit())
        .filter(|digits| digits.len() >= 10)
        .filter_map(|digits| digits.get(..10)?.parse().ok())
}

/// ISO 8601 of seconds since 1970, in UTC; empty for 0. The calendar is Howard Hinnant's
/// `civil_from_days`.
fn date(seconds: u64) -> String {
    if seconds == 0 {
        return String::new();
    }
    let (days, rest) = ((seconds / 86_400) as i64 + 719_468, seconds % 86_400);
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::{date, is_volatile};

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(date(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(date(0), "");
    }

    #[test]
    fn ids_with_the_time_or_a_place_are_volatile() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let today = date(now.as_secs());
        for name in [
            format!("t.py::test[{}]", &today[..10]),
            format!("t.py::test[{}]", today[..10].replace('-', "")),
            format!("t.py::test[{}]", now.as_secs()),
            format!("t.py::test[{}]", now.as_millis()),
            "t.py::test[/tmp/pytest-0/x]".to_owned(),
            "t.py::test[/testbed/x]".to_owned(),
            "t.py::test[<f at 0x7f00>]".to_owned(),
        ] {
            assert!(is_volatile(&name), "{name}");
        }
        for name in ["t.py::test[2001-01-01]", "tmp/t.py::test[1234567890]", "t.py::test_x"] {
            assert!(!is_volatile(name), "{name}");
        }
    }
}
