//! Layers as tools make them, and layers that are made to do harm.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;

use super::{LayerInfo, UnpackLimits, WhiteoutForm, unpack};
use crate::error::ImageError;
use crate::tarball::Tarball;

const FORMS: [WhiteoutForm; 2] = [WhiteoutForm::Device, WhiteoutForm::Attribute];

/// A directory to unpack into, beside what an attack would want to reach.
struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Self { dir }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    fn outside(&self) -> String {
        self.dir.path().join("outside").display().to_string()
    }

    fn unpack(&self, tar: &Tarball, form: WhiteoutForm) -> Result<LayerInfo, ImageError> {
        let bytes = tar.bytes();
        let done = unpack(bytes.as_slice(), &self.root(), &UnpackLimits::default(), form);
        // Whatever happened, nothing outside changed.
        let names: Vec<_> = fs::read_dir(self.dir.path().join("outside"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["secret"]);
        let secret = self.dir.path().join("outside/secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
        done.map(|(info, _)| info)
    }
}

fn unpacked(tar: &Tarball) -> (Ground, LayerInfo) {
    let ground = Ground::new();
    let info = ground.unpack(tar, WhiteoutForm::Device).unwrap();
    (ground, info)
}

fn refused(tar: &Tarball) -> String {
    match Ground::new().unpack(tar, WhiteoutForm::Device) {
        Err(ImageError::Layer { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(n);
    Some(value)
}

fn is_whiteout(path: &Path, form: WhiteoutForm) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    match form {
        WhiteoutForm::Device => metadata.file_type().is_char_device() && metadata.rdev() == 0,
        WhiteoutForm::Attribute => {
            metadata.is_file()
                && metadata.len() == 0
                && attribute(path, "user.overlay.whiteout").is_some()
                && attribute(path.parent().unwrap(), "user.overlay.opaque").as_deref() == Some(b"x")
        }
    }
}

#[test]
fn files_have_their_contents_modes_and_times() {
    let tar = Tarball::new()
        .entry(b'5', "./", "", 0o755, b"")
        .entry(b'5', "tmp/", "", 0o1777, b"")
        .entry(b'5', "closed", "", 0o000, b"")
        .entry(b'0', "closed/file", "", 0o000, b"text")
        .entry(b'0', "bin/su", "", 0o6755, b"#!")
        .entry(b'2', "lib", "usr/lib", 0o777, b"")
        .pax("mtime", b"5.5")
        .file("/absolute", "a")
        .hardlink("other", "closed/file")
        .pax("SCHILY.xattr.user.kept", b"1")
        .pax("SCHILY.xattr.user.mime", b"x")
        .file("attributes", "")
        .entry(b'3', "dev/null", "", 0o666, b"")
        .entry(b'6', "pipe", "", 0o666, b"");
    let (ground, info) = unpacked(&tar);
    let root = ground.root();
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("closed"), mode("closed/file")), (0o1777, 0o700, 0o600));
    assert_eq!((mode("bin"), mode("bin/su")), (0o755, 0o755));
    assert_eq!(fs::read_to_string(root.join("other")).unwrap(), "text");
    assert_eq!(fs::metadata(root.join("other")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(root.join("lib")).unwrap(), Path::new("usr/lib"));
    let absolute = fs::metadata(root.join("absolute")).unwrap();
    assert_eq!((absolute.mtime(), absolute.mtime_nsec()), (5, 500_000_000));
    for path in ["closed", "closed/file", "tmp"] {
        assert_eq!(fs::metadata(root.join(path)).unwrap().mtime(), 1_000_000_000, "{path}");
    }
    let own = fs::metadata(&root).unwrap().uid();
    assert_eq!(fs::metadata(root.join("bin/su")).unwrap().uid(), own);
    assert_eq!(attribute(&root.join("attributes"), "user.mime").unwrap(), b"x");
    assert!(!root.join("dev").exists() && !root.join("pipe").exists());
    assert_eq!(
        info,
        LayerInfo { bytes: 4 + 2 + 1, entries: 11, left_out: 2, stripped: 1 },
        "four bytes of the linked file count once"
    );
}

#[test]
fn powers_and_overlay_marks_of_a_tar_are_dropped() {
    let mut tar = Tarball::new();
    for name in [
        "security.capability",
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "user.overlay.redirect",
    ] {
        tar = tar.pax(&format!("SCHILY.xattr.{name}"), b"y");
        tar = tar.dir(&format!("d-{name}"));
    }
    let tar = tar.pax("SCHILY.xattr.user.overlay.whiteout", b"").file("f", "");
    let (ground, info) = unpacked(&tar);
    for entry in fs::read_dir(ground.root()).unwrap() {
        let path = entry.unwrap().path();
        let mut names = vec![0; 256];
        let n = rustix::fs::llistxattr(&path, names.as_mut_slice()).unwrap();
        assert!(!names[..n].windows(7).any(|w| w == b"overlay" || w == b"securit"), "{path:?}");
    }
    assert_eq!(info.stripped, 5);
}

#[test]
fn nothing_gets_out() {
    let outside = Ground::new().outside();
    let refusals = [
        ("..", Tarball::new().file("../outside/x", "x")),
        ("inner ..", Tarball::new().file("a/../../outside/x", "x")),
        ("dir ..", Tarball::new().dir("..")),
        ("hard link with ..", Tarball::new().hardlink("x", "../outside/secret")),
        ("hard link to nothing", Tarball::new().hardlink("x", "etc/passwd")),
        ("hard link to a directory", Tarball::new().dir("d").hardlink("x", "d")),
        ("whiteout ..", Tarball::new().file("a/.wh...", "")),
        ("whiteout .", Tarball::new().file("a/.wh..", "")),
        ("whiteout of nothing", Tarball::new().file("a/.wh.", "")),
        ("through a file", Tarball::new().file("f", "").file("f/x", "x")),
        ("link loop", Tarball::new().symlink("a", "b").symlink("b", "a").file("a/x", "x")),
        ("empty link", Tarball::new().symlink("a", "")),
        ("root as a file", Tarball::new().file("./", "x").entry(b'0', ".", "", 0o644, b"x")),
        ("unknown type", Tarball::new().entry(b'Z', "a", "", 0o644, b"")),
        ("sparse", Tarball::new().entry(b'S', "a", "", 0o644, b"")),
        ("long path", Tarball::new().file(&"a/".repeat(3000), "")),
        ("deep path", Tarball::new().file(&("a/".repeat(300) + "f"), "")),
        ("whiteout as link target", Tarball::new().file(".wh.a", "").hardlink("b", "a")),
    ];
    for (what, tar) in refusals {
        assert!(!refused(&tar).is_empty(), "{what}");
    }
    // The links stay, and lead nowhere while unpacking.
    for target in [outside.as_str(), "../outside", "../../../../../../../outside"] {
        let tar = Tarball::new().symlink("l", target).file("l/x", "x").file("l/.wh.secret", "");
        let (ground, _) = unpacked(&tar);
        assert!(fs::symlink_metadata(ground.root().join("l")).unwrap().is_symlink());
        let tar = Tarball::new().symlink("l", target).hardlink("x", "l/secret");
        assert!(refused(&tar).contains("link target"));
        let tar = Tarball::new().symlink("l", &format!("{target}/secret")).file("l", "mine");
        let (ground, _) = unpacked(&tar);
        assert_eq!(fs::read_to_string(ground.root().join("l")).unwrap(), "mine");
        // A hard link to a symbolic link is one to the link itself.
        let tar = Tarball::new()
            .symlink("l", &format!("{target}/secret"))
            .hardlink("h", "l")
            .file("h", "mine");
        let (ground, _) = unpacked(&tar);
        assert_eq!(fs::read_to_string(ground.root().join("h")).unwrap(), "mine");
        // A directory's mode and times are its own, not those of what a link shows.
        let tar = Tarball::new().symlink("l", target).entry(b'5', "l", "", 0o777, b"");
        let (ground, _) = unpacked(&tar);
        assert!(fs::symlink_metadata(ground.root().join("l")).unwrap().is_dir());
    }
}

/// Each of the names that a link leads to is deep, so that together they would be deeper still.
#[test]
fn links_do_not_make_it_deeper() {
    let deep = "d/".repeat(200);
    let tar = Tarball::new().file(&format!("{deep}f"), "").symlink("l", &deep);
    assert!(refused(&tar.clone().file(&format!("l/{deep}f"), "")).contains("deeper"));
    assert!(refused(&tar.dir(&format!("l/{}", "e/".repeat(60)))).contains("deeper"));
}

#[test]
fn links_within_the_layer_are_followed_within_it() {
    let tar = Tarball::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("run", "/var/run")
        .file("lib/a", "a")
        .file("run/b", "b")
        .file("lib/.wh.gone", "");
    let (ground, _) = unpacked(&tar);
    let root = ground.root();
    assert_eq!(fs::read_to_string(root.join("usr/lib/a")).unwrap(), "a");
    assert_eq!(fs::read_to_string(root.join("var/run/b")).unwrap(), "b");
    assert!(is_whiteout(&root.join("usr/lib/gone"), WhiteoutForm::Device));
}

#[test]
fn the_last_of_equal_names_stays() {
    let tar = Tarball::new()
        .file("a", "first")
        .hardlink("b", "a")
        .file("a", "second")
        .file("d/inner/x", "x")
        .file("d", "a file now")
        .file("f", "f")
        .dir("f")
        .file("f/y", "y")
        .dir("kept")
        .file("kept/z", "z")
        .dir("kept")
        .hardlink("a", "a");
    let (ground, _) = unpacked(&tar);
    let read = |path: &str| fs::read_to_string(ground.root().join(path)).unwrap();
    assert_eq!((read("a"), read("b")), ("second".to_owned(), "first".to_owned()));
    assert_eq!(
        (read("d"), read("f/y"), read("kept/z")),
        ("a file now".into(), "y".into(), "z".into())
    );
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let tar = Tarball::new()
        .dir("etc")
        .file("etc/.wh.passwd", "")
        .file("new/.wh.deep", "")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/here", "h")
        .file("opaque/.wh.not-needed", "")
        .file(".wh..wh.plnk", "")
        // Gone below, here again: in both orders.
        .file(".wh.file", "")
        .file("file", "f")
        .file("file2", "f")
        .file(".wh.file2", "")
        .file(".wh.dir", "")
        .dir("dir")
        .file("dir2/x", "x")
        .file(".wh.dir2", "")
        .file(".wh.dir3", "")
        .file("dir3/x", "x");
    for form in FORMS {
        let ground = Ground::new();
        ground.unpack(&tar, form).unwrap();
        let root = ground.root();
        let opaque = |path: &str| attribute(&root.join(path), "user.overlay.opaque");
        assert!(is_whiteout(&root.join("etc/passwd"), form), "{form:?}");
        assert!(is_whiteout(&root.join("new/deep"), form));
        assert_eq!(opaque("opaque").unwrap(), b"y");
        assert_eq!(fs::read_dir(root.join("opaque")).unwrap().count(), 1);
        for file in ["file", "file2"] {
            assert_eq!(fs::read_to_string(root.join(file)).unwrap(), "f");
        }
        for dir in ["dir", "dir2", "dir3"] {
            assert_eq!(opaque(dir).unwrap(), b"y", "{dir}");
        }
        assert_eq!(opaque("new").is_some(), form == WhiteoutForm::Attribute);
        assert!(!root.join(".wh..wh.plnk").exists());
    }
}

#[test]
fn limits_hold() {
    let tar = (0..20).fold(Tarball::new(), |tar, i| tar.file(&format!("f{i}"), "x")).bytes();
    let ground = Ground::new();
    let limits = UnpackLimits { max_entries: 10, ..UnpackLimits::default() };
    let error = unpack(tar.as_slice(), &ground.root(), &limits, WhiteoutForm::Device).unwrap_err();
    assert!(error.to_string().contains("more than 10 entries"), "{error}");
}

#[test]
fn a_umask_changes_nothing() {
    let tar = Tarball::new().entry(b'0', "d/f", "", 0o666, b"").entry(b'5', "e", "", 0o777, b"");
    let (ground, _) = unpacked(&tar);
    let mode = |path| fs::metadata(ground.root().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("d"), mode("d/f"), mode("e")), (0o755, 0o666, 0o777));
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec!["a", "b", "c", "l", ".", "..", ".wh.a", ".wh..wh..opq", ""]),
        1..5,
    )
    .prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        name(),
        Just("..".to_owned()),
        Just("../outside".to_owned()),
        Just("/".to_owned()),
        Just("../outside/secret".to_owned()),
        name().prop_map(|name| format!("/{name}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever entries in whatever order: nothing outside changes, and what is made can be removed
    /// by who made it.
    #[test]
    fn no_sequence_of_entries_gets_out(
        entries in prop::collection::vec((prop::sample::select(b"0125".to_vec()), name(), target(), 0..0o10000u32), 1..14),
        attribute in any::<bool>(),
    ) {
        let ground = Ground::new();
        let tar = entries.iter().fold(Tarball::new(), |tar, (kind, path, link, mode)| {
            let link = if matches!(kind, b'1' | b'2') { link.as_str() } else { "" };
            tar.entry(*kind, path, link, *mode, if *kind == b'0' { b"data" } else { b"" })
        });
        let form = if attribute { WhiteoutForm::Attribute } else { WhiteoutForm::Device };
        let _ = ground.unpack(&tar, form);
        fs::remove_dir_all(ground.root()).unwrap();
    }

    /// Plain files come out as they went in, the last of equal names.
    #[test]
    fn plain_layers_are_exact(files in prop::collection::vec(("[a-c]{1,2}/[a-c]{1,2}", prop::collection::vec(any::<u8>(), 0..700)), 0..12)) {
        let tar = files.iter().fold(Tarball::new(), |tar, (path, data)| tar.file(path, data));
        let (ground, info) = unpacked(&tar);
        prop_assert_eq!(info.entries, files.len() as u64);
        let last: BTreeMap<_, _> = files.into_iter().collect();
        for (path, data) in last {
            prop_assert_eq!(fs::read(ground.root().join(path)).unwrap(), data);
        }
    }
}

/// The kernel's own reading of what was made, without being root outside.
#[test]
fn an_overlay_shows_what_the_layers_say() {
    let lower = Tarball::new()
        .file("d/gone", "")
        .file("d/stay", "")
        .file("opaque/below", "")
        .file("top", "")
        .file("dir/inner", "")
        .file("again/below", "");
    let upper = Tarball::new()
        .file("d/.wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/here", "")
        .file(".wh.top", "")
        .file(".wh.dir", "")
        .file(".wh.again", "")
        .file("again/here", "");
    for form in FORMS {
        let (below, above) = (Ground::new(), Ground::new());
        below.unpack(&lower, form).unwrap();
        above.unpack(&upper, form).unwrap();
        let script = "mkdir ../m && mount -t overlay o -o lowerdir=\"$1:$2\",userxattr ../m \
                      && cd ../m && find . -type f | sort && umount -l . ";
        let output = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .args([above.root(), below.root()])
            .current_dir(above.root())
            .output()
            .expect("unshare of util-linux");
        let seen = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(seen, "./again/here\n./d/stay\n./opaque/here\n", "{form:?}: {error}");
    }
}
