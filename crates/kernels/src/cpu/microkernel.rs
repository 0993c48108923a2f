//! The innermost loop of all products: a few rows times a packed panel of columns, kept in registers.

use half::bf16;

use super::float::{Byte, Stored};
use super::isa::{ALWAYS_FMA, Isa};
use super::math::fused;

/// Rows of a tile.
pub(crate) const ROWS: usize = 6;

/// Columns of a whole panel; the last panel of a matrix may be narrower, by whole lanes.
pub(crate) const PANEL: usize = 64;

/// Columns that panels are multiples of.
pub(crate) const LANES: usize = 16;

/// Entry of a table of offsets that stands for a row of zeros.
pub(crate) const ZEROS: usize = usize::MAX;

/// Element types of the two operands of a product.
pub(crate) trait Element: Stored {
    /// Element type of the right operand, with the same group size.
    type Weight: Stored;

    /// Adds a product to `sums`, or writes it there if they are `fresh`.
    ///
    /// The product is summed up by itself first, so that rounding errors grow with the length of a call and with the
    /// number of calls, not with their product.
    ///
    /// # Safety
    ///
    /// The promises of [`Tile`] must hold, and the processor must have `isa`.
    #[allow(unsafe_code)]
    unsafe fn tile(isa: Isa, tile: Tile<'_, Self>);
}

/// A tile as the innermost loops want it.
///
/// Every row must be readable for `length` values, `panel` for `rows.len() / ROWS · length · width`, and `sums`
/// readable and writable for `ROWS · width`; `width` is a multiple of [`LANES`] up to [`PANEL`], `length` one of the
/// group.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a, T: Element> {
    /// `(segments, ROWS)`.
    rows: &'a [*const T],
    length: usize,
    panel: *const T::Weight,
    width: usize,
    sums: *mut f32,
    /// Whether what `sums` holds is forgotten.
    fresh: bool,
}

/// A product's operands: rows that lie anywhere in `values`, one after the other for every segment of the inner
/// dimension, and the panel.
pub(crate) struct Product<'a, T: Element> {
    pub(crate) values: &'a [T],
    /// A row of at least `length` zeros.
    pub(crate) zeros: &'a [T],
    /// `(segments, ROWS)` places in `values`, or [`ZEROS`].
    pub(crate) offsets: &'a [usize],
    /// Values of a segment.
    pub(crate) length: usize,
    /// `(segments, length / GROUP, width, GROUP)`.
    pub(crate) panel: &'a [T::Weight],
    /// Columns of the panel.
    pub(crate) width: usize,
}

/// Segments whose pointers are worked out at once.
const AT_ONCE: usize = 9;

impl<T: Element> Product<'_, T> {
    /// `sums`, `(ROWS, width)`, becomes the product or, unless `fresh`, is added to.
    #[allow(unsafe_code)]
    pub(crate) fn add_to(&self, isa: Isa, sums: &mut [f32], fresh: bool) {
        let Self { values, zeros, offsets, length, panel, width } = *self;
        let segments = offsets.len() / ROWS;
        assert!(segments * ROWS == offsets.len() && segments > 0);
        assert!(width.is_multiple_of(LANES) && width <= PANEL && length.is_multiple_of(T::GROUP));
        assert!(zeros.len() >= length && panel.len() >= segments * length * width);
        assert!(sums.len() >= ROWS * width);
        let mut rows = [zeros.as_ptr(); ROWS * AT_ONCE];
        for (i, offsets) in offsets.chunks(ROWS * AT_ONCE).enumerate() {
            for (row, &offset) in rows.iter_mut().zip(offsets) {
                *row = if offset == ZEROS {
                    zeros.as_ptr()
                } else {
                    values[offset..offset + length].as_ptr()
                };
            }
            let tile = Tile {
                rows: &rows[..offsets.len()],
                length,
                panel: panel[i * AT_ONCE * length * width..].as_ptr(),
                width,
                sums: sums.as_mut_ptr(),
                fresh: fresh && i == 0,
            };
            // SAFETY: the assertions and the slicing above make everything as long as `tile` wants; `isa` comes
            // from `Isa::current`.
            unsafe {
                T::tile(isa, tile);
            }
        }
    }
}

