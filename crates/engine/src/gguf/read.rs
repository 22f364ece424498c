//! The bounded reader of a GGUF header: every count and length is checked against what the file
//! still has before anything is allocated for it.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use super::dequant::GgmlType;

/// Bytes of a header at most.
const MAX_HEADER: u64 = 256 << 20;
/// Entries and tensors at most.
const MAX_COUNT: u64 = 1 << 16;
/// Elements of an array at most.
const MAX_ARRAY: u64 = 1 << 24;
/// Bytes of a name at most.
const MAX_NAME: u64 = 1 << 10;
/// Where tensors begin is a multiple of this, unless the file says otherwise.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    /// An array of floats or of flags: nothing here asks for one.
    Other,
}

/// Where a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    /// Row-major, the slowest dimension first: the reverse of the file's order.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
    /// From the file's beginning.
    pub offset: u64,
}

/// What a header says.
#[derive(Debug)]
pub(crate) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

struct Reader<R> {
    from: BufReader<R>,
    /// Bytes that may still be read.
    left: u64,
    position: u64,
}

type Result<T> = std::result::Result<T, String>;

/// Reads the header of a file of `size` bytes.
pub(crate) fn read_header(from: impl Read, size: u64) -> Result<Header> {
    let mut reader = Reader { from: BufReader::new(from), left: size.min(MAX_HEADER), position: 0 };
    if &reader.bytes::<4>()? != b"GGUF" {
        return Err("is not a GGUF file".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!(
            "is GGUF of version {version} (or of the other byte order); 2 and 3 can be read"
        ));
    }
    let num_tensors = reader.count(MAX_COUNT, "tensors")?;
    let num_entries = reader.count(MAX_COUNT, "metadata entries")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..num_entries {
        let key = reader.text(MAX_NAME)?;
        let kind = reader.u32()?;
        let value = reader.value(kind).map_err(|why| format!("{key}: {why}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("{key}: is there twice"));
        }
    }
    let mut found = Vec::new();
    for _ in 0..num_tensors {
        let name = reader.text(MAX_NAME)?;
        let info = reader.tensor().map_err(|why| format!("tensor {name}: {why}"))?;
        found.push((name, info));
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Integer(x)) if (1..=1 << 20).contains(x) => *x as u64,
        Some(other) => return Err(format!("general.alignment: {other:?} makes no sense")),
    };
    let start = reader.position.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, mut info) in found {
        let bytes = bytes_of(&info)?;
        // Sums of what was read: none may wrap.
        let end = info.offset.checked_add(start).and_then(|at| at.checked_add(bytes));
        if end.is_none_or(|end| end > size) {
            return Err(format!(
                "tensor {name}: {bytes} bytes at offset {} are not in the file; it is cut off or \
                 damaged",
                info.offset
            ));
        }
        info.offset += start;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name}: is there twice"));
        }
    }
    Ok(Header { metadata, tensors })
}

/// Bytes of a tensor whose shape was checked.
fn bytes_of(info: &TensorInfo) -> Result<u64> {
    let (numbers, size) = info.kind.block();
    let total = info.shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n as u64));
    total
        .map(|total| total / numbers as u64)
        .and_then(|blocks| blocks.checked_mul(size as u64))
        .ok_or_else(|| "a tensor has more elements than can be counted".to_owned())
}

impl<R: Read> Reader<R> {
    fn take(&mut self, out: &mut [u8]) -> Result<()> {
        let len = out.len() as u64;
        if len > self.left {
            return Err(format!("the header ends at byte {} too early", self.position));
        }
        self.from
            .read_exact(out)
            .map_err(|error| format!("cannot be read at byte {}: {error}", self.position))?;
        self.left -= len;
        self.position += len;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.take(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self, max: u64, of: &str) -> Result<u64> {
        let count = self.u64()?;
        if count > max {
            return Err(format!("has {count} {of}, at most {max} can be read"));
        }
        Ok(count)
    }

    fn text(&mut self, max: u64) -> Result<String> {
        let len = self.u64()?;
        if len > max.min(self.left) {
            return Err(format!("a text of {len} bytes at byte {} is too long", self.position));
        }
        let mut bytes = vec![0; len as usize];
        self.take(&mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| format!("the text before byte {} is not UTF-8", self.position))
    }

    fn scalar(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::Text(self.text(self.left)?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(format!("values of kind {kind} cannot be read")),
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        if kind != 9 {
            return self.scalar(kind);
        }
        let kind = self.u32()?;
        let count = self.count(MAX_ARRAY, "elements")?;
        // Grown as elements arrive, each of which takes bytes of the file.
        let (mut texts, mut integers, mut others) = (Vec::new(), Vec::new(), 0u64);
        for _ in 0..count {
            match self.scalar(kind)? {
                Value::Text(text) => texts.push(text),
                Value::Integer(x) => {
                    integers.push(i64::try_from(x).map_err(|_| format!("{x} is too large"))?);
                }
                _ => others += 1,
            }
        }
        Ok(match (kind, others) {
            (8, _) => Value::Texts(texts),
            (_, 0) => Value::Integers(integers),
            _ => Value::Other,
        })
    }

    fn tensor(&mut self) -> Result<TensorInfo> {
        let num_dims = self.u32()?;
        if !(1..=4).contains(&num_dims) {
            return Err(format!("has {num_dims} dimensions, 1 to 4 can be read"));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dims {
            // Four of them do not wrap a u128, and `bytes_of` looks at u64.
            shape.push(self.count(1 << 31, "elements in a dimension")? as usize);
        }
        let id = self.u32()?;
        let kind = GgmlType::ALL.into_iter().find(|kind| kind.id() == id).ok_or_else(|| {
            let names = GgmlType::ALL.map(GgmlType::name).join(", ");
            format!("is quantized in a way (type {id}) that cannot be read; {names} can")
        })?;
        let offset = self.u64()?;
        if !shape[0].is_multiple_of(kind.block().0) {
            return Err(format!("rows of {} do not make blocks of {}", shape[0], kind.name()));
        }
        // The file has the fastest dimension first.
        shape.reverse();
        Ok(TensorInfo { shape, kind, offset })
    }
}
