//! Products in the matrix unit of newer x86-64 servers (AMX), which multiplies 16 rows of 64 bytes by 64 bytes of 16
//! columns in one instruction.
//!
//! A left operand of [`ROWS`] rows meets a packed panel as it is: the panel's groups of two bf16, or four bytes, are
//! what the unit wants side by side. Its state is a thread's own, and is set up by [`with_tiles`].

use std::marker::PhantomData;

use super::buffer::Aligned;
use super::isa::Isa;
use super::microkernel::{Element, LANES, PANEL, ZEROS};

/// Rows of a left operand.
pub(crate) const ROWS: usize = 32;

/// Bytes of a row that the unit reads at once.
pub(crate) const BYTES: usize = 64;

/// Elements of a left operand that the unit may multiply; those that it does not know are left to
/// [microkernels](Element::tile).
pub(crate) trait MatrixUnit: Element {
    /// Whether the unit multiplies them.
    const TILED: bool = false;

    /// Returns whether rows of segments of `length` values can be multiplied by the unit.
    fn fits_tiles(isa: Isa, length: usize) -> bool {
        let whole = (length * size_of::<Self>()).is_multiple_of(BYTES);
        Self::TILED && isa == Isa::Amx && whole
    }

    /// Adds a product of many rows to sums, or writes it there.
    ///
    /// # Safety
    ///
    /// `work` must be true, and [`with_tiles`] running.
    #[allow(unsafe_code)]
    unsafe fn in_tiles(work: Work<Self>, columns: usize) {
        let _ = (work, columns);
        unreachable!("products that do not fit tiles");
    }

    /// Writes `e^(scale (score - maximum))`, where the maximum is that of the scores and of `least`; returns it, and
    /// the sum before rounding. Within 3e-6, for whole lanes.
    ///
    /// # Safety
    ///
    /// As above.
    #[allow(unsafe_code)]
    unsafe fn exponentials(
        scores: &[f32],
        least: f32,
        scale: f32,
        weights: &mut [Self],
    ) -> (f32, f32) {
        let _ = (scores, least, scale, weights);
        unreachable!("products that do not fit tiles");
    }
}

impl MatrixUnit for f32 {}

impl MatrixUnit for half::bf16 {
    const TILED: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    unsafe fn in_tiles(work: Work<Self>, columns: usize) {
        // SAFETY: the caller's promises are those that this asks for.
        unsafe { bf16(work, columns) }
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    unsafe fn exponentials(
        scores: &[f32],
        least: f32,
        scale: f32,
        weights: &mut [Self],
    ) -> (f32, f32) {
        // SAFETY: a processor with the unit has all others, too.
        unsafe { exponentials(scores, least, scale, weights) }
    }
}

impl MatrixUnit for u8 {
    const TILED: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    unsafe fn in_tiles(work: Work<Self>, columns: usize) {
        // SAFETY: the caller's promises are those that this asks for.
        unsafe { bytes(work, columns) }
    }
}

/// Sixteen or thirty-two columns of a product, by addresses; strides and steps are in bytes.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[derive(Clone, Copy)]
pub(crate) struct Work<T: Element> {
    segments: *const Segment<T>,
    count: usize,
    /// Steps of a segment.
    steps: usize,
    panel: *const T::Weight,
    panel_stride: usize,
    sums: *mut f32,
    sums_stride: usize,
    fresh: bool,
}

/// Some of the inner dimension of all rows, which start so many bytes from each other.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Segment<T> {
    first: *const T,
    stride: usize,
}

impl<T> Segment<T> {
    /// Rows of `length` values, of which one starts every `stride` values.
    fn new(values: &[T], stride: usize, length: usize) -> Self {
        assert!(values.len() >= (ROWS - 1) * stride + length);
        Self { first: values.as_ptr(), stride: stride * size_of::<T>() }
    }
}

/// Buffers that a thread keeps from one gathering to the next.
pub(crate) struct Gathered<T> {
    values: Aligned<T>,
    segments: Vec<Segment<T>>,
}

impl<T: Copy + Default> Default for Gathered<T> {
    fn default() -> Self {
        Self { values: Aligned::default(), segments: Vec::new() }
    }
}

enum Segments<'a, T> {
    One([Segment<T>; 1]),
    Many(&'a [Segment<T>]),
}

/// [`ROWS`] rows, segment by segment.
pub(crate) struct Left<'a, T> {
    segments: Segments<'a, T>,
    length: usize,
    values: PhantomData<&'a [T]>,
}

