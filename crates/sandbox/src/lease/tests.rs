//! Programs that are killed at every step, and what is left of them: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchwright_core::{ExecRequest, RepoSource, RootFs, SandboxLimits, SandboxProvider};
use proptest::prelude::{any, proptest};

use super::registry::{self, Machine, State};
use super::{HEAD, Lease, LeaseError, PAGE, ProcessId, Record, Registry, process, remove};
use crate::provider::{NativeOptions, NativeSandboxes, process_name};

const FAILPOINT: &str = "PATCHWRIGHT_TEST_FAILPOINT";
const CHILD: &str = "PATCHWRIGHT_TEST_LEASE_CHILD";

/// Every place with a `failpoint`, in the order in which they are passed.
const PLACES: [&str; 13] = [
    "host: lease made",
    "host: lease written",
    "host: keeper started",
    "host: keeper recorded",
    "host: directory recorded",
    "host: directory made",
    "host: sandbox recorded",
    "host: slot made",
    "helper: keeper began",
    "helper: cgroup made",
    "helper: spawner began",
    "helper: slot began",
    "helper: sandbox began",
];

pub(crate) fn failpoint(place: &str) {
    if std::env::var(FAILPOINT).is_ok_and(|chosen| chosen == place) {
        if place.starts_with("host") {
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        }
        loop {
            std::thread::sleep(Duration::from_secs(1000));
        }
    }
}

/// Tells a keeper the failpoint: it inherits nothing by itself.
pub(crate) fn pass_failpoint(keeper: &mut Command) {
    keeper.envs(std::env::var_os(FAILPOINT).map(|place| (FAILPOINT, place)));
}

/// The program that is killed: it makes sandboxes and a directory, says so, and makes more.
#[test]
fn child_program() {
    let Some(work) = std::env::var_os(CHILD).map(std::path::PathBuf::from) else { return };
    let spec = patchwright_core::SandboxSpec {
        root: RootFs::Host,
        repo: RepoSource::Files(Arc::new(BTreeMap::from([("a".to_owned(), "b".to_owned())]))),
        workdir: "/testbed".to_owned(),
        read_only_mounts: Vec::new(),
        env: BTreeMap::new(),
        limits: SandboxLimits::default(),
    };
    let lease = Lease::take().unwrap();
    let dir = lease.directory(&work, "upper").unwrap();
    fs::create_dir_all(dir.path().join("work/work")).unwrap();
    fs::set_permissions(dir.path().join("work/work"), fs::Permissions::from_mode(0o000)).unwrap();
    let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
    let mut kept = provider.create(&spec).unwrap();
    let hour = Duration::from_hours(1);
    let stay = std::thread::spawn({
        let mut busy = provider.create(&spec).unwrap();
        move || {
            let script = "trap '' TERM INT HUP; (setsid sleep 4321 &); sleep 4321";
            let _ = busy.exec(&ExecRequest::shell(script, "/testbed", hour));
        }
    });
    println!("\nREADY");
    for line in std::io::stdin().lines() {
        let text = kept.read("/testbed/a", 9).unwrap();
        println!("\n{} {}", line.unwrap(), String::from_utf8(text).unwrap());
        let mut more = provider.create(&spec).unwrap();
        more.exec(&ExecRequest::shell("true", "/testbed", hour)).unwrap();
    }
    provider.shut_down();
    stay.join().unwrap();
}

struct Program {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Program {
    fn start(registry: &Path, work: &Path, place: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "lease::tests::child_program", "--nocapture", "--test-threads=1"])
            .env(CHILD, work)
            .env("PATCHWRIGHT_RUNTIME_DIR", registry)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if let Some(place) = place {
            command.env(FAILPOINT, place);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that starts with `word`; `None` when the program has ended.
    fn line(&mut self, word: &str) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find(|line| line.starts_with(word))
    }

    fn ask(&mut self, word: &str) -> Option<String> {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
        self.line(word)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn descendants(&self) -> Vec<ProcessId> {
        let mut parents: Vec<(u32, u32)> = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if let Some((_, rest)) = stat.rsplit_once(')')
                && let Some(parent) = rest.split_whitespace().nth(1).and_then(|p| p.parse().ok())
            {
                parents.push((pid, parent));
            }
        }
        let mut found: Vec<u32> = vec![self.child.id()];
        let mut at = 0;
        while at < found.len() {
            let parent: u32 = found[at];
            found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        found.into_iter().filter_map(ProcessId::of).collect()
    }
}

struct Ground {
    _dir: tempfile::TempDir,
    registry: std::path::PathBuf,
    work: std::path::PathBuf,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (registry, work) = (dir.path().join("registry"), dir.path().join("work"));
        fs::create_dir(&work).unwrap();
        Registry::at(&registry).unwrap();
        Self { _dir: dir, registry, work }
    }

