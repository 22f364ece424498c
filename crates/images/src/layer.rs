//! From compressed bytes to a checked directory: one thread decompresses, another digests and
//! unpacks, and both may run behind a download that still goes on.

use std::fs::File;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::digest::{Digest, HashingReader};
use crate::error::ImageError;
use crate::progress::Progress;
use crate::tar_entries::layer_error;
use crate::unpack::{LayerInfo, UnpackLimits, WhiteoutForm, unpack};

/// Bytes handed from the decompressor to the unpacker at a time, and how many such may wait.
const CHUNK: usize = 256 << 10;
const QUEUE: usize = 8;

/// Where a layer is made, and within what.
pub struct Making<'a> {
    /// An empty directory.
    pub root: &'a Path,
    pub limits: &'a UnpackLimits,
    pub form: WhiteoutForm,
    pub progress: &'a dyn Progress,
}

/// Unpacks a layer, gzip, zstd or plain, whose tar must have a digest.
///
/// # Errors
/// [`ImageError::Mismatch`] for another digest; what [`unpack`] refuses; what reading fails with.
pub fn make_layer(
    source: impl Read + Send,
    diff_id: Digest,
    making: &Making<'_>,
) -> Result<LayerInfo, ImageError> {
    let compressed = AtomicU64::new(0);
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(QUEUE);
        let counted = Counted { inner: source, count: &compressed };
        let decoder = thread::Builder::new().name("decompress".to_owned());
        decoder
            .spawn_scoped(scope, move || decode(counted, &sender))
            .map_err(ImageError::io("start a thread"))?;
        let chunks = Chunks {
            receiver,
            chunk: Cursor::default(),
            bytes: 0,
            compressed: &compressed,
            making,
        };
        let (info, mut rest) =
            unpack(HashingReader::new(chunks), making.root, making.limits, making.form)?;
        // The digest is that of all bytes, those after the end of the tar too.
        io::copy(&mut rest, &mut io::sink()).map_err(ImageError::io("read a layer"))?;
        let (got, _) = rest.finish();
        if got == diff_id { Ok(info) } else { Err(ImageError::digest("layer", diff_id, got)) }
    })
}

/// Counts what is read.
struct Counted<'a, R> {
    inner: R,
    count: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Decompresses by what the bytes are; media types are known to lie.
pub fn decompressed<'a, R: Read + Send + 'a>(
    mut source: R,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut magic = Vec::new();
    (&mut source).take(4).read_to_end(&mut magic)?;
    let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
    let is_zstd = magic == [0x28, 0xb5, 0x2f, 0xfd];
    let whole: Peeked<R> = Cursor::new(magic).chain(source);
    let buffered = BufReader::with_capacity(CHUNK, whole);
    Ok(if is_gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
    } else if is_zstd {
        Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?)
    } else {
        Box::new(buffered)
    })
}

fn decode(source: impl Read + Send, sender: &SyncSender<io::Result<Vec<u8>>>) {
    let mut decoder = match decompressed(source) {
        Ok(decoder) => decoder,
        Err(error) => {
            let _ = sender.send(Err(undecodable(error)));
            return;
        }
    };
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = decoder.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        let is_end = chunk.is_empty();
        // Whoever unpacks may have given up.
        if !is_end && sender.send(Ok(chunk)).is_err() {
            return;
        }
        if let Err(error) = read {
            let _ = sender.send(Err(undecodable(error)));
            return;
        }
        if is_end {
            return;
        }
    }
}

/// What a decompressor finds wrong is the layer's fault; what the host fails with is not.
fn undecodable(error: io::Error) -> io::Error {
    let is_ours =
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<ImageError>);
    if is_ours || error.raw_os_error().is_some() {
        return error;
    }
    layer_error(b"", format!("cannot be decompressed: {error}")).into_io()
}

/// The decompressed bytes, within bounds.
struct Chunks<'a> {
    receiver: Receiver<io::Result<Vec<u8>>>,
    chunk: Cursor<Vec<u8>>,
    bytes: u64,
    compressed: &'a AtomicU64,
    making: &'a Making<'a>,
}

impl Chunks<'_> {
    fn check(&self) -> Result<(), ImageError> {
        if self.making.progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let limits = self.making.limits;
        if self.bytes > limits.max_bytes {
            let reason = format!("more than {} bytes when unpacked", limits.max_bytes);
            return Err(layer_error(b"", reason));
        }
        let compressed = self.compressed.load(Ordering::Relaxed);
        let allowed = limits.free_bytes.saturating_add(compressed.saturating_mul(limits.max_ratio));
        if self.bytes > allowed {
            let reason = format!(
                "{compressed} bytes that unpack to more than {allowed}: a decompression bomb"
            );
            return Err(layer_error(b"", reason));
        }
        Ok(())
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.chunk.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Ok(next) = self.receiver.recv() else { return Ok(0) };
            let next = next?;
            self.bytes += next.len() as u64;
            self.check().map_err(ImageError::into_io)?;
            self.chunk = Cursor::new(next);
        }
    }
}

/// How far a download has come, for who reads along.
#[derive(Default)]
pub struct Growth {
    state: Mutex<(u64, Option<End>)>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Failed,
    Abandoned,
}

impl Growth {
    fn change(&self, change: impl FnOnce(&mut (u64, Option<End>))) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// This many bytes are there, if not more.
    pub fn grow_to(&self, bytes: u64) {
        self.change(|(available, _)| *available = bytes.max(*available));
    }

    /// All is there and checked.
    pub fn whole(&self) {
        self.change(|(_, end)| *end = Some(End::Whole));
    }

    /// No more will come.
    pub fn fail(&self) {
        self.change(|(_, end)| *end = Some(End::Failed));
    }

    /// Nobody reads any more.
    pub fn abandon(&self) {
        self.change(|(_, end)| *end = end.or(Some(End::Abandoned)));
    }

    /// Whether nobody reads any more.
    pub fn is_abandoned(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 == Some(End::Abandoned)
    }
}

/// Reads a file that is being downloaded, waiting where it has not come yet.
pub struct GrowingFile<'a> {
    pub file: File,
    pub position: u64,
    pub growth: &'a Growth,
}

impl Read for GrowingFile<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.growth.state.lock().unwrap_or_else(PoisonError::into_inner);
        let available = loop {
            match *state {
                (available, _) if available > self.position => break available,
                (_, Some(End::Whole)) => return Ok(0),
                // Why is told by who downloads.
                (_, Some(_)) => return Err(ImageError::Cancelled.into_io()),
                _ => {
                    state = self.growth.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(state);
        let most = usize::try_from(available - self.position).unwrap_or(usize::MAX);
        let most = most.min(buf.len());
        let n = self.file.read_at(&mut buf[..most], self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}
