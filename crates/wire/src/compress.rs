//! Bodies compressed with zstd.

use std::io::Read;

use crate::error::WireError;

/// Compresses a body; send it with `Content-Encoding: zstd`.
///
/// # Errors
/// [`WireError::Malformed`] when the compressor fails (it has no memory).
pub fn compress(body: &[u8]) -> Result<Vec<u8>, WireError> {
    zstd::bulk::compress(body, zstd::DEFAULT_COMPRESSION_LEVEL)
        .map_err(|e| WireError::malformed("body", format!("zstd: {e}")))
}

/// Undoes [`compress`], giving up as soon as more than `max_body` bytes come out.
///
/// # Errors
/// [`WireError::Malformed`] for bytes that are not zstd, [`WireError::TooLarge`].
pub fn decompress(body: &[u8], max_body: usize) -> Result<Vec<u8>, WireError> {
    let broken = |e: std::io::Error| WireError::malformed("compressed body", format!("zstd: {e}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(broken)?;
    // 2^27 bytes of window: what the format asks every decoder to take. More would let a header of
    // a few bytes ask for gigabytes.
    decoder.window_log_max(27).map_err(broken)?;
    let mut out = Vec::new();
    decoder.take(max_body as u64 + 1).read_to_end(&mut out).map_err(broken)?;
    WireError::check("bytes of the body, decompressed", out.len(), max_body)?;
    Ok(out)
}