    fn registry(&self) -> Registry {
        Registry::at(&self.registry).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.registry).unwrap().flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Reaps after a kill, and looks that nothing is left of `before`, nor of the leases.
    fn reap_all(&self, before: &[ProcessId], when: &str) {
        let (names, _) = self.registry().names().unwrap();
        let leases: Vec<_> = names.iter().map(|name| name.trim_end_matches(".lease")).collect();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut dead = Vec::new();
        loop {
            let reaped = self.registry().reap(false).unwrap();
            assert!(reaped.problems.is_empty(), "{when}: {:?}", reaped.problems);
            dead.extend(reaped.dead);
            if reaped.num_living == 0 {
                break;
            }
            // A child of the killed program holds its locks from its fork to its exec.
            assert!(Instant::now() < deadline, "{when}: {} live", reaped.num_living);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(dead.len(), leases.len(), "{when}");
        for left in &dead {
            assert!(left.failures.is_empty(), "{when}: {left:?}");
            assert!(left.cgroups.iter().all(|path| !path.exists()), "{when}: {left:?}");
        }
        for lease in leases {
            assert_eq!(process::bearing(&process_name(lease)), [], "{when}");
        }
        // Beside helpers the program starts python3 for a moment, which ends by itself.
        while before.iter().any(|process| process.is_alive()) {
            assert!(Instant::now() < deadline, "{when}: {before:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.files(), Vec::<String>::new(), "{when}");
        let left: Vec<_> = fs::read_dir(&self.work).unwrap().flatten().collect();
        assert!(left.is_empty(), "{when}: {left:?}");
        let keepers: Vec<_> = before.iter().map(|p| registry::cgroup_name(*p)).collect();
        assert_eq!(remove::cgroups(&keepers), Vec::<std::path::PathBuf>::new(), "{when}");
    }
}

#[test]
fn a_program_killed_at_any_step_leaves_nothing() {
    let ground = Ground::new();
    for place in PLACES {
        let mut program = Program::start(&ground.registry, &ground.work, Some(place));
        if place.starts_with("host") {
            assert_eq!(program.line("READY"), None, "{place}");
        } else {
            // The helper stays where it is; the host waits for it, and is killed meanwhile.
            std::thread::sleep(Duration::from_millis(400));
        }
        let before = program.descendants();
        program.kill();
        ground.reap_all(&before, place);
    }
}

#[test]
fn a_program_killed_at_any_time_leaves_nothing() {
    let ground = Ground::new();
    for n in 0..12 {
        let mut program = Program::start(&ground.registry, &ground.work, None);
        if n % 3 == 0 {
            program.line("READY").unwrap();
            for _ in 0..n {
                program.ask("go").unwrap();
            }
        } else {
            std::thread::sleep(Duration::from_millis(7 * n));
        }
        let before = program.descendants();
        program.kill();
        ground.reap_all(&before, &format!("kill {n}"));
    }
}

/// The keeper removes the cgroup of a program that was killed; nobody is left to where it was
/// killed too, or stopped.
#[test]
fn helpers_that_were_stopped_or_killed_too_leave_nothing() {
    for signal in ["-STOP", "-KILL"] {
        let ground = Ground::new();
        let mut program = Program::start(&ground.registry, &ground.work, None);
        program.line("READY").unwrap();
        let before = program.descendants();
        let leases = ground.registry().names().unwrap().0;
        let bearers: Vec<_> = leases
            .iter()
            .flat_map(|name| process::bearing(&process_name(name.trim_end_matches(".lease"))))
            .collect();
        assert!(bearers.len() >= 4, "keeper, spawner, two slots and more: {bearers:?}");
        for process in &bearers {
            // A stopped one that dies with another is fine.
            let _ = Command::new("kill").args([signal, &process.pid.to_string()]).output();
        }
        program.kill();
        let told = ground.registry().reap(true).unwrap();
        assert_eq!(told.dead.len(), 2, "the program's and the provider's: {told:?}");
        if signal == "-STOP" {
            assert!(told.dead.iter().any(|left| !left.processes.is_empty()), "{told:?}");
        }
        // Of two; the program may have seen the end of one.
        assert!(told.dead.iter().any(|left| left.num_sandboxes >= 1), "{told:?}");
        assert!(told.dead.iter().any(|left| left.directories.len() == 1), "{told:?}");
        assert_eq!(ground.files().len(), 2, "a dry run removes nothing");
        ground.reap_all(&before, signal);
    }
}

#[test]
fn the_sandboxes_of_a_living_owner_are_listed_and_left_alone() {
    let ground = Ground::new();
    let mut dies = Program::start(&ground.registry, &ground.work, None);
    let mut lives = Program::start(&ground.registry, &ground.work, None);
    dies.line("READY").unwrap();
    lives.line("READY").unwrap();
    let (living, problems) = ground.registry().living().unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(living.len(), 4);
    let before = dies.descendants();
    dies.kill();
    let reaped = ground.registry().reap(false).unwrap();
    assert_eq!((reaped.dead.len(), reaped.num_living), (2, 2));
    assert!(before.iter().all(|process| !process.is_alive()));
    let (living, _) = ground.registry().living().unwrap();
    assert_eq!(living.len(), 2);
    for one in living {
        assert_eq!(one.owner.pid, lives.child.id());
        assert!(one.owner.command.contains("child_program"), "{one:?}");
        assert!(one.age_seconds >= 0.0 && one.limits != "unknown", "{one:?}");
    }
    assert_eq!(lives.ask("go").as_deref(), Some("go b"), "it works on");
    // Its input ends, and it ends by itself, in order.
    drop(lives.child.stdin.take());
    assert!(lives.child.wait().unwrap().success());
    assert_eq!(ground.files(), Vec::<String>::new());
    assert_eq!(fs::read_dir(&ground.work).unwrap().count(), 0);
}

fn lease_text(owner: &str, boot: &str, pidns: u64, keeper: &str) -> Vec<u8> {
    format!("{HEAD}\nowner {owner}\nboot {boot}\npidns {pidns}\nkeeper {keeper}\n").into_bytes()
}

fn with_record(mut head: Vec<u8>, record: &[u8]) -> Vec<u8> {
    head.resize(PAGE as usize, 0);
    head.extend_from_slice(record);
    head
}

#[test]
fn hostile_and_damaged_leases_are_refused_and_nothing_happens() {
    let ground = Ground::new();
    let machine = Machine::this().unwrap();
    let innocent = ground.work.join("innocent");
    fs::create_dir(&innocent).unwrap();
    let head = lease_text("4190000 1", &machine.boot, machine.pid_namespace, "0 0");
    let dir =
        |path: &Path| with_record(head.clone(), format!("dir {}\n", path.display()).as_bytes());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "does not start with"),
        ("noise", (128..=255).cycle().take(9000).collect(), "no text"),
        ("version", b"patchwright-lease 9\n".to_vec(), "another version"),
        ("cut", head[..40].to_vec(), "no line"),
        ("init", lease_text("1 1", "b", 1, "0 0"), "no pid"),
        ("group", lease_text("5 1", "b", 1, "-5 1"), "no pid"),
        ("kind", with_record(head.clone(), b"rm -rf\n"), "unknown kind"),
        ("endless", with_record(head.clone(), &[b'd'; 5000]), "without an end"),
        ("foreign", dir(&innocent), "not named after"),
        ("dots", dir(&innocent.join("../x.dots.1")), "plain names"),
        ("page", dir(&innocent.join("x.page.2")), "not named after"),
        ("relative", with_record(head.clone(), b"dir x.relative.1\n"), "plain names"),
    ];
    for (name, bytes, _) in &cases {
        fs::write(ground.registry.join(format!("{name}.lease")), bytes).unwrap();
    }
    let target = ground.work.join("target.lease");
    fs::write(&target, &head).unwrap();
    symlink(&target, ground.registry.join("link.lease")).unwrap();
    fs::hard_link(&target, ground.registry.join("hard.lease")).unwrap();
    fs::create_dir(ground.registry.join("dir.lease")).unwrap();
    let sparse = fs::File::create(ground.registry.join("huge.lease")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let fifo = ground.registry.join("fifo.lease");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reaped = ground.registry().reap(false).unwrap();
    assert_eq!(reaped.dead, []);
    let problems: Vec<String> = reaped.problems.iter().map(ToString::to_string).collect();
    let more = [
        ("link", "symbolic link"),
        ("hard", "hard links"),
        ("dir", ""),
        ("huge", "bytes"),
        ("fifo", "not a regular file"),
    ];
    assert_eq!(problems.len(), cases.len() + more.len(), "{problems:#?}");
    for (name, why) in cases.iter().map(|(name, _, why)| (*name, *why)).chain(more) {
        let file = format!("/{name}.lease: ");
        let told = problems.iter().find(|text| text.contains(&file));
        let told = told.unwrap_or_else(|| panic!("{name}: {problems:#?}"));
        assert!(told.contains(why) && told.contains("delete it"), "{told}");
        assert!(ground.registry.join(format!("{name}.lease")).symlink_metadata().is_ok());
    }
    assert!(innocent.is_dir() && target.is_file());
}

#[test]
fn a_number_that_was_given_to_another_process_is_not_killed() {
    let ground = Ground::new();
    let machine = Machine::this().unwrap();
    let mut innocent = Command::new("sleep").arg("1000").spawn().unwrap();
    let process = ProcessId::of(innocent.id()).unwrap();
    let (pid, started) = (process.pid, process.started);
    let pidns = machine.pid_namespace;
    let leases = [
        ("recycled", lease_text("4190000 1", &machine.boot, pidns, &format!("{pid} 7"))),
        ("rebooted", lease_text("4190000 1", "other", pidns, &format!("{pid} {started}"))),
        ("elsewhere", lease_text("4190000 1", &machine.boot, 1, &format!("{pid} {started}"))),
    ];
    for (name, bytes) in &leases {
        fs::write(ground.registry.join(format!("{name}.lease")), bytes).unwrap();
    }
    let reaped = ground.registry().reap(false).unwrap();
    assert_eq!(reaped.dead.len(), 3, "{reaped:?}");
    assert!(reaped.dead.iter().all(|left| left.processes.is_empty()), "{reaped:?}");
    assert!(process.is_alive());
    innocent.kill().unwrap();
    innocent.wait().unwrap();
}

#[test]
fn a_registry_that_others_could_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Registry::at(&open).unwrap_err().contains("others may write"));
    let link = dir.path().join("link");
    symlink(dir.path(), &link).unwrap();
    assert!(Registry::at(&link).is_err());
    assert!(Registry::at(Path::new("relative")).is_err());
    if rustix::process::geteuid().is_root() {
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(4242), Some(4242)).unwrap();
        assert!(Registry::at(&theirs).unwrap_err().contains("belongs to user 4242"));
    }
}

