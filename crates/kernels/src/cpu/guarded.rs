//! Memory accesses of kernels, tested with operands between pages that may not be accessed. That finds out-of-bounds
//! accesses which sanitizers do not see, those of assembly.

use std::ops::{Deref, DerefMut};

use half::bf16;

use super::amx::{self, Gathered, Left, MatrixUnit};
use super::float::{Byte, Float as _, Stored as _};
use super::gemm::Operand;
use super::isa::Isa;
use super::microkernel::{LANES, PANEL, Product, ROWS, ZEROS};

/// Values that end where such a page begins, or begin where one ends.
struct Guarded<T> {
    pages: *mut libc::c_void,
    size: usize,
    first: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    #[allow(unsafe_code)]
    fn new(values: &[T], at_end: bool) -> Self {
        // SAFETY: it only asks.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let bytes = size_of_val(values);
        let inner = bytes.next_multiple_of(page);
        let size = inner + 2 * page;
        // SAFETY: the pages are new; all but the first and the last may be written, and hold the values.
        unsafe {
            let map = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let pages = libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, map, -1, 0);
            assert!(pages != libc::MAP_FAILED);
            let start = pages.byte_add(page);
            assert_eq!(libc::mprotect(start, inner, libc::PROT_READ | libc::PROT_WRITE), 0);
            let first: *mut T = start.byte_add(if at_end { inner - bytes } else { 0 }).cast();
            first.copy_from_nonoverlapping(values.as_ptr(), values.len());
            Self { pages, size, first, len: values.len() }
        }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[T] {
        // SAFETY: as many values were written.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as many values were written, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the pages are this one's own.
        unsafe { libc::munmap(self.pages, self.size) };
    }
}

/// Random integers as operands, so that every kernel has exactly the same sums.
fn whole<T>(len: usize, range: usize, of: impl Fn(i8) -> T) -> Vec<T> {
    (0..len).map(|i| of((i * i % 23 * 7 % range) as i8)).collect()
}

/// `before` and a product of so many rows, as it is defined.
fn sums<T: MatrixUnit>(product: &Product<'_, T>, rows: usize, before: f32) -> Vec<f32> {
    let Product { values, offsets, length, panel, width, .. } = *product;
    let mut sums = vec![before; rows * width];
    for (s, offsets) in offsets.chunks_exact(rows).enumerate() {
        for (r, &offset) in offsets.iter().enumerate().filter(|(_, offset)| **offset != ZEROS) {
            for (k, v) in values[offset..offset + length].iter().enumerate() {
                let group = (s * length + k) / T::GROUP * width * T::GROUP + k % T::GROUP;
                for (c, sum) in sums[r * width..][..width].iter_mut().enumerate() {
                    *sum += v.widen() * panel[group + c * T::GROUP].widen();
                }
            }
        }
    }
    sums
}

/// Products of `segments` of `length` by all widths, on every set of instructions.
fn check<T: Operand>(
    (segments, length): (usize, usize),
    left: impl Fn(i8) -> T,
    right: impl Fn(i8) -> T::Weight,
) {
    let widths = (LANES..=PANEL).step_by(LANES);
    for (width, at_end) in widths.flat_map(|width| [(width, true), (width, false)]) {
        let right = Guarded::new(&whole(segments * length * width, 19, &right), at_end);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there()) {
            let in_tiles = T::fits_tiles(isa, length);
            let rows = if in_tiles { amx::ROWS } else { ROWS };
            // Rows one after the other; all segments but the first are missing in some.
            let left = Guarded::new(&whole(rows * segments * length, 17, &left), at_end);
            let offset = |s: usize, r: usize| {
                if s > 0 && (s + r).is_multiple_of(5) { ZEROS } else { (r * segments + s) * length }
            };
            let offsets = (0..segments).flat_map(|s| (0..rows).map(move |r| offset(s, r)));
            let offsets: Vec<usize> = offsets.collect();
            let zeros = Guarded::new(&vec![T::default(); length], at_end);
            let (values, zeros, offsets, panel) = (&*left, &*zeros, &*offsets, &*right);
            let product = Product { values, zeros, offsets, length, panel, width };
            for (before, fresh) in [(3.0, false), (f32::NAN, true)] {
                let mut got = Guarded::new(&vec![before; rows * width], at_end);
                if in_tiles {
                    amx::with_tiles(|| {
                        let mut scratch = Gathered::default();
                        let left = Left::gather(values, offsets, length, &mut scratch);
                        left.multiply(panel, width, (&mut got, width), fresh);
                    });
                } else {
                    product.add_to(isa, &mut got, fresh);
                }
                let want = sums(&product, rows, if fresh { 0.0 } else { before });
                assert!(got[..] == want, "{isa:?}, {segments} of {length}, {width} columns");
            }
        }
    }
}

#[test]
fn products_touch_their_operands_and_nothing_else() {
    for (segments, length) in [(1, 64), (1, 20), (9, 32), (10, 64), (3, 192)] {
        let sizes = (segments, length);
        check::<f32>(sizes, |v| f32::from(v - 8), |v| f32::from(v - 9));
        check::<bf16>(
            sizes,
            |v| bf16::narrow(f32::from(v - 8)),
            |v| bf16::narrow(f32::from(v - 9)),
        );
        check::<u8>(sizes, |v| v as u8, |v| Byte(v - 9));
    }
}

#[test]
fn exponentials_touch_their_operands_and_nothing_else() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there() && bf16::fits_tiles(*isa, 32)) {
        for (len, at_end) in [(16, true), (16, false), (192, true), (192, false)] {
            let scores = Guarded::new(&whole(len, 19, f32::from), at_end);
            let mut weights = Guarded::new(&vec![bf16::NAN; len], at_end);
            // SAFETY: the processor has the unit.
            #[allow(unsafe_code)]
            let (most, _) = unsafe { bf16::exponentials(&scores, 0.0, 0.5, &mut weights) };
            assert_eq!(most, scores.iter().copied().fold(0.0, f32::max), "{isa:?}");
            for (weight, score) in weights.iter().zip(&*scores) {
                let want = ((score - most) * 0.5).exp();
                assert!((weight.to_f32() - want).abs() < 4e-3 * want, "{weight} {want}");
            }
        }
    }
}
