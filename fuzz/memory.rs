//! An allocator that counts, and refuses what is beyond a limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are allocated.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// The most that may be.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The most that were since it was last set.
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The most that an execution took so far.
static RECORD: AtomicUsize = AtomicUsize::new(1 << 20);

/// Calls `run`, whose allocations may have `allowance` bytes beside those that exist already.
pub(crate) fn limited(allowance: usize, run: impl FnOnce()) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    LIMIT.store(before.saturating_add(allowance), Relaxed);
    run();
    LIMIT.store(usize::MAX, Relaxed);
    let taken = PEAK.load(Relaxed).saturating_sub(before);
    if taken > RECORD.load(Relaxed) {
        RECORD.store(taken, Relaxed);
        eprintln!("largest heap of an execution: {} KiB", taken >> 10);
    }
}

struct Counting;

impl Counting {
    /// Counts `more` bytes, unless they are too many.
    fn take(more: usize) -> bool {
        let live = LIVE.fetch_add(more, Relaxed).saturating_add(more);
        if live > LIMIT.load(Relaxed) {
            LIVE.fetch_sub(more, Relaxed);
            return false;
        }
        PEAK.fetch_max(live, Relaxed);
        true
    }
}

// SAFETY: everything is the system's allocator; a null pointer is a refusal.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::take(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !Self::take(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Self::take(size.saturating_sub(layout.size())) {
            return std::ptr::null_mut();
        }
        LIVE.fetch_sub(layout.size().saturating_sub(size), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}
