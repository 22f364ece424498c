//! Named members of a directory or of a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decompress_to;
use crate::error::ImageError;
use crate::progress::Progress;
use crate::tar_entries::{Kind, TarEntries};

/// Members of an archive at most.
const MAX_MEMBERS: usize = 100_000;
/// Bytes of a compressed archive's tar at most.
const MAX_ARCHIVE: u64 = 256 << 30;

/// Where members are.
pub enum Container {
    /// Files of a directory.
    Dir(PathBuf),
    /// Parts of a tar.
    Tar { path: PathBuf, file: Arc<File>, members: HashMap<String, Member> },
}

/// A member of a tar.
pub enum Member {
    /// Its bytes.
    At { offset: u64, size: u64 },
    /// Another name of a member.
    Link(String),
}

impl Container {
    pub fn open(
        path: &Path,
        temporary: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, ImageError> {
        let mut file = File::open(path).map_err(ImageError::at(path))?;
        if file.metadata().map_err(ImageError::at(path))?.is_dir() {
            return Ok(Self::Dir(path.to_owned()));
        }
        if is_compressed(&mut file).map_err(ImageError::at(path))? {
            let mut whole = tempfile::tempfile_in(temporary).map_err(ImageError::at(temporary))?;
            decompress_to(file, &mut whole, MAX_ARCHIVE, progress)?;
            file = whole;
        }
        file.seek(SeekFrom::Start(0)).map_err(ImageError::at(path))?;
        let members = members(&file).map_err(|error| ImageError::Archive {
            path: path.display().to_string(),
            reason: match error {
                ImageError::Layer { reason, .. } => format!("no tar archive: {reason}"),
                other => other.to_string(),
            },
        })?;
        Ok(Self::Tar { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// An error about the archive.
    pub fn error(&self, reason: impl Into<String>) -> ImageError {
        let (Self::Dir(path) | Self::Tar { path, .. }) = self;
        ImageError::Archive { path: path.display().to_string(), reason: reason.into() }
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Dir(dir) => dir.join(name).is_file(),
            Self::Tar { members, .. } => members.contains_key(name),
        }
    }

    /// A member's bytes and their number.
    pub fn open_member(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), ImageError> {
        let Some(mut name) = clean(name.as_bytes()) else {
            return Err(self.error(format!("{name:?} is no name of a member")));
        };
        match self {
            Self::Dir(dir) => {
                let path = dir.join(&name);
                let file = File::open(&path).map_err(ImageError::at(&path))?;
                let metadata = file.metadata().map_err(ImageError::at(&path))?;
                if !metadata.is_file() {
                    return Err(self.error(format!("{name} is no file")));
                }
                Ok((Box::new(file), metadata.len()))
            }
            Self::Tar { file, members, .. } => {
                // Layers that are the same are links in old archives.
                for _ in 0..8 {
                    match members.get(&name) {
                        None => break,
                        Some(Member::Link(target)) => name.clone_from(target),
                        Some(Member::At { offset, size }) => {
                            let part = Part {
                                file: Arc::clone(file),
                                position: *offset,
                                end: offset + size,
                            };
                            return Ok((Box::new(part), *size));
                        }
                    }
                }
                Err(self.error(format!("{name} is named in it, but is not in it")))
            }
        }
    }

    /// A small member, whole.
    pub fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, ImageError> {
        let (mut member, size) = self.open_member(name)?;
        if size > max {
            return Err(self.error(format!("{name} has {size} bytes; at most {max} are taken")));
        }
        let mut bytes = Vec::new();
        (&mut member).take(max).read_to_end(&mut bytes).map_err(ImageError::io(name))?;
        Ok(bytes)
    }
}

fn is_compressed(file: &mut File) -> io::Result<bool> {
    let mut magic = Vec::new();
    Read::by_ref(file).take(4).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd])
}

/// Where each member is. Of two with one name it is the later one.
fn members(file: &File) -> Result<HashMap<String, Member>, ImageError> {
    let mut members = HashMap::new();
    let length = file.metadata().map_err(ImageError::io("look at an archive"))?.len();
    let mut entries = TarEntries::new(file);
    while let Some(entry) = entries.next_entry()? {
        // Layers are passed over, not read.
        let next = entry.offset + entry.size.next_multiple_of(512);
        if next > length {
            return Err(entry.error("the archive is cut off"));
        }
        let mut seeking = file;
        seeking.seek(SeekFrom::Start(next)).map_err(ImageError::io("read an archive"))?;
        entries.moved_to(next);
        let Some(name) = clean(&entry.path) else { continue };
        let member = match entry.kind {
            Kind::File => Member::At { offset: entry.offset, size: entry.size },
            Kind::Hardlink => match clean(&entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            Kind::Symlink => match relative(&name, &entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            Kind::Dir | Kind::Special => continue,
        };
        members.insert(name, member);
        if members.len() > MAX_MEMBERS {
            return Err(entry.error(format!("more than {MAX_MEMBERS} members")));
        }
    }
    Ok(members)
}

/// A member's name without `.`; `None` for one that leads out.
fn clean(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    if path.starts_with('/') {
        return None;
    }
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// What a link of a member leads to, within the archive.
fn relative(name: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A part of a file, read without moving anybody's position.
struct Part {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let most = left.min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buf[..most], self.position)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
        }
        self.position += n as u64;
        Ok(n)
    }
}
