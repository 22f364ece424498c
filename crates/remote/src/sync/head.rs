//! The output head of models that share it with their embedding.
//!
//! vLLM 0.32 on a CPU keeps a packed copy of a shared head that its reload does not renew: after it,
//! the embedding is new and the head old. So such a server is started with a checkpoint that has a
//! head of its own, and every checkpoint that goes to servers names the head. A server that shares
//! it leaves the extra tensor out.

use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Bytes of a header at most, as the format's own reader has it.
const MAX_HEADER: u64 = 100_000_000;

/// Writes `lm_head.safetensors` beside a checkpoint's `model.safetensors` when that has an embedding
/// and no head. A checkpoint of several files is left as it is.
///
/// # Errors
/// When a file cannot be read or written, or is no safetensors file.
pub fn write_output_head(dir: &Path) -> std::io::Result<()> {
    let path = dir.join("model.safetensors");
    if !path.is_file() {
        return Ok(());
    }
    let invalid =
        |reason: &str| Error::new(ErrorKind::InvalidData, format!("{}: {reason}", path.display()));
    let mut file = std::fs::File::open(&path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(invalid("its header is too long"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|error| invalid(&error.to_string()))?;
    let Some(embedding) = header.get(EMBEDDING).filter(|_| !header.contains_key(HEAD)) else {
        return Ok(());
    };
    let offset = |n: usize| embedding["data_offsets"][n].as_u64();
    let (Some(start), Some(end)) = (offset(0), offset(1)) else {
        return Err(invalid("its embedding has no place"));
    };
    let num_bytes =
        end.checked_sub(start).ok_or_else(|| invalid("its embedding ends before it begins"))?;
    let head = json!({HEAD: {"dtype": embedding["dtype"], "shape": embedding["shape"],
        "data_offsets": [0, num_bytes]}});
    let mut head = head.to_string().into_bytes();
    // Data begins at a multiple of eight.
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut to = std::fs::File::create(dir.join("lm_head.safetensors"))?;
    to.write_all(&(head.len() as u64).to_le_bytes())?;
    to.write_all(&head)?;
    file.seek(SeekFrom::Start(8 + length + start))?;
    let copied = std::io::copy(&mut file.take(num_bytes), &mut to)?;
    if copied == num_bytes { Ok(()) } else { Err(invalid("it is cut short")) }
}

#[cfg(test)]
mod tests {
    use super::write_output_head;

    #[test]
    fn a_shared_head_is_written_beside() {
        let dir = tempfile::tempdir().unwrap();
        write_output_head(dir.path()).unwrap();
        let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"model.embed_tokens.weight":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend([1, 2, 3, 4, 5]);
        std::fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        write_output_head(dir.path()).unwrap();
        let head = std::fs::read(dir.path().join("lm_head.safetensors")).unwrap();
        assert!(head.ends_with(&[3, 4, 5]));
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        assert_eq!((head.len(), length % 8), (8 + length + 3, 0));
        let read: serde_json::Value = serde_json::from_slice(&head[8..8 + length]).unwrap();
        assert_eq!(read["lm_head.weight"]["shape"], serde_json::json!([3]));
        std::fs::write(dir.path().join("model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
        assert!(write_output_head(dir.path()).unwrap_err().to_string().contains("cut short"));
        std::fs::write(dir.path().join("model.safetensors"), [0xff; 20]).unwrap();
        assert!(write_output_head(dir.path()).is_err());
    }
}
