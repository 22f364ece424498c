//! Bounds of decoding, and the count of messages before anything is built of them.
//!
//! An empty protobuf message costs two bytes on the wire and a hundred in memory, so bounding the
//! body is not enough: [`count_messages`] walks the bytes first, without taking memory.

use crate::error::WireError;

/// What a decoder takes at most. The defaults hold a batch of a large run with room to spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a body, after decompression.
    pub max_body: usize,
    /// Messages and map entries within one message, nested ones included.
    pub max_messages: usize,
    /// Elements of one tensor, a sparse one after it was spread out.
    pub max_elements: usize,
    /// Elements of all tensors of one message, sparse ones after they were spread out.
    pub max_total_elements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: 256 << 20,
            max_messages: 1 << 20,
            max_elements: 16 << 20,
            max_total_elements: 64 << 20,
        }
    }
}

/// Which fields of a message are messages themselves.
pub(crate) struct Shape(pub &'static [(u32, &'static Shape)]);

/// A message without messages in it.
pub(crate) const LEAF: Shape = Shape(&[]);

/// Checks that `body` holds at most `limits.max_body` bytes and `limits.max_messages` messages.
pub(crate) fn check_body(
    what: &str,
    body: &[u8],
    shape: &Shape,
    limits: &Limits,
) -> Result<(), WireError> {
    WireError::check(&format!("bytes of {what}"), body.len(), limits.max_body)?;
    let mut left = limits.max_messages;
    count_messages(body, shape, &mut left).ok_or_else(|| {
        if left == 0 {
            WireError::TooLarge {
                what: format!("messages in {what}"),
                found: limits.max_messages as u64 + 1,
                limit: limits.max_messages as u64,
            }
        } else {
            WireError::malformed(what, "the bytes are no protobuf message")
        }
    })
}

/// Walks a message and takes 1 from `left` for each message in it; `None` when `left` ran out
/// (then it is 0) or the bytes are no message.
fn count_messages(mut bytes: &[u8], shape: &Shape, left: &mut usize) -> Option<()> {
    if *left == 0 {
        return None;
    }
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).ok()?;
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => bytes = bytes.get(8..)?,
            5 => bytes = bytes.get(4..)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let inner = bytes.get(..length)?;
                bytes = &bytes[length..];
                if let Some((_, child)) = shape.0.iter().find(|(n, _)| *n == number) {
                    if *left == 0 {
                        return None;
                    }
                    *left -= 1;
                    if !child.0.is_empty() {
                        count_messages(inner, child, left)?;
                    }
                }
            }
            _ => return None,
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
