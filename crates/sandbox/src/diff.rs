//! What changed in a repository: the writable tree against the host's own pristine copy.
//!
//! The helper reports what stands in the writable layer; what stood there before comes from the
//! host alone. Only regular files are part of a change: a link or a special file in a file's
//! place is that file's deletion, and nothing is ever followed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use patchwright_core::FileChange;
use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::helper::MAX_DIFF;
use crate::tree::{Entry, Found, Merged, Place, Skip, open_beneath};

/// A repository as it was.
pub enum Pristine {
    /// Path to text, none of it executable.
    Files(Arc<BTreeMap<String, String>>),
    /// Directories of the host: one, or the layers of an image at the repository's place.
    Merged(Merged),
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    bytes: Vec<u8>,
    executable: bool,
}

/// The writable tree, as the helper reports it.
#[derive(Default)]
pub struct Written {
    files: BTreeMap<Vec<u8>, File>,
    /// Paths below which nothing of the pristine tree is in view.
    hidden: BTreeSet<Vec<u8>>,
    current: Option<Vec<u8>>,
}

impl Written {
    /// A tree that stands alone (`true`), or lies over the pristine one.
    pub fn new(whole: bool) -> Self {
        let mut written = Self::default();
        if whole {
            written.hidden.insert(Vec::new());
        }
        written
    }

    /// Adds the next entry.
    pub fn add(&mut self, entry: Entry) -> io::Result<()> {
        match entry {
            Entry::File { path, mode, size, .. } => {
                if size > MAX_DIFF {
                    return Err(crate::wire::malformed("a file is larger than a diff may be"));
                }
                let file = File { bytes: vec![0; size as usize], executable: mode & 0o111 != 0 };
                self.hidden.insert(path.clone());
                self.files.insert(path.clone(), file);
                self.current = Some(path);
            }
            Entry::Chunk { offset, data } => {
                let file = self.current.as_ref().and_then(|path| self.files.get_mut(path));
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(data.len());
                file.and_then(|file| file.bytes.get_mut(start..end))
                    .ok_or_else(|| crate::wire::malformed("data beyond its file"))?
                    .copy_from_slice(&data);
            }
            Entry::Hardlink { path, first } => {
                if let Some(file) = self.files.get(&first).cloned() {
                    self.files.insert(path.clone(), file);
                }
                self.hidden.insert(path);
            }
            Entry::Dir { path, opaque, .. } => {
                if opaque {
                    self.hidden.insert(path);
                }
            }
            Entry::Whiteout { path } | Entry::Symlink { path, .. } | Entry::Fifo { path, .. } => {
                self.hidden.insert(path);
            }
        }
        Ok(())
    }

    /// The changes, sorted by path. Paths that are not UTF-8 are left out.
    ///
    /// # Errors
    /// When the pristine tree cannot be read, or what changed is more than a diff may hold.
    pub fn changes(mut self, pristine: &Pristine) -> io::Result<Vec<FileChange>> {
        let mut budget = MAX_DIFF;
        let mut changes = BTreeMap::new();
        let hidden = std::mem::take(&mut self.hidden);
        for path in &hidden {
            for below in pristine.files_below(path)? {
                if self.files.contains_key(below.as_bytes()) || changes.contains_key(&below) {
                    continue;
                }
                if let Some(old) = pristine.read(&below, &mut budget)? {
                    let gone = FileChange {
                        path: below.clone(),
                        old: Some(old.bytes),
                        new: None,
                        executable: false,
                    };
                    changes.insert(below, gone);
                }
            }
        }
        for (path, now) in self.files {
            let Ok(path) = String::from_utf8(path) else { continue };
            let old = pristine.read(&path, &mut budget)?;
            if old.as_ref() != Some(&now) {
                let change = FileChange {
                    path: path.clone(),
                    old: old.map(|file| file.bytes),
                    new: Some(now.bytes),
                    executable: now.executable,
                };
                changes.insert(path, change);
            }
        }
        Ok(changes.into_values().collect())
    }
}

impl Pristine {
    /// Regular files at or below a path (all, for the empty one), without what no diff holds.
    fn files_below(&self, path: &[u8]) -> io::Result<Vec<String>> {
        match self {
            Self::Files(files) => {
                let Ok(path) = std::str::from_utf8(path) else { return Ok(Vec::new()) };
                Ok(files.keys().filter(|key| is_below(key, path)).cloned().collect())
            }
            Self::Merged(root) => {
                let mut found = Vec::new();
                let names = || path.split(|b| *b == b'/');
                if names().any(|name| Skip::Unversioned.skips(name, 0)) {
                    return Ok(found);
                }
                match root.at(path)? {
                    Place::Dir(dir) => collect(&dir, path, &mut found)?,
                    Place::Other(_, _, stat) => add_file(path.to_vec(), &stat, &mut found),
                    Place::Absent | Place::Gone => {}
                }
                Ok(found)
            }
        }
    }

    fn read(&self, path: &str, budget: &mut u64) -> io::Result<Option<File>> {
        match self {
            Self::Files(files) => Ok(files
                .get(path)
                .map(|text| File { bytes: text.clone().into_bytes(), executable: false })),
            Self::Merged(root) => read_merged(root, path, budget),
        }
    }
}

fn is_below(key: &str, path: &str) -> bool {
    let inside = path.is_empty()
        || key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    inside && !key.split('/').any(|name| Skip::Unversioned.skips(name.as_bytes(), 0))
}

