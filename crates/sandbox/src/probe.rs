//! What the machine allows, and how to allow what it forbids.

use std::fs;

use crate::wire::Refusal;

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
    use super::{forbidding_setting, kernel_version};

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