impl<'a, T: MatrixUnit> Left<'a, T> {
    /// Rows of `length` values, of which one starts every `stride` values.
    pub(crate) fn new(values: &'a [T], stride: usize, length: usize) -> Self {
        let segments = Segments::One([Segment::new(values, stride, length)]);
        Self { segments, length, values: PhantomData }
    }

    /// Rows that are made of segments of `length` values at `(segments, ROWS)` places in `values`, [`ZEROS`] among
    /// them. Segments are copied to `scratch` unless they lie in rows, and in lines of the cache, already.
    pub(crate) fn gather(
        values: &'a [T],
        offsets: &[usize],
        length: usize,
        scratch: &'a mut Gathered<T>,
    ) -> Self {
        let apart = length + BYTES / size_of::<T>();
        scratch.segments.clear();
        scratch.values.resize(offsets.len() * apart);
        for (offsets, copy) in
            offsets.chunks_exact(ROWS).zip(scratch.values.chunks_exact_mut(ROWS * apart))
        {
            scratch.segments.push(Self::in_place(values, offsets, length).unwrap_or_else(|| {
                for (to, &offset) in copy.chunks_exact_mut(apart).zip(offsets) {
                    if offset == ZEROS {
                        to[..length].fill(T::default());
                    } else {
                        to[..length].copy_from_slice(&values[offset..offset + length]);
                    }
                }
                Segment::new(copy, apart, length)
            }));
        }
        Self { segments: Segments::Many(&scratch.segments), length, values: PhantomData }
    }

    /// Rows that need not be copied.
    fn in_place(values: &[T], offsets: &[usize], length: usize) -> Option<Segment<T>> {
        /// A distance of whole pages would send all rows to the same few lines of a cache.
        const PAGE: usize = 4096;
        let first = offsets[0];
        // Offsets grow from row to row, so that the last is among [`ZEROS`] if it is not where it should be.
        let stride = offsets[1].checked_sub(first)?;
        let even = offsets
            .iter()
            .enumerate()
            .all(|(r, at)| *at == first.wrapping_add(r.wrapping_mul(stride)));
        if !even || stride < length {
            return None;
        }
        let bytes = stride * size_of::<T>();
        if !bytes.is_multiple_of(BYTES) || bytes.is_multiple_of(PAGE) {
            return None;
        }
        let values = &values[first..];
        (values.as_ptr().addr().is_multiple_of(BYTES)).then(|| Segment::new(values, stride, length))
    }

