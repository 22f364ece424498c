//! Entries of a tar stream, within bounds.
//!
//! Headers are decoded by the `tar` crate. Walking the stream is done here, because that crate
//! reads extended headers into memory whatever size they claim, and splits their records at line
//! ends, which a binary attribute may contain. Formats: v7, ustar, GNU long names, PAX as POSIX.1
//! has it. Where readers differ, Go's `archive/tar` is followed, which Docker reads layers with.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::error::ImageError;

const BLOCK: u64 = 512;
/// Bytes of one extended header or long name at most: Go's bound.
const MAX_EXTENDED: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    /// Another name of a file of the same tar.
    Hardlink,
    /// A device or FIFO.
    Special,
}

/// One entry; its bytes are read with [`TarEntries::data`] before the next one is asked for.
#[derive(Debug, Clone)]
pub struct TarEntry {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// All twelve bits.
    pub mode: u32,
    /// Bytes of data that follow.
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes by their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data begins in the stream.
    pub offset: u64,
}

impl TarEntry {
    /// An error about this entry.
    pub fn error(&self, reason: impl Into<String>) -> ImageError {
        layer_error(&self.path, reason)
    }
}

/// An error about the entry of a path.
pub fn layer_error(path: &[u8], reason: impl Into<String>) -> ImageError {
    let mut entry = String::from_utf8_lossy(path).into_owned();
    if entry.chars().count() > 200 {
        entry = entry.chars().take(200).collect::<String>() + "…";
    }
    ImageError::Layer { entry, reason: reason.into() }
}

/// What extended headers say of the entry that follows them.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Walks a tar.
pub struct TarEntries<R> {
    input: R,
    position: u64,
    /// Data of the current entry that was not read yet.
    unread: u64,
    padding: u64,
}

impl<R: Read> TarEntries<R> {
    pub fn new(input: R) -> Self {
        Self { input, position: 0, unread: 0, padding: 0 }
    }