impl Element for f32 {
    type Weight = Self;

    #[allow(unsafe_code)]
    unsafe fn tile(isa: Isa, tile: Tile<'_, Self>) {
        // SAFETY: the caller's promises are those that these ask for.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx => {
                    match tile.width / LANES {
                        1 => x86::f32_512::<1>(tile),
                        2 => x86::f32_512::<2>(tile),
                        3 => x86::f32_512::<3>(tile),
                        _ => x86::f32_512::<4>(tile),
                    }
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::f32_256(tile),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => arm::f32_128(tile),
                _ => portable(tile),
            }
        }
    }
}

impl Element for bf16 {
    type Weight = Self;

    #[allow(unsafe_code)]
    unsafe fn tile(isa: Isa, tile: Tile<'_, Self>) {
        // SAFETY: the caller's promises are those that these ask for.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 | Isa::Amx => match tile.width / LANES {
                    1 => x86::bf16_512::<1>(tile),
                    2 => x86::bf16_512::<2>(tile),
                    3 => x86::bf16_512::<3>(tile),
                    _ => x86::bf16_512::<4>(tile),
                },
                _ => portable(tile),
            }
        }
    }
}

impl Element for u8 {
    type Weight = Byte;

    #[allow(unsafe_code)]
    unsafe fn tile(isa: Isa, tile: Tile<'_, Self>) {
        // SAFETY: the caller's promises are those that these ask for.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx => match tile.width / LANES {
                    1 => x86::u8_512::<1>(tile),
                    2 => x86::u8_512::<2>(tile),
                    3 => x86::u8_512::<3>(tile),
                    _ => x86::u8_512::<4>(tile),
                },
                _ => portable(tile),
            }
        }
    }
}

/// Columns of which the portable loop keeps the sums of all rows in registers.
const NARROW: usize = 8;

