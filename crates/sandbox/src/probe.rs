//! What the machine allows, and how to allow what it forbids.

pub mod trial;

use std::fs;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::plan::LimitsRung;
use crate::sys;
use crate::wire::Refusal;
use trial::{TRIALS, Trial};

/// One thing that sandboxes need of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub status: FeatureStatus,
}

/// Whether a [`Feature`] is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeatureStatus {
    /// It is; the text says what was found.
    Ok(String),
    /// It is not, and something else stands in; the text says what, and how to get the better.
    Degraded(String),
    /// It is not, and sandboxes cannot be made; the text says how to mend it.
    Missing(String),
}

impl Feature {
    /// Whether sandboxes can be made as far as this feature goes.
    pub fn is_usable(&self) -> bool {
        !matches!(self.status, FeatureStatus::Missing(_))
    }
}

/// The oldest kernel whose user namespaces count processes by themselves.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// The kernel's version.
pub fn kernel() -> Feature {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let status = if kernel_version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        FeatureStatus::Missing(format!(
            "kernel {release} is too old: sandboxes need Linux {}.{} or newer",
            OLDEST_KERNEL.0, OLDEST_KERNEL.1
        ))
    } else {
        FeatureStatus::Ok(release)
    };
    Feature { name: "kernel", status }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Settings that forbid user namespaces, with the way to allow them.
pub fn user_namespaces() -> Feature {
    let root = rustix::process::geteuid().is_root();
    let forbidding = forbidding_setting(root, &|path| fs::read_to_string(path).ok());
    let status = match forbidding {
        Some(remedy) => FeatureStatus::Missing(remedy),
        None => FeatureStatus::Ok("allowed".to_owned()),
    };
    Feature { name: "user namespaces", status }
}

fn forbidding_setting(root: bool, read: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let value = |path: &str| read(path).map(|text| text.trim().to_owned());
    let set = |key: &str, value: &str| format!("allow it with `sudo sysctl -w {key}={value}`");
    if value("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return Some(format!(
            "user.max_user_namespaces is 0, which forbids user namespaces: {}",
            set("user.max_user_namespaces", "65536")
        ));
    }
    if root {
        return None;
    }
    if value("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return Some(format!(
            "kernel.unprivileged_userns_clone is 0, which forbids user namespaces to users: {}",
            set("kernel.unprivileged_userns_clone", "1")
        ));
    }
    let apparmor = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    if value(apparmor).as_deref() == Some("1") {
        return Some(format!(
            "kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor forbids user namespaces \
             to this program; {}, or give the program an AppArmor profile with `userns,`",
            set("kernel.apparmor_restrict_unprivileged_userns", "0")
        ));
    }
    None
}

/// What trials in a helper found, by feature; without a helper, that there was none.
pub fn trials(found: Result<Vec<Option<Refusal>>, String>) -> Vec<Feature> {
    let found = match found {
        Ok(found) => found,
        Err(why) => {
            let status = FeatureStatus::Missing(format!("the helper does not start: {why}"));
            return vec![Feature { name: "helper", status }];
        }
    };
    TRIALS.into_iter().zip(found).map(|(trial, refusal)| tried(trial, refusal)).collect()
}

fn tried(trial: Trial, refusal: Option<Refusal>) -> Feature {
    let (name, good) = match trial {
        Trial::Users => ("user namespace", "made, with one user in it"),
        Trial::Namespaces => ("namespaces", "mount, PID, IPC, UTS and network: made"),
        Trial::Proc => ("own /proc", "mounted"),
        Trial::Attributes => ("tmpfs attributes", "user.* attributes are kept"),
        Trial::Overlay => ("overlay", "mounted over tmpfs, and written to"),
        Trial::IdMap => ("id-mapped mounts", "made where they are needed"),
        Trial::PidFd => ("pidfd", "opened"),
    };
    let Some(refusal) = refusal else {
        return Feature { name, status: FeatureStatus::Ok(good.to_owned()) };
    };
    let step = format!("{}: {}", refusal.what, refusal.why);
    let instead = match trial {
        Trial::Users | Trial::Namespaces | Trial::Proc => {
            return Feature { name, status: FeatureStatus::Missing(explain(&refusal)) };
        }
        Trial::Attributes => {
            "repositories are copied into each sandbox, and images do not run: use Linux 6.6 or \
             newer"
        }
        Trial::Overlay => {
            "repositories are copied into each sandbox, and images do not run: use Linux 6.6 or \
             newer with overlayfs (`sudo modprobe overlay`)"
        }
        Trial::IdMap => {
            "repositories of another user are copied: keep them on ext4, xfs, btrfs or tmpfs and \
             use Linux 6.3 or newer"
        }
        Trial::PidFd => {
            "what killed programs leave cannot be killed safely, so `sandbox reap` leaves \
             processes: use Linux 5.4 or newer"
        }
    };
    Feature { name, status: FeatureStatus::Degraded(format!("{step}; {instead}")) }
}