    /// The stream, wherever it stands.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The data of the entry that [`TarEntries::next_entry`] gave last. A tar that ends inside it
    /// is an error, not an end.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// The stream was moved to the end of the last entry, by who can do so without reading.
    pub fn moved_to(&mut self, position: u64) {
        (self.position, self.unread, self.padding) = (position, 0, 0);
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// [`ImageError::Layer`] for what is no tar, [`ImageError::Io`] when the stream fails.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, ImageError> {
        let mut extended = Extended::default();
        let mut is_extended = false;
        loop {
            self.skip(self.unread + self.padding)?;
            (self.unread, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return if is_extended {
                    Err(layer_error(b"", "the tar ends after an extended header"))
                } else {
                    Ok(None)
                };
            };
            match header.entry_type() {
                EntryType::XGlobalHeader => {
                    // Comments, such as git's: nothing that Docker heeds.
                    self.extended_data(&header)?;
                    continue;
                }
                EntryType::XHeader => {
                    let data = self.extended_data(&header)?;
                    read_pax(&data, &mut extended)?;
                }
                EntryType::GNULongName => extended.path = Some(self.long_name(&header)?),
                EntryType::GNULongLink => extended.link = Some(self.long_name(&header)?),
                _ => return self.entry(&header, extended).map(Some),
            }
            is_extended = true;
        }
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<TarEntry, ImageError> {
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let error = |reason: String| layer_error(&path, reason);
        let link = extended.link.unwrap_or_else(|| {
            header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default()
        });
        if path.contains(&0) || link.contains(&0) {
            return Err(error("a name with a NUL byte".to_owned()));
        }
        let kind = match header.entry_type() {
            // In the oldest format, a directory is a file whose name ends in a slash.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Dir,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Dir,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Hardlink,
            EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Special,
            EntryType::GNUSparse => return Err(error("sparse files are not supported".to_owned())),
            other => {
                let byte = other.as_byte();
                return Err(error(format!("an entry of unknown type {:?}", char::from(byte))));
            }
        };
        let size = match (kind, extended.size) {
            // Whatever is claimed, nothing follows: Go's reading.
            (Kind::Dir | Kind::Symlink | Kind::Hardlink | Kind::Special, _) => 0,
            (Kind::File, Some(size)) => size,
            (Kind::File, None) => size_of(header).map_err(&error)?,
        };
        if size > i64::MAX as u64 {
            return Err(error(format!("a size of {size} bytes")));
        }
        let mode = if is_empty(&header.as_old().mode) { Ok(0) } else { header.mode() };
        let mode = mode.map_err(|e| error(e.to_string()))? & 0o7777;
        let mtime = extended.mtime.unwrap_or_else(|| {
            (header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0)
        });
        self.expect(size);
        let offset = self.position;
        Ok(TarEntry { kind, path, link, mode, size, mtime, xattrs: extended.xattrs, offset })
    }

    fn expect(&mut self, size: u64) {
        self.unread = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
    }

    /// The next header; `None` at a zero block or a clean end.
    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut block = [0; BLOCK as usize];
        let mut have = 0;
        while have < block.len() {
            match self.input.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(layer_error(b"", "the tar ends inside a header")),
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::io("read a tar")(error)),
            }
        }
        self.position += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(layer_error(b"", "no tar header: its checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// The data of an extended header, in memory.
    fn extended_data(&mut self, header: &Header) -> Result<Vec<u8>, ImageError> {
        let size = size_of(header).map_err(|reason| layer_error(b"", reason))?;
        if size > MAX_EXTENDED {
            let reason = format!("an extended header of {size} bytes; at most {MAX_EXTENDED}");
            return Err(layer_error(b"", reason));
        }
        self.expect(size);
        let mut bytes = Vec::with_capacity(size as usize);
        self.data().read_to_end(&mut bytes).map_err(ImageError::io("read a tar"))?;
        Ok(bytes)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, ImageError> {
        let mut name = self.extended_data(header)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ImageError> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink())
            .map_err(ImageError::io("read a tar"))?;
        self.position += skipped;
        if skipped == bytes { Ok(()) } else { Err(layer_error(b"", "the tar is cut off")) }
    }
}

/// Whether a field was left out, which means 0.
fn is_empty(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

fn size_of(header: &Header) -> Result<u64, String> {
    if is_empty(&header.as_old().size) {
        return Ok(0);
    }
    header.entry_size().map_err(|error| error.to_string())
}

/// Reads an entry's data.
pub struct Data<'a, R>(&'a mut TarEntries<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let tar = &mut *self.0;
        let most = usize::try_from(tar.unread).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = tar.input.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar is cut off"));
        }
        tar.unread -= n as u64;
        tar.position += n as u64;
        Ok(n)
    }
}

/// Reads the records `LENGTH KEY=VALUE\n` of a PAX header.
fn read_pax(mut data: &[u8], extended: &mut Extended) -> Result<(), ImageError> {
    let error = |reason: &str| layer_error(b"", format!("malformed PAX header: {reason}"));
    while !data.is_empty() {
        let space = data.iter().take(20).position(|b| *b == b' ').ok_or_else(|| error("length"))?;
        let length: usize = decimal(&data[..space]).ok_or_else(|| error("length"))?;
        let record = data.get(space + 1..length).ok_or_else(|| error("length"))?;
        let record = record.strip_suffix(b"\n").ok_or_else(|| error("no line end"))?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(|| error("no value"))?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        data = &data[length..];
        match key {
            // An empty value takes a record back.
            b"path" => extended.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => extended.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => {
                let size: usize = decimal(value).ok_or_else(|| error("size"))?;
                extended.size = Some(size as u64);
            }
            b"mtime" => extended.mtime = Some(pax_time(value).ok_or_else(|| error("mtime"))?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(layer_error(b"", "sparse files are not supported"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && !name.contains(&0)
                {
                    extended.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

fn decimal(text: &[u8]) -> Option<usize> {
    // No signs and no spaces, which `parse` would take.
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests;
