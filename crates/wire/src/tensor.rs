//! Tensors: raw little-endian numbers with a shape.

use crate::error::WireError;
use crate::limits::Limits;
use crate::proto;

/// Numbers of the two types that the public wire has.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// 32-bit floats (`float32`; `bfloat16` is widened).
    F32(Vec<f32>),
    /// 64-bit integers (`int64`; `int32` is widened).
    I64(Vec<i64>),
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A dense tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The elements.
    pub data: TensorData,
    /// Sizes of the dimensions; their product is the number of elements.
    pub shape: Vec<usize>,
}

impl Tensor {
    /// A vector of floats.
    pub fn f32(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len()], data: TensorData::F32(values) }
    }

    /// A vector of integers.
    pub fn i64(values: Vec<i64>) -> Self {
        Self { shape: vec![values.len()], data: TensorData::I64(values) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements as floats.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] when they are integers; `name` is what the text calls the tensor.
    pub fn as_f32(&self, name: &str) -> Result<&[f32], WireError> {
        match &self.data {
            TensorData::F32(values) => Ok(values),
            TensorData::I64(_) => {
                Err(WireError::Unsupported(format!("{name} is int64; send it as float32")))
            }
        }
    }

    /// The elements as integers.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] when they are floats; `name` is what the text calls the tensor.
    pub fn as_i64(&self, name: &str) -> Result<&[i64], WireError> {
        match &self.data {
            TensorData::I64(values) => Ok(values),
            TensorData::F32(_) => {
                Err(WireError::Unsupported(format!("{name} is float32; send it as int64")))
            }
        }
    }

    pub(crate) fn to_proto(&self) -> proto::Tensor {
        let (bytes, dtype) = self.data.to_bytes();
        proto::Tensor {
            encoding: Some(proto::Encoding::Dense(bytes)),
            dtype: dtype as i32,
            shape: self.shape.iter().map(|n| *n as i64).collect(),
        }
    }

    /// Checks and takes over a tensor; `left` is the budget of elements of the whole message.
    pub(crate) fn from_proto(
        name: &str,
        tensor: proto::Tensor,
        limits: &Limits,
        left: &mut usize,
    ) -> Result<Self, WireError> {
        let dtype = DType::parse(name, tensor.dtype)?;
        let shape = check_shape(name, &tensor.shape)?;
        match tensor.encoding {
            Some(proto::Encoding::Dense(bytes)) => {
                let data = TensorData::from_bytes(name, &bytes, dtype)?;
                spend(name, data.len(), limits, left)?;
                let shape = if shape.is_empty() { vec![data.len()] } else { shape };
                if product(&shape) != Some(data.len()) {
                    return Err(WireError::malformed(
                        name,
                        format!("shape {shape:?} does not hold {} elements", data.len()),
                    ));
                }
                Ok(Self { data, shape })
            }
            Some(proto::Encoding::SparseCsr(csr)) => spread(name, &csr, dtype, shape, limits, left),
            None => Err(WireError::malformed(name, "the tensor has no data")),
        }
    }
}

fn spend(name: &str, elements: usize, limits: &Limits, left: &mut usize) -> Result<(), WireError> {
    WireError::check(&format!("elements of {name}"), elements, limits.max_elements)?;
    *left = left.checked_sub(elements).ok_or_else(|| WireError::TooLarge {
        what: "elements of all tensors of the message".to_owned(),
        found: limits.max_total_elements as u64 + 1,
        limit: limits.max_total_elements as u64,
    })?;
    Ok(())
}

fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

pub(crate) fn check_shape(name: &str, shape: &[i64]) -> Result<Vec<usize>, WireError> {
    WireError::check(&format!("dimensions of {name}"), shape.len(), 8)?;
    shape
        .iter()
        .map(|n| {
            usize::try_from(*n).map_err(|_| WireError::malformed(name, format!("dimension {n}")))
        })
        .collect()
}

