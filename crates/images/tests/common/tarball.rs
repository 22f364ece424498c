//! Builds tars by hand, also those that no tool would make.

#![allow(dead_code, clippy::allow_attributes, reason = "not every test uses all of it")]

use std::io::Write;

/// A tar in the making.
#[derive(Default, Clone)]
pub struct Tarball(Vec<u8>);

impl Tarball {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any entry at all; `mode` and `size` go into the header as they are.
    pub fn entry(mut self, kind: u8, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        if path.len() > 100 {
            self = self.raw(b'L', "././@LongLink", "", 0, path.as_bytes());
        }
        if link.len() > 100 {
            self = self.raw(b'K', "././@LongLink", "", 0, link.as_bytes());
        }
        self.raw(kind, path, link, mode, data)
    }

    fn raw(mut self, kind: u8, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        let (path, link) =
            (&path.as_bytes()[..path.len().min(100)], &link.as_bytes()[..link.len().min(100)]);
        old.name[..path.len()].copy_from_slice(path);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_uid(12345);
        header.set_gid(54321);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(b'0', path, "", 0o644, data.as_ref())
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", 0o755, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, 0o777, b"")
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, 0o644, b"")
    }

    /// A PAX record for the next entry.
    pub fn pax(self, key: &str, value: &[u8]) -> Self {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend(value);
        record.push(b'\n');
        self.raw(b'x', "PaxHeaders/x", "", 0o644, &record)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    pub fn gzip(&self) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&self.bytes()).unwrap();
        encoder.finish().unwrap()
    }

    pub fn zstd(&self) -> Vec<u8> {
        zstd::encode_all(self.bytes().as_slice(), 1).unwrap()
    }
}