/// The definition, which the compiler turns into what vector code it can.
///
/// # Safety
///
/// See [`Element::tile`].
#[allow(unsafe_code)]
unsafe fn portable<T: Element>(tile: Tile<'_, T>) {
    let Tile { rows, length, panel, width, sums, fresh } = tile;
    let group = T::GROUP;
    for column in (0..width).step_by(NARROW) {
        let mut lanes = [[0f32; NARROW]; ROWS];
        // SAFETY: row `r` and lane `l` are below `ROWS` and `width - column`; `k` is below `length`.
        unsafe {
            let sums = |r: usize| sums.add(r * width + column).cast::<[f32; NARROW]>();
            let mut panel = panel.add(column * group);
            for rows in rows.chunks_exact(ROWS) {
                for k in (0..length).step_by(group) {
                    for g in 0..group {
                        let mut b = [0f32; NARROW];
                        for (l, b) in b.iter_mut().enumerate() {
                            *b = (*panel.add(l * group + g)).widen();
                        }
                        for r in 0..ROWS {
                            let a = (*rows[r].add(k + g)).widen();
                            for l in 0..NARROW {
                                lanes[r][l] = fused::<ALWAYS_FMA>(a, b[l], lanes[r][l]);
                            }
                        }
                    }
                    // After the last this is outside, and not read.
                    panel = panel.wrapping_add(width * group);
                }
            }
            for (r, lanes) in lanes.iter_mut().enumerate() {
                if !fresh {
                    lanes.iter_mut().zip(sums(r).read()).for_each(|(lane, sum)| *lane += sum);
                }
                sums(r).write(*lanes);
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    #![allow(unsafe_code)]

    use std::arch::aarch64::{
        vaddq_f32, vdupq_n_f32, vfmaq_laneq_f32, vfmaq_n_f32, vld1q_f32, vst1q_f32,
    };

    use super::{LANES, ROWS, Tile};

    /// Values of a register.
    const WIDE: usize = 4;

    /// # Safety
    ///
    /// See [`super::Element::tile`].
    #[target_feature(enable = "neon")]
    pub(crate) unsafe fn f32_128(tile: Tile<'_, f32>) {
        let Tile { rows, length, panel, width, sums, fresh } = tile;
        for column in (0..width).step_by(LANES) {
            let mut acc = [[vdupq_n_f32(0.0); LANES / WIDE]; ROWS];
            // SAFETY: by the caller's promise; `column + LANES` is at most `width`.
            unsafe {
                let at = |r: usize, v: usize| sums.add(r * width + column + v * WIDE);
                let mut panel = panel.add(column);
                for rows in rows.chunks_exact(ROWS) {
                    let whole = length - length % WIDE;
                    for k in (0..whole).step_by(WIDE) {
                        let mut a = [vdupq_n_f32(0.0); ROWS];
                        for (a, row) in a.iter_mut().zip(rows) {
                            *a = vld1q_f32(row.add(k));
                        }
                        macro_rules! times {
                            ($lane:literal) => {
                                for v in 0..LANES / WIDE {
                                    let b = vld1q_f32(panel.add(v * WIDE));
                                    for (acc, a) in acc.iter_mut().zip(a) {
                                        acc[v] = vfmaq_laneq_f32::<$lane>(acc[v], b, a);
                                    }
                                }
                                panel = panel.wrapping_add(width);
                            };
                        }
                        times!(0);
                        times!(1);
                        times!(2);
                        times!(3);
                    }
                    for k in whole..length {
                        for v in 0..LANES / WIDE {
                            let b = vld1q_f32(panel.add(v * WIDE));
                            for (acc, row) in acc.iter_mut().zip(rows) {
                                acc[v] = vfmaq_n_f32(acc[v], b, *row.add(k));
                            }
                        }
                        panel = panel.wrapping_add(width);
                    }
                }
                for (r, acc) in acc.iter().enumerate() {
                    for (v, acc) in acc.iter().enumerate() {
                        let at = at(r, v);
                        vst1q_f32(at, if fresh { *acc } else { vaddq_f32(vld1q_f32(at), *acc) });
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code)]

    use std::arch::x86_64::{
        __m512bh, __m512i, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbf16_ps,
        _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
        _mm512_storeu_ps,
    };

    use half::bf16;

    use super::{LANES, ROWS, Tile};

    /// # Safety
    ///
    /// See [`super::Element::tile`]; `V` is the tile's `width / LANES`.
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn f32_512<const V: usize>(tile: Tile<'_, f32>) {
        let Tile { rows, length, mut panel, sums, fresh, .. } = tile;
        let mut acc = [[_mm512_setzero_ps(); V]; ROWS];
        // SAFETY: by the caller's promise.
        unsafe {
            for rows in rows.chunks_exact(ROWS) {
                for k in 0..length {
                    let mut b = [_mm512_setzero_ps(); V];
                    for (v, b) in b.iter_mut().enumerate() {
                        *b = _mm512_loadu_ps(panel.add(v * LANES));
                    }
                    for r in 0..ROWS {
                        let a = _mm512_set1_ps(*rows[r].add(k));
                        for v in 0..V {
                            acc[r][v] = _mm512_fmadd_ps(a, b[v], acc[r][v]);
                        }
                    }
                    panel = panel.add(V * LANES);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let at = sums.add((r * V + v) * LANES);
                    let sum = if fresh { *acc } else { _mm512_add_ps(_mm512_loadu_ps(at), *acc) };
                    _mm512_storeu_ps(at, sum);
                }
            }
        }
    }

    /// # Safety
    ///
    /// See [`super::Element::tile`].
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn f32_256(tile: Tile<'_, f32>) {
        let Tile { rows, length, panel, width, sums, fresh } = tile;
        for column in (0..width).step_by(LANES) {
            let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
            // SAFETY: by the caller's promise; `column + LANES` is at most `width`.
            unsafe {
                let at = |r: usize, v: usize| sums.add(r * width + column + v * 8);
                let mut panel = panel.add(column);
                for rows in rows.chunks_exact(ROWS) {
                    for k in 0..length {
                        let b = [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(8))];
                        for r in 0..ROWS {
                            let a = _mm256_set1_ps(*rows[r].add(k));
                            acc[r][0] = _mm256_fmadd_ps(a, b[0], acc[r][0]);
                            acc[r][1] = _mm256_fmadd_ps(a, b[1], acc[r][1]);
                        }
                        panel = panel.wrapping_add(width);
                    }
                }
                for (r, acc) in acc.iter().enumerate() {
                    for (v, acc) in acc.iter().enumerate() {
                        let at = at(r, v);
                        let sum =
                            if fresh { *acc } else { _mm256_add_ps(_mm256_loadu_ps(at), *acc) };
                        _mm256_storeu_ps(at, sum);
                    }
                }
            }
        }
    }

    /// # Safety
    ///
    /// See [`super::Element::tile`]; `V` is the tile's `width / LANES`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) unsafe fn bf16_512<const V: usize>(tile: Tile<'_, bf16>) {
        let Tile { rows, length, mut panel, sums, fresh, .. } = tile;
        let mut acc = [[_mm512_setzero_ps(); V]; ROWS];
        // SAFETY: by the caller's promise; a pair of bf16 is read as the bytes of one integer.
        unsafe {
            for rows in rows.chunks_exact(ROWS) {
                for k in 0..length / 2 {
                    let mut b = [_mm512_setzero_si512(); V];
                    for (v, b) in b.iter_mut().enumerate() {
                        *b = _mm512_loadu_si512(panel.add(v * 2 * LANES).cast());
                    }
                    for r in 0..ROWS {
                        let pair = rows[r].add(2 * k).cast::<[u8; 4]>().read();
                        let a = _mm512_set1_epi32(i32::from_ne_bytes(pair));
                        for v in 0..V {
                            acc[r][v] = _mm512_dpbf16_ps(
                                acc[r][v],
                                std::mem::transmute::<__m512i, __m512bh>(a),
                                std::mem::transmute::<__m512i, __m512bh>(b[v]),
                            );
                        }
                    }
                    panel = panel.add(V * 2 * LANES);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let at = sums.add((r * V + v) * LANES);
                    let sum = if fresh { *acc } else { _mm512_add_ps(_mm512_loadu_ps(at), *acc) };
                    _mm512_storeu_ps(at, sum);
                }
            }
        }
    }

    /// Sums are exact up to 2³¹, which is what 66 000 products of 255 and 127 have.
    ///
    /// # Safety
    ///
    /// See [`super::Element::tile`]; `V` is the tile's `width / LANES`.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(crate) unsafe fn u8_512<const V: usize>(tile: Tile<'_, u8>) {
        let Tile { rows, length, mut panel, sums, fresh, .. } = tile;
        let mut acc = [[_mm512_setzero_si512(); V]; ROWS];
        // SAFETY: by the caller's promise; four neighbours are read as the bytes of one integer.
        unsafe {
            for rows in rows.chunks_exact(ROWS) {
                for k in 0..length / 4 {
                    let mut b = [_mm512_setzero_si512(); V];
                    for (v, b) in b.iter_mut().enumerate() {
                        *b = _mm512_loadu_si512(panel.add(v * 4 * LANES).cast());
                    }
                    for r in 0..ROWS {
                        let four = rows[r].add(4 * k).cast::<[u8; 4]>().read();
                        let a = _mm512_set1_epi32(i32::from_ne_bytes(four));
                        for v in 0..V {
                            acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, b[v]);
                        }
                    }
                    panel = panel.add(V * 4 * LANES);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let at = sums.add((r * V + v) * LANES);
                    let acc = _mm512_cvtepi32_ps(*acc);
                    let sum = if fresh { acc } else { _mm512_add_ps(_mm512_loadu_ps(at), acc) };
                    _mm512_storeu_ps(at, sum);
                }
            }
        }
    }
}