/// System calls that sandboxes are built on or defended by.
pub fn system_calls() -> Vec<Feature> {
    let actions = "/proc/sys/kernel/seccomp/actions_avail";
    let seccomp = match fs::read_to_string(actions) {
        Ok(text) if text.split_whitespace().any(|action| action == "errno") => {
            FeatureStatus::Ok("filters can be installed".to_owned())
        }
        Ok(text) => FeatureStatus::Missing(format!(
            "filters cannot refuse a call (only: {}): use Linux 4.14 or newer",
            text.trim()
        )),
        Err(_) => FeatureStatus::Missing(
            "the kernel has no seccomp filters: use one with CONFIG_SECCOMP_FILTER".to_owned(),
        ),
    };
    let landlock = match sys::landlock_version() {
        Some(version) => FeatureStatus::Ok(format!("version {version}")),
        None => FeatureStatus::Degraded(
            "the kernel has none, or it is off: the mounts alone keep commands from files; to add \
             it, boot Linux 5.13 or newer with `lsm=landlock,...`"
                .to_owned(),
        ),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let openat2 = match opened {
        Ok(_) => FeatureStatus::Ok("beneath and without magic links".to_owned()),
        Err(error) => FeatureStatus::Missing(format!(
            "{error}: use Linux 5.6 or newer; in a container, a seccomp profile that knows it \
             (`--security-opt seccomp=unconfined`)"
        )),
    };
    let clone3 = FeatureStatus::Ok(
        if sys::has_clone3() {
            "there; commands are told that it is not, since a filter cannot see its flags"
        } else {
            "not there, and not needed"
        }
        .to_owned(),
    );
    vec![
        Feature { name: "seccomp", status: seccomp },
        Feature { name: "landlock", status: landlock },
        Feature { name: "openat2", status: openat2 },
        Feature { name: "clone3", status: clone3 },
    ]
}

/// The hierarchies of control groups that this process may see, and which way of bounding memory
/// is in force (`None` where sandboxes cannot be made).
pub fn control_groups(rung: Option<LimitsRung>) -> Vec<Feature> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let found = hierarchies(&mounts);
    let status = if found.is_empty() {
        FeatureStatus::Degraded(
            "none is mounted: mount one (`sudo mount -t cgroup2 none /sys/fs/cgroup`); in a \
             container, run with `--cgroupns=private`"
                .to_owned(),
        )
    } else {
        FeatureStatus::Ok(found.join(", "))
    };
    let mut features = vec![Feature { name: "control groups", status }];
    if let Some(rung) = rung {
        features.push(Feature { name: "limits in force", status: in_force(rung) });
    }
    features
}

fn in_force(rung: LimitsRung) -> FeatureStatus {
    match rung {
        LimitsRung::Watchdog => FeatureStatus::Degraded(format!(
            "{rung}: memory is bounded by size limits and a look every few milliseconds; for an \
             exact bound run as root, or where systemd delegates the memory controller \
             (`systemd-run --user --scope -p Delegate=yes patchwright ...`)"
        )),
        LimitsRung::CgroupV1 | LimitsRung::CgroupV2 => FeatureStatus::Ok(rung.to_string()),
    }
}

/// `v2 (cpu memory pids) at …`, `v1 memory at …`.
fn hierarchies(mountinfo: &str) -> Vec<String> {
    const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let at = left.split(' ').nth(4)?;
            let mut right = right.split(' ');
            match right.next()? {
                "cgroup2" => {
                    let file = format!("{at}/cgroup.controllers");
                    let list = fs::read_to_string(file).unwrap_or_default();
                    let list = if list.trim().is_empty() { "no controllers" } else { list.trim() };
                    Some(format!("v2 at {at} ({list})"))
                }
                "cgroup" => {
                    let options = right.nth(1)?;
                    let name = options.split(',').find(|name| CONTROLLERS.contains(name))?;
                    Some(format!("v1 {name}"))
                }
                _ => None,
            }
        })
        .collect()
}