#[test]
fn a_lease_is_seen_locked_and_goes_with_its_holder() {
    let ground = Ground::new();
    let lease = Lease::take_in(&ground.registry()).unwrap();
    let machine = Machine::this().unwrap();
    let name = format!("{}.lease", lease.id());
    let entry = lease.sandbox().unwrap();
    let dir = lease.directory(&ground.work, "upper").unwrap();
    let path = dir.path().to_owned();
    fs::write(path.join("f"), "x").unwrap();
    let State::Living(content) = ground.registry().look(&name, &machine).unwrap() else {
        panic!("its owner is this program")
    };
    assert_eq!(content.owner, ProcessId::this().unwrap());
    assert_eq!(content.records[1], (2, Record::Directory(path.clone())));
    assert!(matches!(content.records[0], (1, Record::Sandbox(_))));
    assert_eq!(ground.registry().reap(false).unwrap().num_living, 1);
    assert!(path.join("f").exists());
    drop((entry, dir));
    assert!(!path.exists());
    let again = lease.sandbox().unwrap();
    assert!(again.page <= 2, "pages are used again: the file does not grow");
    drop(again);
    let missing = lease.directory(&ground.work.join("nowhere"), "x");
    assert!(matches!(missing, Err(LeaseError::Directory { .. })));
    drop(lease);
    assert_eq!(ground.files(), Vec::<String>::new());
}

proptest! {
    #[test]
    fn no_bytes_make_a_lease_panic_or_name_a_foreign_directory(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        lead in any::<bool>(),
    ) {
        let record = if lead { [b"dir /", noise.as_slice(), b"\n"].concat() } else { noise };
        let bytes = with_record(lease_text("5 6", "b", 7, "8 9"), &record);
        if let Ok(content) = registry::parse(&bytes, "id") {
            for (_, record) in content.records {
                if let Record::Directory(path) = record {
                    assert!(path.file_name().unwrap().to_string_lossy().ends_with(".id.1"));
                }
            }
        }
        let _ = registry::parse(&record, "id");
    }
}

/// Recording a sandbox must be cheap beside making one.
#[test]
fn a_record_costs_next_to_nothing() {
    let ground = Ground::new();
    let lease = Lease::take_in(&ground.registry()).unwrap();
    let start = Instant::now();
    for _ in 0..1000 {
        drop(lease.sandbox().unwrap());
    }
    // Printed, not asserted: no test depends on the machine's speed.
    println!("{:.1} us a sandbox", start.elapsed().as_secs_f64() * 1e3);
    assert!(ground.registry.join(format!("{}.lease", lease.id())).metadata().unwrap().len() < 8192);
}
