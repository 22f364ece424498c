//! Makes the files of one owner appear as another's, so that commands can change through an
//! overlay what is not theirs on the host.

use std::fmt::Write;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::WaitOptions;

use crate::keeper::Identity;
use crate::overlay::no_overlay;
use crate::sys;
use crate::wire::{Context, Refusal};

/// Makes one owner's files appear as the commands' own.
pub struct OwnerMap {
    /// User and group.
    owner: (u32, u32),
    /// The user namespace whose map it is.
    users: OwnedFd,
}

/// Makes the files of a directory's owner appear as the commands' own: a file whose owner is not
/// known inside cannot be changed through an overlay. Other owners' files stay theirs.
pub fn show_as_user(
    tree: &OwnedFd,
    identity: Identity,
    held: &mut Option<OwnerMap>,
) -> Result<(), Refusal> {
    let stat = rustix::fs::fstat(tree).step("look at a directory's owner")?;
    let owner = (stat.st_uid, stat.st_gid);
    if owner == (identity.uid, identity.gid) {
        return Ok(());
    }
    let map = match held.take() {
        Some(map) if map.owner == owner => map,
        _ => OwnerMap {
            owner,
            users: id_map(&exchange(owner.0, identity.uid), &exchange(owner.1, identity.gid))?,
        },
    };
    let shown = sys::mount_setattr(tree.as_fd(), c"", false, 0, Some(map.users.as_fd()));
    *held = Some(map);
    shown.map_err(|error| no_overlay(format!("its file system cannot map owners: {error}")))
}

/// A map of all ids that exchanges two: none is left without a counterpart, because what belongs
/// to an id that is not mapped cannot even be deleted.
fn exchange(a: u32, b: u32) -> String {
    let (low, high) = (a.min(b), a.max(b));
    let mut map = String::new();
    let mut extent = |inside: u32, outside: u32, count: u32| {
        if count > 0 {
            // Writing into a text cannot fail.
            let _ = writeln!(map, "{inside} {outside} {count}");
        }
    };
    extent(0, 0, low);
    extent(low, high, 1);
    if low < high {
        extent(low + 1, low + 1, high - low - 1);
        extent(high, low, 1);
    }
    extent(high + 1, high + 1, u32::MAX - high - 1);
    map
}

/// A user namespace that exists only for its maps.
pub fn id_map(uid_map: &str, gid_map: &str) -> Result<OwnedFd, Refusal> {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (name_in, name_out) = pipe_with(PipeFlags::CLOEXEC).step("pipe")?;
    let (hold_in, hold_out) = pipe_with(PipeFlags::CLOEXEC).step("pipe")?;
    let Some(pid) = sys::fork(libc::CLONE_NEWUSER).step("make a user namespace")? else {
        drop(hold_out);
        // Its number in the procfs that is in view, which is another PID namespace's.
        let own = rustix::fs::readlink("/proc/self", Vec::new()).unwrap_or_default();
        let _ = rustix::io::write(&name_out, own.as_bytes());
        drop(name_out);
        let _ = rustix::io::read(&hold_in, &mut [0u8; 1]);
        sys::exit(0);
    };
    drop((name_out, hold_in));
    let made = (|| {
        let mut name = [0u8; 32];
        let n = rustix::io::read(&name_in, &mut name)?;
        let proc = Path::new("/proc").join(String::from_utf8_lossy(&name[..n]).as_ref());
        fs::write(proc.join("uid_map"), uid_map)?;
        fs::write(proc.join("gid_map"), gid_map)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok::<_, std::io::Error>(rustix::fs::open(proc.join("ns/user"), flags, Mode::empty())?)
    })();
    drop(hold_out);
    let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    made.step("map owners")
}

#[cfg(test)]
mod tests {
    use super::exchange;

    #[test]
    fn every_id_has_one_counterpart() {
        for (a, b) in [(0, 65_533), (65_533, 0), (1000, 65_533), (7, 8), (5, 5), (u32::MAX - 1, 0)]
        {
            let map = exchange(a, b);
            let extents: Vec<Vec<u64>> = map
                .lines()
                .map(|line| line.split(' ').map(|n| n.parse().unwrap()).collect())
                .collect();
            let total: u64 = extents.iter().map(|e| e[2]).sum();
            assert_eq!(total, u64::from(u32::MAX), "{map}");
            let to = |id: u64| {
                let hit = extents.iter().find(|e| (e[0]..e[0] + e[2]).contains(&id));
                hit.map(|e| e[1] + id - e[0])
            };
            assert_eq!(to(a.into()), Some(b.into()), "{map}");
            assert_eq!(to(b.into()), Some(a.into()), "{map}");
            assert_eq!(to(4242), Some(4242), "{map}");
            assert_eq!(to(u32::MAX.into()), None, "{map}");
        }
    }
}
