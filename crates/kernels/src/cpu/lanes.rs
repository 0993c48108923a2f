//! Arrays of the size of a vector register, by value, so that the compiler keeps them in one.

use super::float::Float;
use super::microkernel::LANES;

/// Neighbouring values.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(pub(crate) [f32; LANES]);

impl Lanes {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);

    /// Reads the first values of a slice that has at least as many.
    #[inline(always)]
    pub(crate) fn read<T: Float>(values: &[T]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes.iter_mut().zip(values).for_each(|(lane, v)| *lane = v.widen());
        Self(lanes)
    }

    /// `f` of each pair.
    #[inline(always)]
    pub(crate) fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = self.0;
        lanes.iter_mut().zip(other.0).for_each(|(lane, v)| *lane = f(*lane, v));
        Self(lanes)
    }

    /// The greater of each pair; NaN in `other` is ignored.
    #[inline(always)]
    pub(crate) fn greatest(self, other: Self) -> Self {
        self.with(other, |a, b| if b > a { b } else { a })
    }

    /// The sum of all.
    #[inline(never)]
    pub(crate) fn total(&self) -> f32 {
        self.fold(|a, b| a + b)
    }

    /// The [`greatest`](Self::greatest) of all.
    #[inline(never)]
    pub(crate) fn most(&self) -> f32 {
        self.fold(|a, b| if b > a { b } else { a })
    }

    fn fold(&self, f: impl Fn(f32, f32) -> f32) -> f32 {
        // Whole, from memory: the compiler would else take vectors apart, all the way to the loop that they come from.
        let mut lanes = *std::hint::black_box(&self.0);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = f(lanes[i], lanes[i + half]);
            }
        }
        lanes[0]
    }

    /// `self + other · factor`.
    #[inline(always)]
    pub(crate) fn plus<const FMA: bool>(self, other: Self, factor: f32) -> Self {
        #[cfg(target_arch = "aarch64")]
        return arm::each(self, other, |a, b| arm::plus(a, b, factor));
        #[cfg(not(target_arch = "aarch64"))]
        self.with(other, |a, b| super::math::fused::<FMA>(b, factor, a))
    }
}

/// Intrinsics for AArch64, where the compiler would split long chains of these four operations.
#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{float32x4_t, vaddq_f32, vfmaq_n_f32, vmulq_n_f32, vsubq_f32};

    use super::{LANES, Lanes};

    type Vector = float32x4_t;

    #[allow(unsafe_code)]
    #[inline(always)]
    pub(crate) fn each(a: Lanes, b: Lanes, f: impl Fn(Vector, Vector) -> Vector) -> Lanes {
        type Vectors = [Vector; LANES / 4];
        // SAFETY: both are as many numbers, without padding.
        let (mut a, b) = unsafe {
            (std::mem::transmute::<Lanes, Vectors>(a), std::mem::transmute::<Lanes, Vectors>(b))
        };
        a.iter_mut().zip(b).for_each(|(a, b)| *a = f(*a, b));
        // SAFETY: as above.
        unsafe { std::mem::transmute::<Vectors, Lanes>(a) }
    }

    /// Makes a function of an instruction that every AArch64 processor has.
    macro_rules! instruction {
        ($name:ident($($argument:ident: $type:ty),*) = $instruction:expr) => {
            #[allow(unsafe_code)]
            #[inline(always)]
            pub(crate) fn $name($($argument: $type),*) -> Vector {
                // SAFETY: NEON is part of what this target assumes.
                unsafe { $instruction }
            }
        };
    }

    instruction!(plus(a: Vector, b: Vector, factor: f32) = vfmaq_n_f32(a, b, factor));
    instruction!(add(a: Vector, b: Vector) = vaddq_f32(a, b));
    instruction!(subtract(a: Vector, b: Vector) = vsubq_f32(a, b));
    instruction!(times(a: Vector, factor: f32) = vmulq_n_f32(a, factor));
}

impl std::ops::Add for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        #[cfg(target_arch = "aarch64")]
        return arm::each(self, other, arm::add);
        #[cfg(not(target_arch = "aarch64"))]
        self.with(other, |a, b| a + b)
    }
}

impl std::ops::Sub for Lanes {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        #[cfg(target_arch = "aarch64")]
        return arm::each(self, other, arm::subtract);
        #[cfg(not(target_arch = "aarch64"))]
        self.with(other, |a, b| a - b)
    }
}

impl std::ops::Mul<f32> for Lanes {
    type Output = Self;

    #[inline(always)]
    fn mul(self, factor: f32) -> Self {
        #[cfg(target_arch = "aarch64")]
        return arm::each(self, self, |a, _| arm::times(a, factor));
        #[cfg(not(target_arch = "aarch64"))]
        self.with(self, |a, _| a * factor)
    }
}
