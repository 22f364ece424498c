//! Downloads a blob into a file, going on where an earlier try stopped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::Registry;
use crate::digest::Hasher;
use crate::documents::Blob;
use crate::error::ImageError;
use crate::layer::Growth;
use crate::progress::{Progress, PullEvent};

const CHUNK: usize = 256 << 10;

/// A file that is filled from its beginning, digested on the way.
struct Filling<'a> {
    file: File,
    path: &'a Path,
    hasher: Hasher,
    /// Bytes that are in place.
    position: u64,
    blob: Blob,
    growth: &'a Growth,
    progress: &'a dyn Progress,
    buffer: Vec<u8>,
}

/// Why a stream stopped early.
enum Stop {
    /// It broke; another may go on.
    Broken(String),
    Final(ImageError),
}

impl Filling<'_> {
    fn check(&self) -> Result<(), ImageError> {
        if self.growth.is_abandoned() || self.progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        Ok(())
    }

    fn took(&mut self, n: usize) {
        self.hasher.update(&self.buffer[..n]);
        self.position += n as u64;
        self.growth.grow_to(self.position);
        self.progress.event(&PullEvent::Received { bytes: n as u64 });
    }

    /// Takes over what an earlier process left.
    fn take_over(&mut self) -> Result<(), ImageError> {
        let at = |error| ImageError::at(self.path)(error);
        let length = self.file.metadata().map_err(at)?.len();
        if length > self.blob.size {
            self.file.set_len(0).map_err(at)?;
        }
        loop {
            self.check()?;
            let n = self.file.read(&mut self.buffer).map_err(ImageError::at(self.path))?;
            if n == 0 {
                return Ok(());
            }
            self.took(n);
        }
    }

    /// Fills from a stream that begins at the position, or at the blob's beginning.
    fn fill(&mut self, stream: &mut impl Read, begins_here: bool) -> Result<(), Stop> {
        let at = |path: &Path, error| Stop::Final(ImageError::at(path)(error));
        if !begins_here {
            // The same bytes again: who reads along needs not know.
            self.hasher = Hasher::default();
            self.position = 0;
        }
        self.file.seek(SeekFrom::Start(self.position)).map_err(|e| at(self.path, e))?;
        loop {
            self.check().map_err(Stop::Final)?;
            let n = match stream.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stop::Broken(error.to_string())),
            };
            if self.position + n as u64 > self.blob.size {
                let got = self.position + n as u64;
                let what = self.blob.digest.to_string();
                return Err(Stop::Final(ImageError::size(what, self.blob.size, got)));
            }
            self.file.write_all(&self.buffer[..n]).map_err(|e| at(self.path, e))?;
            self.took(n);
        }
        if self.position < self.blob.size {
            let (position, size) = (self.position, self.blob.size);
            return Err(Stop::Broken(format!(
                "the connection ended at {position} of {size} bytes"
            )));
        }
        Ok(())
    }
}

impl Registry<'_> {
    /// Downloads a blob into `partial`, which may hold the beginning of it, and checks it. `growth`
    /// hears how far it is. A file that is not what its digest says is removed.
    ///
    /// # Errors
    /// [`ImageError::Mismatch`]; [`ImageError::Registry`] after too many tries without a byte.
    pub fn download(
        &self,
        blob: Blob,
        partial: &Path,
        growth: &Growth,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(partial)
            .map_err(ImageError::at(partial))?;
        let mut filling = Filling {
            file,
            path: partial,
            hasher: Hasher::default(),
            position: 0,
            blob,
            growth,
            progress,
            buffer: vec![0; CHUNK],
        };
        filling.take_over()?;
        let mut failures = 0;
        while filling.position < blob.size {
            let before = filling.position;
            let (mut stream, begins_here) = self.open_blob(blob, before)?;
            match filling.fill(&mut stream, begins_here || before == 0) {
                Ok(()) => {}
                Err(Stop::Final(error)) => return Err(error),
                Err(Stop::Broken(reason)) => {
                    // A line that breaks again and again, but gets somewhere, gets there.
                    failures = if filling.position > before { 1 } else { failures + 1 };
                    if failures > self.max_retries() {
                        return Err(ImageError::Registry { what: self.what(blob), reason });
                    }
                    self.pause(failures, None, &reason)?;
                }
            }
        }
        let got = filling.hasher.finish();
        if got != blob.digest {
            std::fs::remove_file(partial).map_err(ImageError::at(partial))?;
            return Err(ImageError::digest(self.what(blob), blob.digest, got));
        }
        Ok(())
    }
}
