//! A slice that several tasks write at once.

use std::marker::PhantomData;

/// A result while tasks write disjoint parts of it.
pub(crate) struct Shared<'a, T> {
    values: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks write disjoint elements only; see `part`.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self { values: values.as_mut_ptr(), len: values.len(), borrow: PhantomData }
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    ///
    /// While the part is in use nobody else may be given any of its elements.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside the slice that `values` was made of, and unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(start), len) }
    }
}