/// Spreads a matrix in compressed sparse rows out: the SDK sends two-dimensional targets and
/// weights this way when that is smaller.
fn spread(
    name: &str,
    csr: &proto::SparseCsr,
    dtype: DType,
    shape: Vec<usize>,
    limits: &Limits,
    left: &mut usize,
) -> Result<Tensor, WireError> {
    let bad = |reason: &str| WireError::malformed(name, format!("sparse rows: {reason}"));
    let [rows, columns] = shape[..] else {
        return Err(bad("the shape must have two dimensions"));
    };
    let elements = product(&shape).ok_or_else(|| bad("the shape overflows"))?;
    spend(name, elements, limits, left)?;
    let values = TensorData::from_bytes(name, &csr.values, dtype)?;
    let starts = read_i64(name, &csr.crow_indices)?;
    let places = read_i64(name, &csr.col_indices)?;
    if starts.len() != rows + 1 || places.len() != values.len() {
        return Err(bad("row pointers or columns do not fit the shape and the values"));
    }
    let mut cells = vec![0usize; values.len()];
    for row in 0..rows {
        let within = usize::try_from(starts[row])
            .ok()
            .zip(usize::try_from(starts[row + 1]).ok())
            .filter(|(a, b)| a <= b && *b <= places.len())
            .ok_or_else(|| bad("row pointers must rise from 0 to the number of values"))?;
        for i in within.0..within.1 {
            cells[i] = usize::try_from(places[i])
                .ok()
                .filter(|c| *c < columns)
                .map(|c| row * columns + c)
                .ok_or_else(|| bad("a column lies outside the shape"))?;
        }
    }
    if starts[0] != 0 || usize::try_from(starts[rows]).ok() != Some(places.len()) {
        return Err(bad("row pointers must rise from 0 to the number of values"));
    }
    let data = match values {
        TensorData::F32(v) => TensorData::F32(place(&cells, &v, elements)),
        TensorData::I64(v) => TensorData::I64(place(&cells, &v, elements)),
    };
    Ok(Tensor { data, shape })
}

fn place<T: Copy + Default>(cells: &[usize], values: &[T], elements: usize) -> Vec<T> {
    let mut out = vec![T::default(); elements];
    for (cell, value) in cells.iter().zip(values) {
        out[*cell] = *value;
    }
    out
}

/// Element types on the wire; the numbers are the enum `DType`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DType {
    F32 = 1,
    I64 = 2,
    I32 = 3,
    BF16 = 4,
}

impl DType {
    pub(crate) fn parse(name: &str, value: i32) -> Result<Self, WireError> {
        [Self::F32, Self::I64, Self::I32, Self::BF16]
            .into_iter()
            .find(|d| *d as i32 == value)
            .ok_or_else(|| WireError::malformed(name, format!("unknown element type {value}")))
    }

    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
            Self::BF16 => 2,
        }
    }
}

impl TensorData {
    pub(crate) fn to_bytes(&self) -> (Vec<u8>, DType) {
        match self {
            Self::F32(v) => (write_f32(v), DType::F32),
            Self::I64(v) => (v.iter().flat_map(|x| x.to_le_bytes()).collect(), DType::I64),
        }
    }

    pub(crate) fn from_bytes(name: &str, bytes: &[u8], dtype: DType) -> Result<Self, WireError> {
        Ok(match dtype {
            DType::F32 => Self::F32(read_f32(name, bytes)?),
            DType::I64 => Self::I64(read_i64(name, bytes)?),
            DType::I32 => {
                Self::I64(numbers(name, bytes)?.map(|b| i64::from(i32::from_le_bytes(b))).collect())
            }
            DType::BF16 => Self::F32(
                numbers(name, bytes)?
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
                    .collect(),
            ),
        })
    }
}

/// Splits bytes into little-endian numbers of `N` bytes.
fn numbers<'a, const N: usize>(
    name: &str,
    bytes: &'a [u8],
) -> Result<impl Iterator<Item = [u8; N]> + 'a, WireError> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(WireError::malformed(
            name,
            format!("{} bytes are no whole number of elements of {N}", bytes.len()),
        ));
    }
    Ok(chunks.iter().copied())
}

pub(crate) fn read_f32(name: &str, bytes: &[u8]) -> Result<Vec<f32>, WireError> {
    Ok(numbers(name, bytes)?.map(f32::from_le_bytes).collect())
}

pub(crate) fn read_i64(name: &str, bytes: &[u8]) -> Result<Vec<i64>, WireError> {
    Ok(numbers(name, bytes)?.map(i64::from_le_bytes).collect())
}

pub(crate) fn write_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Token ids: 32-bit signed integers on the wire, never negative.
pub(crate) fn read_tokens(name: &str, bytes: &[u8]) -> Result<Vec<u32>, WireError> {
    numbers(name, bytes)?
        .map(|b| {
            let id = i32::from_le_bytes(b);
            u32::try_from(id)
                .map_err(|_| WireError::malformed(name, format!("negative token id {id}")))
        })
        .collect()
}

pub(crate) fn write_tokens(name: &str, tokens: &[u32]) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(4 * tokens.len());
    for id in tokens {
        let id = i32::try_from(*id)
            .map_err(|_| WireError::malformed(name, format!("token id {id} is above 2^31 - 1")))?;
        out.extend(id.to_le_bytes());
    }
    Ok(out)
}
