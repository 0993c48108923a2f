//! The formats that tensors have in memory.

use candle_core::{CpuStorage, Result};
use half::{bf16, f16};

/// Element types of packed weights.
pub(crate) trait Stored: Copy + Default + Send + Sync + 'static {
    /// Neighbours along the inner dimension that a panel of them keeps side by side.
    const GROUP: usize = 1;

    fn widen(self) -> f32;
}

/// A number in memory; kernels compute in f32.
pub(crate) trait Float: Stored {
    /// Rounds to nearest even.
    fn narrow(value: f32) -> Self;

    /// Converts a value that this format represents exactly.
    fn exactly(value: f32) -> Self;

    /// All values of a storage of this format.
    fn values(storage: &CpuStorage) -> Option<&[Self]>;

    fn storage(values: Vec<Self>) -> CpuStorage;
}

/// The `len` values from `offset` of a storage.
pub(crate) fn slice<T: Float>(storage: &CpuStorage, offset: usize, len: usize) -> Result<&[T]> {
    let Some(values) = T::values(storage) else {
        candle_core::bail!("this kernel wants another format");
    };
    match values.get(offset..offset + len) {
        Some(part) => Ok(part),
        None => candle_core::bail!("{len} values from {offset} of {}", values.len()),
    }
}

impl Stored for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Float for f32 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn exactly(value: f32) -> Self {
        value
    }

    fn values(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }

    fn storage(values: Vec<Self>) -> CpuStorage {
        CpuStorage::F32(values)
    }
}

impl Stored for bf16 {
    const GROUP: usize = 2;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // As `bf16::from_f32`, but without branches, so that loops become vector code.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let bits = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }

    #[inline(always)]
    fn exactly(value: f32) -> Self {
        Self::from_bits((value.to_bits() >> 16) as u16)
    }

    fn values(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::BF16(values) = storage { Some(values) } else { None }
    }

    fn storage(values: Vec<Self>) -> CpuStorage {
        CpuStorage::BF16(values)
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Float for f16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn exactly(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn values(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F16(values) = storage { Some(values) } else { None }
    }

    fn storage(values: Vec<Self>) -> CpuStorage {
        CpuStorage::F16(values)
    }
}

/// A whole number, to be multiplied by its row's scale.
impl Stored for u8 {
    const GROUP: usize = 4;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

/// A weight that is a whole number, in the order in which it is multiplied with those of a row.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct Byte(pub(crate) i8);

impl Stored for Byte {
    const GROUP: usize = <u8 as Stored>::GROUP;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self.0)
    }
}

/// A whole number, to be multiplied by its column's scale.
impl Stored for i8 {
    // As those of bf16, into which they are widened without a change of order.
    const GROUP: usize = 2;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}
