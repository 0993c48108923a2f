//! Settings of the allocator and of candle's threads. The library leaves both to its callers.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::kernels::cpu::isa::LINE;

/// The system's allocator, which large blocks get from the start of a line of the cache: vectors as wide as a line
/// then touch no second one.
///
/// Each is part of a block that the system aligns as it likes, because asking it for more than that costs time and
/// memory. Just before it is written where that one begins.
#[derive(Debug)]
pub struct Allocator;

/// Bytes of an address.
const ADDRESS: usize = size_of::<*mut u8>();

/// The layout that is requested for a large block; `None` for a small one, or one with an alignment of its own.
fn whole(layout: Layout) -> Option<Layout> {
    const LARGE: usize = 1 << 10;
    // With as much room before the block as an address takes.
    let large = layout.size() >= LARGE && layout.align() <= ADDRESS;
    large.then(|| Layout::from_size_align(layout.size() + LINE, ADDRESS).ok()).flatten()
}

/// The part of `block` that starts with a line, with its address written before it.
///
/// # Safety
///
/// `block` must be null, or have a line more than the part.
#[allow(unsafe_code)]
unsafe fn part(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    // SAFETY: the part starts within the first line, and at least an address after the block, as that is aligned so.
    unsafe {
        let part = block.add(LINE - block.addr() % LINE);
        part.sub(ADDRESS).cast::<*mut u8>().write_unaligned(block);
        part
    }
}

/// The block of a part.
///
/// # Safety
///
/// It must be one that [`part`] has made.
#[allow(unsafe_code)]
unsafe fn of_part(part: *mut u8) -> *mut u8 {
    // SAFETY: this is where its address is.
    unsafe { part.sub(ADDRESS).cast::<*mut u8>().read_unaligned() }
}

// SAFETY: large blocks are parts of the system's, found again by the layout that decides which are.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        unsafe {
            whole(layout).map_or_else(|| System.alloc(layout), |whole| part(System.alloc(whole)))
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        unsafe {
            whole(layout).map_or_else(
                || System.alloc_zeroed(layout),
                |whole| part(System.alloc_zeroed(whole)),
            )
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe {
            match whole(layout) {
                Some(whole) => System.dealloc(of_part(block), whole),
                None => System.dealloc(block, layout),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: by the caller's promise the size is one that a layout can have.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (whole(layout), whole(new)) {
            // SAFETY: by the caller's promise.
            (None, None) => unsafe { System.realloc(block, layout, size) },
            // SAFETY: what is moved lies within both blocks, wherever in the new one it is.
            (Some(from), Some(to)) => unsafe {
                let old = of_part(block);
                let offset = block.addr() - old.addr();
                let moved = System.realloc(old, from, to.size());
                if moved.is_null() {
                    return moved;
                }
                let now = moved.add(LINE - moved.addr() % LINE);
                now.copy_from(moved.add(offset), layout.size().min(size));
                part(moved)
            },
            // SAFETY: by the caller's promise; both have as many bytes as are copied.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

/// Applies the settings. Must be called before there is a second thread.
#[allow(unsafe_code)]
pub(super) fn at_start() {
    // candle's threads for single operations wait busily for their next one, and hold up our kernels where there is a
    // thread for every core.
    const SPINS: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPINS).is_none() {
        // SAFETY: nobody else reads or writes the environment, as there is no other thread.
        unsafe { std::env::set_var(SPINS, "1") };
    }
}

/// Sets the number of threads of this process, and of those that it starts. Must be called before there is a second
/// thread.
#[allow(unsafe_code)]
pub(super) fn use_threads(count: usize) {
    // Both rayon and candle read it.
    // SAFETY: nobody else reads or writes the environment, as there is no other thread.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", count.to_string()) };
}

/// Lets the memory of results be used again by the next ones, in place of returning it to the system, which clears
/// every page before it gives it again. To be called when the weights are loaded: what is freed on the way there
/// had better be returned.
pub(super) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: both are documented settings of the allocator, which may be changed at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn large_blocks_start_with_a_line_and_keep_what_is_in_them() {
        let sizes = [1, 1023, 1024, 1500, 100_000, 5 << 20, 70_000, 1024, 1000, 3];
        for align in [1, 8, 16, 128] {
            for zeroed in [false, true] {
                let mut layout = Layout::from_size_align(sizes[0], align).unwrap();
                // SAFETY: sizes are not 0, and what is read has been written.
                unsafe {
                    let mut block = if zeroed {
                        Allocator.alloc_zeroed(layout)
                    } else {
                        Allocator.alloc(layout)
                    };
                    assert!(!zeroed || *block == 0);
                    block.write(7);
                    for size in sizes {
                        block = Allocator.realloc(block, layout, size);
                        let before = layout.size().min(size);
                        layout = Layout::from_size_align(size, align).unwrap();
                        assert_eq!(block.addr() % align, 0);
                        assert!(size < 1024 || block.addr().is_multiple_of(LINE) || align == 16);
                        let kept = std::slice::from_raw_parts(block, before);
                        assert!(kept.iter().all(|v| *v == 7));
                        block.write_bytes(7, size);
                    }
                    Allocator.dealloc(block, layout);
                    let large = Layout::from_size_align(1 << 16, align).unwrap();
                    let block = Allocator.alloc_zeroed(large);
                    assert!(std::slice::from_raw_parts(block, 1 << 16).iter().all(|v| *v == 0));
                    Allocator.dealloc(block, large);
                }
            }
        }
    }
}