    /// The product with a panel `(segments, length / GROUP, width, GROUP)` is written to `sums` or, unless `fresh`,
    /// added; its rows start every `pitch` values. Within [`with_tiles`] only.
    #[allow(unsafe_code)]
    pub(crate) fn multiply(
        &self,
        panel: &[T::Weight],
        width: usize,
        (sums, pitch): (&mut [f32], usize),
        fresh: bool,
    ) {
        let segments = match &self.segments {
            Segments::One(one) => &one[..],
            Segments::Many(many) => many,
        };
        assert!(!segments.is_empty() && self.length > 0);
        assert!((self.length * size_of::<T>()).is_multiple_of(BYTES));
        assert!(width.is_multiple_of(LANES) && width <= PANEL && width <= pitch);
        assert!(panel.len() >= segments.len() * self.length * width);
        assert!(sums.len() >= (ROWS - 1) * pitch + width && is_running());
        for column in (0..width).step_by(2 * LANES) {
            let work = Work {
                segments: segments.as_ptr(),
                count: segments.len(),
                steps: self.length * size_of::<T>() / BYTES,
                panel: panel[column * T::GROUP..].as_ptr(),
                panel_stride: width * T::GROUP * size_of::<T::Weight>(),
                sums: sums[column..].as_mut_ptr(),
                sums_stride: pitch * size_of::<f32>(),
                fresh,
            };
            // SAFETY: segments and the assertions above make everything as long as it is read and written; tiles are
            // only set up where they are there.
            unsafe { T::in_tiles(work, (width - column).min(2 * LANES)) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{bf16, bytes, exponentials, is_running, with_tiles};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code)]

    use std::arch::asm;
    use std::arch::x86_64::{
        __m256bh, _mm512_add_ps, _mm512_cvtneps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_max_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_reduce_ps,
        _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sub_ps,
    };
    use std::cell::Cell;

    use super::{Isa, LANES, ROWS, Work};

    thread_local! {
        /// Number of calls of [`with_tiles`] that are running.
        static RUNNING: Cell<usize> = const { Cell::new(0) };
    }

    /// Returns whether this thread's tiles are set up.
    pub(crate) fn is_running() -> bool {
        RUNNING.get() > 0
    }

    /// Runs `f` with this thread's tiles set up: eight of 16 rows of 64 bytes. Panics where there are none.
    pub(crate) fn with_tiles<R>(f: impl FnOnce() -> R) -> R {
        struct Release;
        impl Drop for Release {
            fn drop(&mut self) {
                RUNNING.set(RUNNING.get() - 1);
                if RUNNING.get() == 0 {
                    // SAFETY: the unit is there, and nobody on this thread needs what it holds.
                    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
                }
            }
        }
        assert!(Isa::Amx.is_there());
        if RUNNING.get() == 0 {
            #[repr(C, align(64))]
            struct Layout {
                palette: u8,
                start: u8,
                reserved: [u8; 14],
                row_bytes: [u16; 16],
                rows: [u8; 16],
            }
            let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
            row_bytes[..8].fill(64);
            rows[..8].fill(16);
            let layout = Layout { palette: 1, start: 0, reserved: [0; 14], row_bytes, rows };
            // SAFETY: the unit is there, and the layout is one that it has.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const layout,
                    options(readonly, nostack, preserves_flags));
            }
        }
        RUNNING.set(RUNNING.get() + 1);
        let _release = Release;
        f()
    }

    /// Multiplies with the instruction `$multiply`. Nothing else touches tiles, so that they keep what one part leaves
    /// in them for the next: sums of the upper rows are in tiles 0 and 1, of the lower ones in 2 and 3.
    macro_rules! multiply {
        ($multiply:literal, $work:expr, $columns:expr) => {{
            let Work {
                segments,
                count,
                steps,
                panel,
                panel_stride,
                sums,
                sums_stride,
                fresh,
            } = $work;
            let lower_sums = sums.wrapping_byte_add(ROWS / 2 * sums_stride);
            let wide = $columns > LANES;
            if fresh {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    options(nomem, nostack, preserves_flags));
            } else {
                asm!("tileloadd tmm0, [{upper} + {stride}]", "tileloadd tmm2, [{lower} + {stride}]",
                    upper = in(reg) sums, lower = in(reg) lower_sums, stride = in(reg) sums_stride,
                    options(readonly, nostack, preserves_flags));
                if wide {
                    asm!("tileloadd tmm1, [{upper} + {stride} + 64]",
                        "tileloadd tmm3, [{lower} + {stride} + 64]",
                        upper = in(reg) sums, lower = in(reg) lower_sums,
                        stride = in(reg) sums_stride,
                        options(readonly, nostack, preserves_flags));
                }
            }
            macro_rules! all_segments {
                ($step:expr) => {
                    asm!(
                        "2:",
                        "mov {upper}, [{segments}]",
                        "mov {stride}, [{segments} + 8]",
                        "add {segments}, 16",
                        "mov {lower}, {stride}",
                        "shl {lower}, 4",
                        "add {lower}, {upper}",
                        "mov {left}, {steps}",
                        "3:",
                        $step,
                        "add {upper}, 64",
                        "add {lower}, 64",
                        // Sixteen rows on.
                        "lea {panel}, [{panel} + 8 * {panel_stride}]",
                        "lea {panel}, [{panel} + 8 * {panel_stride}]",
                        "dec {left}",
                        "jnz 3b",
                        "dec {count}",
                        "jnz 2b",
                        segments = inout(reg) segments => _,
                        count = inout(reg) count => _,
                        steps = in(reg) steps,
                        left = out(reg) _,
                        upper = out(reg) _,
                        lower = out(reg) _,
                        stride = out(reg) _,
                        panel = inout(reg) panel => _,
                        panel_stride = in(reg) panel_stride,
                        options(readonly, nostack),
                    )
                };
            }
            if wide {
                all_segments!(concat!(
                    "tileloadd tmm4, [{upper} + {stride}]\n",
                    "tileloadd tmm6, [{panel} + {panel_stride}]\n",
                    $multiply, " tmm0, tmm4, tmm6\n",
                    "tileloadd tmm7, [{panel} + {panel_stride} + 64]\n",
                    $multiply, " tmm1, tmm4, tmm7\n",
                    "tileloadd tmm5, [{lower} + {stride}]\n",
                    $multiply, " tmm2, tmm5, tmm6\n",
                    $multiply, " tmm3, tmm5, tmm7",
                ));
            } else {
                all_segments!(concat!(
                    "tileloadd tmm6, [{panel} + {panel_stride}]\n",
                    "tileloadd tmm4, [{upper} + {stride}]\n",
                    $multiply, " tmm0, tmm4, tmm6\n",
                    "tileloadd tmm5, [{lower} + {stride}]\n",
                    $multiply, " tmm2, tmm5, tmm6",
                ));
            }
            asm!("tilestored [{upper} + {stride}], tmm0", "tilestored [{lower} + {stride}], tmm2",
                upper = in(reg) sums, lower = in(reg) lower_sums, stride = in(reg) sums_stride,
                options(nostack, preserves_flags));
            if wide {
                asm!("tilestored [{upper} + {stride} + 64], tmm1",
                    "tilestored [{lower} + {stride} + 64], tmm3",
                    upper = in(reg) sums, lower = in(reg) lower_sums, stride = in(reg) sums_stride,
                    options(nostack, preserves_flags));
            }
        }};
    }

    /// # Safety
    ///
    /// See [`MatrixUnit::in_tiles`](super::MatrixUnit::in_tiles).
    pub(crate) unsafe fn bf16(work: Work<half::bf16>, columns: usize) {
        // SAFETY: by the caller's promise.
        unsafe { multiply!("tdpbf16ps", work, columns) }
    }

    /// Sums are exact up to 2³¹, which is what 66 000 products of 255 and 127 have.
    ///
    /// # Safety
    ///
    /// See [`MatrixUnit::in_tiles`](super::MatrixUnit::in_tiles).
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn bytes(work: Work<u8>, columns: usize) {
        let mut whole = [0i32; ROWS * 2 * LANES];
        let (sums, stride) = (work.sums, work.sums_stride / size_of::<f32>());
        let whole_stride = columns * size_of::<i32>();
        let to = whole.as_mut_ptr().cast();
        let to_whole = Work { sums: to, sums_stride: whole_stride, fresh: true, ..work };
        // SAFETY: by the caller's promise; whole numbers are as large as those that they are turned into.
        unsafe {
            multiply!("tdpbusd", to_whole, columns);
            for (r, row) in whole.chunks_exact(columns).take(ROWS).enumerate() {
                let sums = std::slice::from_raw_parts_mut(sums.add(r * stride), columns);
                for (sum, v) in sums.iter_mut().zip(row) {
                    *sum = *v as f32 + if work.fresh { 0.0 } else { *sum };
                }
            }
        }
    }

    /// See [`MatrixUnit::exponentials`](super::MatrixUnit::exponentials).
    ///
    /// # Safety
    ///
    /// The processor must have the instructions.
    #[target_feature(enable = "avx512f,avx512dq,avx512bf16")]
    pub(crate) unsafe fn exponentials(
        scores: &[f32],
        least: f32,
        scale: f32,
        weights: &mut [half::bf16],
    ) -> (f32, f32) {
        /// Selects the fractional part.
        const FRACTION: i32 = 0x09;
        assert!(scores.len().is_multiple_of(LANES) && weights.len() >= scores.len());
        let all = || (0..scores.len()).step_by(LANES);
        // SAFETY: reads and writes stay within the slices, as their lengths are checked above.
        let load = |at: usize| unsafe { _mm512_loadu_ps(scores.as_ptr().add(at)) };
        let mut most = _mm512_set1_ps(least);
        for at in all() {
            // NaN in the first operand is ignored.
            most = _mm512_max_ps(load(at), most);
        }
        let maximum = _mm512_reduce_max_ps(most);
        let (most, per_unit) =
            (_mm512_set1_ps(maximum), _mm512_set1_ps(scale * std::f32::consts::LOG2_E));
        let mut total = _mm512_setzero_ps();
        for at in all() {
            let x = _mm512_mul_ps(_mm512_sub_ps(load(at), most), per_unit);
            // 2 to the fraction within 2.6e-6, which is then scaled by 2 to the integer.
            let r = _mm512_reduce_ps::<FRACTION>(x);
            let mut p = _mm512_set1_ps(1.353_416_8e-2);
            for c in [5.201_146_4e-2, 2.414_427_5e-1, 6.930_038e-1, 1.000_002_6] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
            }
            let e = _mm512_scalef_ps(p, x);
            total = _mm512_add_ps(total, e);
            let e = _mm512_cvtneps_pbh(e);
            // SAFETY: as above.
            unsafe { weights.as_mut_ptr().add(at).cast::<__m256bh>().write_unaligned(e) };
        }
        (maximum, _mm512_reduce_add_ps(total))
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use elsewhere::{is_running, with_tiles};

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    pub(crate) fn is_running() -> bool {
        false
    }

    pub(crate) fn with_tiles<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}