/// Reads a regular file of the pristine tree without following any link.
fn read_merged(root: &Merged, path: &str, budget: &mut u64) -> io::Result<Option<File>> {
    let Place::Other(dir, name, stat) = root.at(path.as_bytes())? else { return Ok(None) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_beneath(&dir, &name, flags, Mode::empty())?;
    let size = stat.st_size as u64;
    *budget = budget
        .checked_sub(size)
        .ok_or_else(|| crate::wire::malformed("the changed files are larger than a diff may be"))?;
    let mut bytes = Vec::with_capacity(size as usize);
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::from(file), size), &mut bytes)?;
    Ok(Some(File { bytes, executable: stat.st_mode & 0o111 != 0 }))
}

/// Gathers the regular files below `dir`, which is at `path`.
fn collect(dir: &Merged, path: &[u8], found: &mut Vec<String>) -> io::Result<()> {
    for (name, layers) in dir.names()? {
        if Skip::Unversioned.skips(&name, 0) {
            continue;
        }
        let below = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
        match dir.look(&name, &layers)? {
            Found::Dir(child) => collect(&child, &below, found)?,
            Found::Other(_, stat) => add_file(below, &stat, found),
            Found::Absent | Found::Whiteout => {}
        }
    }
    Ok(())
}

fn add_file(path: Vec<u8>, stat: &Stat, found: &mut Vec<String>) {
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && let Ok(path) = String::from_utf8(path)
    {
        found.push(path);
    }
}

#[cfg(test)]
mod tests {
    use super::{Pristine, Written};
    use crate::tree::{Entry, Marks, Merged, open_host_dir};
    use patchwright_core::FileChange;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn file(written: &mut Written, path: &str, mode: u32, text: &str) {
        let size = text.len() as u64;
        let path = path.as_bytes().to_vec();
        written.add(Entry::File { path, mode, mtime_s: 0, mtime_ns: 0, size }).unwrap();
        written.add(Entry::Chunk { offset: 0, data: text.as_bytes().to_vec() }).unwrap();
    }

    fn brief(changes: &[FileChange]) -> Vec<(&str, bool, bool, bool)> {
        changes
            .iter()
            .map(|c| (c.path.as_str(), c.old.is_some(), c.new.is_some(), c.executable))
            .collect()
    }

    fn files(list: &[(&str, &str)]) -> Pristine {
        let map: BTreeMap<_, _> =
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Pristine::Files(Arc::new(map))
    }

    #[test]
    fn a_whole_tree_is_compared_with_every_pristine_file() {
        let pristine =
            files(&[("a.py", "1"), ("b.py", "2"), ("d/c.py", "3"), ("x/__pycache__/a.pyc", "")]);
        let mut written = Written::new(true);
        file(&mut written, "a.py", 0o644, "1");
        file(&mut written, "b.py", 0o755, "2");
        file(&mut written, "new", 0o644, "n");
        let (path, target) = (b"d".to_vec(), b"/etc".to_vec());
        written.add(Entry::Symlink { path, target, mtime_s: 0, mtime_ns: 0 }).unwrap();
        let changes = written.changes(&pristine).unwrap();
        assert_eq!(
            brief(&changes),
            [
                ("b.py", true, true, true),
                ("d/c.py", true, false, false),
                ("new", false, true, false)
            ]
        );
    }

    #[test]
    fn an_upper_layer_hides_only_what_it_covers() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for d in ["gone", "opaque", "kept", "was_dir", ".git"] {
            std::fs::create_dir(at(d)).unwrap();
            std::fs::write(at(d).join("f"), d).unwrap();
        }
        std::os::unix::fs::symlink("/etc", at("link")).unwrap();
        let dirs = vec![open_host_dir(dir.path()).unwrap()];
        let pristine = Pristine::Merged(Merged::new(dirs, Marks::None));
        let mut written = Written::new(false);
        let dir_entry = |path: &str, opaque| Entry::Dir {
            path: path.as_bytes().to_vec(),
            mode: 0o755,
            mtime_s: 0,
            mtime_ns: 0,
            opaque,
        };
        written.add(Entry::Whiteout { path: b"gone".to_vec() }).unwrap();
        written.add(dir_entry("kept", false)).unwrap();
        file(&mut written, "kept/f", 0o644, "kept");
        written.add(dir_entry("opaque", true)).unwrap();
        file(&mut written, "opaque/g", 0o644, "g");
        file(&mut written, "was_dir", 0o644, "file now");
        written.add(dir_entry("link", true)).unwrap();
        file(&mut written, "link/passwd", 0o644, "mine");
        let changes = written.changes(&pristine).unwrap();
        assert_eq!(
            brief(&changes),
            [
                ("gone/f", true, false, false),
                ("link/passwd", false, true, false),
                ("opaque/f", true, false, false),
                ("opaque/g", false, true, false),
                ("was_dir", false, true, false),
                ("was_dir/f", true, false, false),
            ]
        );
        let link = changes.iter().find(|c| c.path == "link/passwd").unwrap();
        assert_eq!(link.old, None, "the host's /etc/passwd must not be read through a link");
    }

    #[test]
    fn data_out_of_its_file_is_refused() {
        let mut written = Written::new(true);
        assert!(written.add(Entry::Chunk { offset: 0, data: vec![1] }).is_err());
        file(&mut written, "a", 0o644, "abc");
        assert!(written.add(Entry::Chunk { offset: 2, data: vec![1, 2] }).is_err());
        assert!(written.add(Entry::Chunk { offset: u64::MAX, data: vec![1, 2] }).is_err());
    }
}
