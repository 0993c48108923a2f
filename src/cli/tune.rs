//! What the program asks of its allocator and of candle's threads. The library leaves both to its callers.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, which large blocks get from the start of a line of the cache: vectors as wide as a line
/// then touch no second one.
#[derive(Debug)]
pub struct Allocator;

/// What is asked of the system for a block.
fn aligned(layout: Layout) -> Layout {
    const LINE: usize = 64;
    const LARGE: usize = 1 << 10;
    if layout.size() < LARGE {
        return layout;
    }
    layout.align_to(LINE).unwrap_or(layout)
}

// SAFETY: every block is asked for, and given back, with the layout that `aligned` makes of its own.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        unsafe { System.alloc(aligned(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        unsafe { System.alloc_zeroed(aligned(layout)) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(block, aligned(layout)) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: by the caller's promise the size is one that a layout can have.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let (from, to) = (aligned(layout), aligned(new));
        // SAFETY: by the caller's promise; a block that moves is as large as what is copied on both sides.
        unsafe {
            if from.align() == to.align() {
                return System.realloc(block, from, size);
            }
            let moved = System.alloc(to);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                System.dealloc(block, from);
            }
            moved
        }
    }
}

/// To be called before there is a second thread.
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
