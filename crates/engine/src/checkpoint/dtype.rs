//! Numbers as files have them.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Format of the weights in a file. The engine itself computes with what it was told to; reading
/// f16 and bf16 is exact, writing them rounds to the nearest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16: 11 significant bits, up to 65,504.
    F16,
    /// The upper half of a binary32: 8 significant bits, the range of f32.
    Bf16,
}

impl WeightDtype {
    /// The name that `config.json` has for it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// The name that safetensors headers have for it.
    pub(crate) fn safetensors_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of an element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Little-endian elements to numbers; `bytes` has exactly those of `out`.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => {
                for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => {
                for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Bf16 => {
                for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
        }
    }

    /// Appends numbers as little-endian elements.
    ///
    /// # Errors
    /// The index of a number that the format cannot hold.
    pub(crate) fn encode(self, numbers: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
        match self {
            Self::F32 => bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => bytes.extend(numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
            Self::Bf16 => {
                bytes.extend(numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()));
            }
        }
        let holds = |x: &f32| match self {
            Self::F32 => x.is_finite(),
            Self::F16 => f16::from_f32(*x).is_finite(),
            Self::Bf16 => bf16::from_f32(*x).is_finite(),
        };
        match numbers.iter().position(|x| !holds(x)) {
            Some(index) => Err(index),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::WeightDtype;

    proptest! {
        #[test]
        fn what_is_written_is_read(x in -60000.0f32..60000.0) {
            for (dtype, bound) in
                [(WeightDtype::F32, 0.0), (WeightDtype::F16, 0.0005), (WeightDtype::Bf16, 0.004)]
            {
                let (mut bytes, mut read) = (Vec::new(), [0.0]);
                dtype.encode(&[x], &mut bytes).unwrap();
                prop_assert_eq!(bytes.len(), dtype.size());
                dtype.decode(&bytes, &mut read);
                prop_assert!((read[0] - x).abs() <= bound * x.abs() + 6e-8 * f32::from(bound != 0.0));
                // A second time nothing is lost.
                let mut again = Vec::new();
                dtype.encode(&read, &mut again).unwrap();
                prop_assert_eq!(bytes, again);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        assert_eq!(WeightDtype::F16.encode(&[1.0, 65_520.0], &mut Vec::new()), Err(1));
        assert_eq!(WeightDtype::Bf16.encode(&[f32::MAX], &mut Vec::new()), Err(0));
        assert_eq!(WeightDtype::F32.encode(&[f32::NAN], &mut Vec::new()), Err(0));
    }
}
