use std::path::PathBuf;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::GgufFile;
use crate::checkpoint::TensorSource;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gguf").join(name)
}

/// The same bits as the gguf package: `tests/goldens/make_gguf.py` made both files.
#[test]
fn quantized_blocks_become_the_same_numbers() {
    let file = GgufFile::open(&fixture("dequant.gguf")).unwrap();
    let bytes = std::fs::read(fixture("dequant.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.formats().len(), 10);
    assert_eq!(golden.len(), 10);
    for (name, info) in &file.header.tensors {
        assert_eq!(info.kind.name(), name);
        let expected = golden.tensor(name).unwrap();
        assert_eq!(info.shape, expected.shape());
        let mut found = vec![0.0; info.shape.iter().product()];
        file.read(info, 0, &mut found).unwrap();
        let words = expected.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        for (i, (a, b)) in found.iter().zip(words).enumerate() {
            // Both may say that nothing is left of a scale: 0 and -0.
            assert!(a.to_bits() == b.to_bits() || (*a == 0.0 && b == 0.0), "{name} {i}: {a} {b}");
        }
    }
}

#[test]
fn the_vocabulary_is_read() {
    let vocabulary = GgufFile::open(&fixture("qwen3.gguf")).unwrap().vocabulary().unwrap();
    assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_str()), ("gpt2", "qwen2"));
    assert_eq!(vocabulary.tokens.len(), 40);
    assert_eq!((vocabulary.control, vocabulary.user_defined), (vec![0], vec![1]));
    assert_eq!(vocabulary.merges, ["A B", "AB C"]);
    assert_eq!((vocabulary.bos, vocabulary.eos, vocabulary.pad), (None, Some(0), None));
    assert_eq!(vocabulary.chat_template.unwrap(), "{{ messages }}");
}

/// Reads all that a file has, if it can be read.
fn read_all(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    let say = |error: patchwright_core::TrainerError| error.to_string();
    let file = GgufFile::open(&path).map_err(say)?;
    file.vocabulary().map_err(say)?;
    let config = file.config().map_err(say)?;
    file.check_tensors(&config).map_err(say)?;
    let layout = crate::params::ParamLayout::new(&config);
    for spec in &layout.tensors {
        file.stream(&spec.name, &spec.shape, &mut |_| Ok(())).map_err(say)?;
    }
    Ok(())
}

/// Replaces a text by another of the same length.
fn edited(from: &[u8], to: &[u8]) -> String {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(fixture("llama.gguf")).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    read_all(&bytes).unwrap_err()
}

#[test]
fn damage_is_told() {
    let bytes = std::fs::read(fixture("llama.gguf")).unwrap();
    read_all(&bytes).unwrap();
    let at = |index: usize, value: u64| {
        let mut bytes = bytes.clone();
        bytes[index..index + 8].copy_from_slice(&value.to_le_bytes());
        read_all(&bytes).unwrap_err()
    };
    for (said, expected) in [
        (read_all(b"GGML").unwrap_err(), "is not a GGUF file"),
        (read_all(b"").unwrap_err(), "ends at byte 0"),
        (read_all(&bytes[..bytes.len() - 1]).unwrap_err(), "are not in the file"),
        (read_all(&bytes[..900]).unwrap_err(), "ends at byte"),
        (at(8, u64::MAX), "tensors, at most"),
        (at(16, 1 << 40), "metadata entries, at most"),
        (at(24, 1 << 62), "is too long"),
        (edited(b"llama.context_length", b"llama.context_lengtX"), "context_length: is missing"),
        (edited(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"), "attn_x.weight is not of"),
        (edited(b"output_norm.weight", b"output_nope.weight"), "output_nope.weight is not of"),
    ] {
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
        assert!(said.contains("x.gguf"), "{said:?} does not name the file");
    }
}

proptest! {
    /// Whatever is in a file, reading it ends, with a result or an error.
    #[test]
    fn damaged_files_are_no_surprise(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 1usize..9), 1..4),
        in_header in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = std::fs::read(fixture("qwen3.gguf")).unwrap();
        let reach = if in_header { 2500 } else { bytes.len() };
        for (at, value, count) in edits {
            let at = at.index(reach);
            let end = bytes.len().min(at + count);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = read_all(&bytes);
    }
}
