//! Element types of stored tensors, and their conversion to compute dtypes.

use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ElementType {
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32` (bfloat16).
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// 8-bit float with 4 exponent bits, finite (`float8_e4m3fn`).
    F8E4M3,
    /// 8-bit float with 5 exponent bits (`float8_e5m2`).
    F8E5M2,
    /// A boolean in one byte.
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    I64,
}

impl ElementType {
    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F8E4M3 | Self::F8E5M2 | Self::Bool | Self::U8 | Self::I8 => 1,
            Self::F16 | Self::BF16 | Self::U16 | Self::I16 => 2,
            Self::F32 | Self::U32 | Self::I32 => 4,
            Self::F64 | Self::U64 | Self::I64 => 8,
        }
    }

    /// The short name, such as `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F8E4M3 => "f8_e4m3",
            Self::F8E5M2 => "f8_e5m2",
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
        }
    }
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Elements per parallel task.
const CHUNK: usize = 1 << 16;
/// Elements in the intermediate `f32` buffer: fits on the stack and in the L1 cache.
const BLOCK: usize = 1 << 10;

/// The tensor of shape `shape` and dtype `dtype` whose elements are stored in `bytes` in row-major order.
///
/// Every value is converted through `f32`, which is exact for the 8- and 16-bit floats. A value that is not finite,
/// before or after the conversion, is an error. The caller adds the names of file and tensor to the error.
pub(super) fn tensor(
    element: ElementType,
    bytes: &[u8],
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor, Refusal> {
    let made = match dtype {
        DType::F32 => Tensor::from_vec(convert::<f32>(element, bytes)?, shape, device),
        DType::F16 => Tensor::from_vec(convert::<f16>(element, bytes)?, shape, device),
        DType::BF16 => Tensor::from_vec(convert::<bf16>(element, bytes)?, shape, device),
        other => return Err(Refusal::Target(other)),
    };
    made.map_err(Refusal::Tensor)
}

/// The same for elements that have a factor, one for all of them or one for every row.
pub(super) fn scaled(
    element: ElementType,
    bytes: &[u8],
    shape: &[usize],
    scales: &[f32],
    (dtype, device): (DType, &Device),
) -> Result<Tensor, Refusal> {
    let mut values = values(element, bytes)?;
    let row = (values.len() / scales.len().max(1)).max(1);
    for (row, scale) in values.chunks_mut(row).zip(scales) {
        for value in row {
            *value *= scale;
        }
    }
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(Refusal::Target(dtype));
    }
    match misfit(&values, dtype) {
        Some(value) if value.is_finite() => return Err(Refusal::TooLarge(value)),
        Some(value) => return Err(Refusal::NotFinite(value)),
        None => {}
    }
    let made = Tensor::from_vec(values, shape, &Device::Cpu);
    made.and_then(|tensor| tensor.to_dtype(dtype)?.to_device(device)).map_err(Refusal::Tensor)
}

/// The elements in f32.
pub(super) fn values(element: ElementType, bytes: &[u8]) -> Result<Vec<f32>, Refusal> {
    convert(element, bytes)
}

/// A value that is not finite as `dtype`, if there is any.
pub(in crate::weights) fn misfit(values: &[f32], dtype: DType) -> Option<f32> {
    let largest = match dtype {
        DType::F16 => f16::LARGEST,
        DType::BF16 => bf16::LARGEST,
        _ => f32::LARGEST,
    };
    let fits = |block: &&[f32]| magnitude_of(block) <= magnitude(largest);
    let block = values.par_chunks(CHUNK).find_any(|block| !fits(block))?;
    block.iter().copied().find(|v| magnitude(*v) > magnitude(largest))
}

/// Reason why a tensor could not be read.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The file contains a NaN or an infinity.
    NotFinite(f32),
    /// The value is too large for the requested dtype.
    TooLarge(f32),
    /// The dtype is not a compute dtype.
    Target(DType),
    /// An error of candle.
    Tensor(candle_core::Error),
}

/// A compute dtype.
trait Target: Copy + Default + Send {
    /// The largest value that converts to a finite one.
    const LARGEST: f32;
    fn write(block: &[f32], out: &mut [Self]);
}

impl Target for f32 {
    const LARGEST: Self = Self::MAX;
    fn write(block: &[f32], out: &mut [Self]) {
        out.copy_from_slice(block);
    }
}

impl Target for f16 {
    // The last `f32` below the midpoint to the next step; from the midpoint on, rounding gives infinity.
    const LARGEST: f32 = 65519.996;
    fn write(block: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(block);
    }
}

impl Target for bf16 {
    // As above: the last `f32` that rounds to a finite value.
    const LARGEST: f32 = f32::from_bits(0x7f7f_7fff);
    fn write(block: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(block);
    }
}

fn convert<T: Target>(element: ElementType, bytes: &[u8]) -> Result<Vec<T>, Refusal> {
    let size = element.size();
    let mut out = vec![T::default(); bytes.len() / size];
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size)).try_for_each(
        |(out, bytes)| {
            let mut block = [0f32; BLOCK];
            for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * size)) {
                let block = &mut block[..out.len()];
                widen(element, bytes, block);
                if magnitude_of(block) > magnitude(T::LARGEST) {
                    return Err(refusal(block, T::LARGEST));
                }
                T::write(block, out);
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// The bits without the sign: they order floats by magnitude, with infinity and NaN above all finite values.
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// The largest magnitude; unlike a float maximum, it is vectorized.
fn magnitude_of(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, v| magnitude(*v).max(largest))
}

