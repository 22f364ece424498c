//! Blocks of quantized numbers to f32, in the layouts of ggml.
//!
//! A block of 32 or 256 numbers has scales (and offsets) of its own. Products and sums are rounded
//! one by one, as the reference of the `gguf` package does, so that the results are its bits.

use half::f16;

use crate::checkpoint::WeightDtype;

/// Numbers of a K-quant's block.
const SUPER: usize = 256;

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    pub(crate) const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The number that files have for it.
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Numbers of a block, and its bytes.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (SUPER, 144),
            Self::Q5K => (SUPER, 176),
            Self::Q6K => (SUPER, 210),
        }
    }

    /// Whole blocks to numbers. `bytes` and `out` have the same number of blocks.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let (numbers, size) = self.block();
        let block: fn(&[u8], &mut [f32]) = match self {
            Self::F32 => return WeightDtype::F32.decode(bytes, out),
            Self::F16 => return WeightDtype::F16.decode(bytes, out),
            Self::Bf16 => return WeightDtype::Bf16.decode(bytes, out),
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(numbers)) {
            block(bytes, out);
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The low and the high half of a byte.
fn nibbles(byte: u8) -> (u8, u8) {
    (byte & 15, byte >> 4)
}

fn q4_0(bytes: &[u8], out: &mut [f32]) {
    let scale = half(bytes, 0);
    let (low, high) = out.split_at_mut(16);
    for (i, byte) in bytes[2..].iter().enumerate() {
        let (a, b) = nibbles(*byte);
        low[i] = scale * (f32::from(a) - 8.0);
        high[i] = scale * (f32::from(b) - 8.0);
    }
}

fn q4_1(bytes: &[u8], out: &mut [f32]) {
    let (scale, offset) = (half(bytes, 0), half(bytes, 2));
    let (low, high) = out.split_at_mut(16);
    for (i, byte) in bytes[4..].iter().enumerate() {
        let (a, b) = nibbles(*byte);
        low[i] = scale * f32::from(a) + offset;
        high[i] = scale * f32::from(b) + offset;
    }
}

/// The fifth bits of a block of 32, the first number's lowest.
fn fifth_bits(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The numbers 0 to 31 of a block with nibbles and fifth bits.
fn five_bits(bits: u32, bytes: &[u8]) -> impl Iterator<Item = (usize, f32)> {
    bytes.iter().enumerate().flat_map(move |(i, byte)| {
        let (a, b) = nibbles(*byte);
        let with_bit = |nibble: u8, at: usize| f32::from(nibble | ((bits >> at & 1) as u8) << 4);
        [(i, with_bit(a, i)), (i + 16, with_bit(b, i + 16))]
    })
}

fn q5_0(bytes: &[u8], out: &mut [f32]) {
    let scale = half(bytes, 0);
    for (i, q) in five_bits(fifth_bits(&bytes[2..]), &bytes[6..]) {
        out[i] = scale * (q - 16.0);
    }
}

fn q5_1(bytes: &[u8], out: &mut [f32]) {
    let (scale, offset) = (half(bytes, 0), half(bytes, 2));
    for (i, q) in five_bits(fifth_bits(&bytes[4..]), &bytes[8..]) {
        out[i] = scale * q + offset;
    }
}

fn q8_0(bytes: &[u8], out: &mut [f32]) {
    let scale = half(bytes, 0);
    for (x, byte) in out.iter_mut().zip(&bytes[2..]) {
        *x = scale * f32::from(*byte as i8);
    }
}

/// Scale and offset of the `j`th 32 numbers of a K-quant, of 6 bits each in 12 bytes.
fn scale_and_offset(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, offset) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(offset))
}

fn q4_k(bytes: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half(bytes, 0), half(bytes, 2));
    let (scales, quants) = (&bytes[4..16], &bytes[16..]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(scales, j);
        let (scale, offset) = (d * scale, d_min * offset);
        // Two times 32 numbers share 32 bytes.
        for (x, byte) in out.iter_mut().zip(&quants[j / 2 * 32..]) {
            *x = scale * f32::from(byte >> (4 * (j % 2)) & 15) - offset;
        }
    }
}

fn q5_k(bytes: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half(bytes, 0), half(bytes, 2));
    let (scales, fifths, quants) = (&bytes[4..16], &bytes[16..48], &bytes[48..]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(scales, j);
        let (scale, offset) = (d * scale, d_min * offset);
        for (i, x) in out.iter_mut().enumerate() {
            let nibble = quants[j / 2 * 32 + i] >> (4 * (j % 2)) & 15;
            *x = scale * f32::from(nibble | (fifths[i] >> j & 1) << 4) - offset;
        }
    }
}

fn q6_k(bytes: &[u8], out: &mut [f32]) {
    let (lows, highs, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
    let d = half(bytes, 208);
    for (i, x) in out.iter_mut().enumerate() {
        // Halves of 128 numbers; in each, four runs of 32 share 64 bytes of low bits and 32 of
        // high ones.
        let (part, run, at) = (i / 128, i % 128 / 32, i % 32);
        let low = lows[part * 64 + run % 2 * 32 + at] >> (4 * (run / 2)) & 15;
        let high = highs[part * 32 + at] >> (2 * run) & 3;
        let scale = d * f32::from(scales[i / 16] as i8);
        *x = scale * (f32::from(low | high << 4) - 32.0);
    }
}
