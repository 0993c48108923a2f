//! What the program asks of its allocator and of candle's threads. The library leaves both to its callers.

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