#[cold]
fn refusal(block: &[f32], largest: f32) -> Refusal {
    let culprit = block.iter().copied().find(|v| magnitude(*v) > magnitude(largest));
    match culprit.unwrap_or(f32::NAN) {
        v if v.is_finite() => Refusal::TooLarge(v),
        v => Refusal::NotFinite(v),
    }
}

/// Decodes little-endian elements into `out`; both have the same number of elements.
fn widen(element: ElementType, bytes: &[u8], out: &mut [f32]) {
    match element {
        ElementType::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            each(bytes, &mut halves, |b| f16::from_le_bytes(*b));
            halves[..out.len()].convert_to_f32_slice(out);
        }
        ElementType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(*b).to_f32()),
        ElementType::F32 => each(bytes, out, |b| f32::from_le_bytes(*b)),
        ElementType::F64 => each(bytes, out, |b| f64::from_le_bytes(*b) as f32),
        ElementType::F8E4M3 => each(bytes, out, |[b]| from_e4m3(*b)),
        ElementType::F8E5M2 => each(bytes, out, |[b]| from_e5m2(*b)),
        ElementType::Bool => each(bytes, out, |[b]| f32::from(*b != 0)),
        ElementType::U8 => each(bytes, out, |[b]| f32::from(*b)),
        ElementType::I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(*b))),
        ElementType::U16 => each(bytes, out, |b| f32::from(u16::from_le_bytes(*b))),
        ElementType::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(*b))),
        ElementType::U32 => each(bytes, out, |b| u32::from_le_bytes(*b) as f32),
        ElementType::I32 => each(bytes, out, |b| i32::from_le_bytes(*b) as f32),
        ElementType::U64 => each(bytes, out, |b| u64::from_le_bytes(*b) as f32),
        ElementType::I64 => each(bytes, out, |b| i64::from_le_bytes(*b) as f32),
    }
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], read: impl Fn(&[u8; N]) -> T) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = read(bytes);
    }
}

/// `float8_e4m3fn`: bias 7, no infinities, NaN where all bits below the sign are set
/// (Micikevicius et al. (2022), table 1).
fn from_e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (8.0 + mantissa) * 2f32.powi(exponent - 10),
    }
}

/// `float8_e5m2` is the upper half of an `f16`.
fn from_e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_have_their_published_extremes() {
        assert_eq!(from_e4m3(0b0111_1110), 448.0);
        assert_eq!(from_e4m3(0b1000_0001), -(2f32.powi(-9)));
        assert_eq!(from_e4m3(0b0000_1000), 2f32.powi(-6));
        assert_eq!(from_e4m3(0b0011_1000), 1.0);
        assert!(from_e4m3(0xff).is_nan());
        assert_eq!(from_e5m2(0b0111_1011), 57344.0);
        assert_eq!(from_e5m2(0b0011_1100), 1.0);
        assert!(from_e5m2(0b0111_1100).is_infinite());
    }

    #[test]
    fn every_half_survives_the_way_through_f32() {
        let bytes: Vec<u8> = (0..=u16::MAX)
            .filter(|bits| f16::from_bits(*bits).is_finite())
            .flat_map(u16::to_le_bytes)
            .collect();
        let back = convert::<f16>(ElementType::F16, &bytes).unwrap();
        let back: Vec<u8> = back.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(back, bytes);

        let bytes: Vec<u8> = (0..=u16::MAX)
            .filter(|bits| bf16::from_bits(*bits).is_finite())
            .flat_map(u16::to_le_bytes)
            .collect();
        let back = convert::<bf16>(ElementType::BF16, &bytes).unwrap();
        let back: Vec<u8> = back.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(back, bytes);
    }

    #[test]
    fn values_at_the_edge_of_half_are_rounded_and_beyond_it_refused() {
        let bytes = |v: f32| v.to_le_bytes();
        let kept = convert::<f16>(ElementType::F32, &bytes(65519.996)).unwrap();
        assert_eq!(kept[0], f16::MAX);
        assert!(matches!(
            convert::<f16>(ElementType::F32, &bytes(-65520.0)),
            Err(Refusal::TooLarge(v)) if v == -65520.0
        ));
        let kept = convert::<bf16>(ElementType::F32, &bytes(f32::from_bits(0x7f7f_7fff))).unwrap();
        assert_eq!(kept[0], bf16::MAX);
        assert!(convert::<bf16>(ElementType::F32, &bytes(f32::MAX)).is_err());
        assert!(matches!(
            convert::<f32>(ElementType::F64, &1e300f64.to_le_bytes()),
            Err(Refusal::NotFinite(_))
        ));
    }

    #[test]
    fn a_nan_is_found_wherever_it_hides() {
        for at in [0, 1, BLOCK, CHUNK - 1, CHUNK, CHUNK + 7] {
            let mut values = vec![1f32; CHUNK + 8];
            values[at] = f32::NAN;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert!(
                matches!(convert::<f32>(ElementType::F32, &bytes), Err(Refusal::NotFinite(_))),
                "at {at}"
            );
        }
    }

    #[test]
    fn integers_become_floats() {
        let bytes: Vec<u8> = [-3i64, 0, 76].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(convert::<f32>(ElementType::I64, &bytes).unwrap(), [-3.0, 0.0, 76.0]);
    }
}