/// Explains a start that failed.
pub fn explain(refusal: &Refusal) -> String {
    let step = format!("sandboxes cannot be made here: {}: {}", refusal.what, refusal.why);
    for feature in [kernel(), user_namespaces()] {
        if let FeatureStatus::Missing(remedy) = feature.status {
            return format!("{step}; {remedy}");
        }
    }
    let remedy = match (refusal.errno, refusal.what.as_str()) {
        (libc::EPERM | libc::EACCES, "mount proc") => {
            "this container hides parts of /proc: start it with `--security-opt \
             systempaths=unconfined` (Docker) or `--privileged`"
        }
        (libc::EPERM | libc::EACCES, _) => {
            "a container's seccomp or AppArmor profile may forbid namespaces: start it with \
             `--security-opt seccomp=unconfined --security-opt apparmor=unconfined` (Docker), or \
             run outside the container"
        }
        (libc::ENOSPC | libc::EUSERS, _) => {
            "a limit on namespaces was reached: raise the sysctls under `user.max_*_namespaces`"
        }
        (libc::ENOSYS | libc::EINVAL | libc::ENODEV, _) => {
            "the kernel lacks what this step needs: sandboxes need Linux 5.14 or newer with \
             namespaces, tmpfs and overlay enabled"
        }
        _ => return step,
    };
    format!("{step}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::trial::{TRIALS, Trial};
    use super::{FeatureStatus, forbidding_setting, hierarchies, kernel_version, trials};
    use crate::wire::Refusal;

    #[test]
    fn hierarchies_are_told_with_their_controllers() {
        let text = "30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:27 / /cg/memory rw - cgroup cgroup rw,memory\n\
            32 30 0:27 / /cg/blkio rw - cgroup cgroup rw,blkio\n\
            33 30 0:29 / /nowhere/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchies(text), ["v1 memory", "v2 at /nowhere/unified (no controllers)"]);
    }

    #[test]
    fn each_trial_that_fails_says_how_to_mend_it() {
        let error = std::io::Error::from_raw_os_error(libc::EPERM);
        for (n, trial) in TRIALS.into_iter().enumerate() {
            let mut found = vec![None; TRIALS.len()];
            found[n] = Some(Refusal::io("a step", &error));
            let features = trials(Ok(found));
            assert_eq!(features.len(), TRIALS.len());
            for (other, feature) in features.iter().enumerate() {
                assert_eq!(matches!(feature.status, FeatureStatus::Ok(_)), n != other);
            }
            let needed = [Trial::Users, Trial::Namespaces, Trial::Proc].contains(&trial);
            assert_eq!(features[n].is_usable(), !needed, "{trial:?}");
            let (FeatureStatus::Degraded(text) | FeatureStatus::Missing(text)) =
                &features[n].status
            else {
                panic!("{trial:?}")
            };
            let remedy = text.contains("use Linux") || text.contains("start it with");
            assert!(text.contains("a step") && remedy, "{text}");
        }
        assert_eq!(trials(Err("no".to_owned())).len(), 1);
    }

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(kernel_version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(kernel_version("5.10-rc1"), Some((5, 10)));
        assert_eq!(kernel_version("weird"), None);
        assert!(kernel_version("5.9.0").unwrap() < super::OLDEST_KERNEL);
    }

    #[test]
    fn each_forbidding_setting_is_named_with_its_remedy() {
        for (path, value, root, key) in [
            ("/proc/sys/user/max_user_namespaces", "0\n", true, "user.max_user_namespaces=65536"),
            (
                "/proc/sys/kernel/unprivileged_userns_clone",
                "0\n",
                false,
                "kernel.unprivileged_userns_clone=1",
            ),
            (
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
                false,
                "kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        ] {
            let read = |p: &str| (p == path).then(|| value.to_owned());
            let remedy = forbidding_setting(root, &read).unwrap();
            assert!(remedy.contains(key), "{remedy}");
        }
        assert_eq!(forbidding_setting(false, &|_| None), None);
        let clone = |p: &str| p.ends_with("userns_clone").then(|| "0".to_owned());
        assert_eq!(forbidding_setting(true, &clone), None, "root is not bound by it");
    }
}
