//! Instruction sets of this processor, detected at run time.

use std::cell::Cell;
use std::sync::OnceLock;

/// A set of vector instructions that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the compiler was told to assume.
    Portable,
    /// The 128-bit vectors that every AArch64 processor has.
    Neon,
    /// x86-64 with 256-bit vectors and fused multiplication.
    Avx2,
    /// x86-64 with 512-bit vectors.
    Avx512,
    /// 512-bit vectors and products of 8-bit numbers that are summed in 32 bits.
    Avx512Vnni,
    /// AVX-512 with products of bf16 that are summed in f32.
    Avx512Bf16,
    /// AVX-512 with a unit that multiplies matrices of bf16 and of bytes (AMX).
    Amx,
}

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// All of them, the fastest last.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::Neon,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Amx,
    ];

    /// The fastest that this processor has.
    pub fn current() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        FORCED.get().unwrap_or_else(|| {
            *BEST.get_or_init(|| {
                let there = Self::ALL.iter().rev().find(|isa| isa.is_there());
                there.copied().unwrap_or(Self::Portable)
            })
        })
    }

    /// Returns whether this processor supports it.
    pub fn is_there(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let wide = || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            let fused = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let whole = || fused() && wide() && is_x86_feature_detected!("avx512vnni");
            let paired = || whole() && is_x86_feature_detected!("avx512bf16");
            match self {
                Self::Portable => true,
                Self::Neon => false,
                Self::Avx2 => fused(),
                Self::Avx512 => fused() && wide(),
                Self::Avx512Vnni => whole(),
                Self::Avx512Bf16 => paired(),
                Self::Amx => paired() && matrix_unit::is_there(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable || self == Self::Neon && cfg!(target_arch = "aarch64")
        }
    }

    /// Returns whether products of 8-bit integers have an instruction.
    pub(crate) fn multiplies_bytes(self) -> bool {
        matches!(self, Self::Avx512Vnni | Self::Avx512Bf16 | Self::Amx)
    }

    /// Returns whether products of bf16 have an instruction.
    pub(crate) fn multiplies_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::Amx)
    }

    /// Runs `f` with kernels that are started on this thread restricted to this set; `None` where the processor
    /// lacks it. For tests.
    pub fn force<R>(self, f: impl FnOnce() -> R) -> Option<R> {
        struct Restore(Option<Isa>);
        impl Drop for Restore {
            fn drop(&mut self) {
                FORCED.set(self.0);
            }
        }
        if !self.is_there() {
            return None;
        }
        let _restore = Restore(FORCED.replace(Some(self)));
        Some(f())
    }

    /// Runs `loops` compiled for this set.
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) fn vectorize<L: Loops>(self, loops: L) -> L::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn avx2<L: Loops>(loops: L) -> L::Output {
                loops.run::<true>()
            }
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<L: Loops>(loops: L) -> L::Output {
                loops.run::<true>()
            }
            match self {
                Self::Portable | Self::Neon => loops.run::<ALWAYS_FMA>(),
                // SAFETY: a value other than `Portable` comes from `current` or `force`, which have looked.
                Self::Avx2 => unsafe { avx2(loops) },
                // SAFETY: as above.
                Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 | Self::Amx => unsafe {
                    avx512(loops)
                },
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            loops.run::<ALWAYS_FMA>()
        }
    }
}

/// Bytes of a line of the cache, on nearly all processors; elsewhere what relies on it is slower.
pub const LINE: usize = 64;

/// Has the processor fetch what is soon read or written, while it works on something else.
#[allow(unsafe_code)]
#[inline(always)]
pub(crate) fn prefetch<T>(start: *const T, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let last = (len * size_of::<T>()).saturating_sub(1);
        for at in (0..last).step_by(LINE).chain([last]) {
            // SAFETY: this reads nothing, and is allowed anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.cast::<i8>().wrapping_add(at)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, len);
}

/// Whether every processor that the program is compiled for multiplies and adds in one instruction.
pub(crate) const ALWAYS_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Loops that the compiler turns into vector code, and what they work on.
pub(crate) trait Loops {
    /// The result of the loops.
    type Output;

    /// Runs them, with [fused](super::math::fused) multiplication where that is an instruction. To be compiled for more
    /// than the least of processors this must be `inline(always)`, and so must everything that it calls in a loop.
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// Runs `f` compiled for this processor. The compiler may inline what has one caller, and does; functions that `f`
/// calls in loops must be `inline(always)`.
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    struct Closure<F>(F);
    impl<R, F: FnOnce() -> R> Loops for Closure<F> {
        type Output = R;

        #[inline(always)]
        fn run<const FMA: bool>(self) -> R {
            self.0()
        }
    }
    Isa::current().vectorize(Closure(f))
}

/// The matrix unit of x86-64 servers (AMX).
#[cfg(target_arch = "x86_64")]
mod matrix_unit {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// Returns whether the processor has the unit, for bf16 and for bytes, and the system lets this process use it.
    pub(super) fn is_there() -> bool {
        static THERE: OnceLock<bool> = OnceLock::new();
        *THERE.get_or_init(|| {
            /// Required bits of `edx`: bf16, tiles, bytes.
            const NEEDED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
            __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & NEEDED == NEEDED && may_use()
        })
    }

    /// Asks Linux for the permission that a process needs, because tiles make what is saved of a thread 8 KiB larger.
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    fn may_use() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: it reads and writes no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn may_use() -> bool {
        false
    }
}
