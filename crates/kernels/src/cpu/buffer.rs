//! Results that several tasks write at once.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use super::isa::{self, LINE};
use crate::Stop;

/// A vector of `len` values that `fill` writes. They are not cleared first, which would take as long as writing them;
/// debug builds make them `unset`, so that what is forgotten shows in tests.
///
/// # Safety
///
/// `fill` must write every value.
#[allow(unsafe_code)]
pub(crate) unsafe fn filled<T: Copy>(
    len: usize,
    unset: T,
    fill: impl FnOnce(&mut [MaybeUninit<T>]),
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    let spare = &mut values.spare_capacity_mut()[..len];
    if cfg!(debug_assertions) {
        spare.fill(MaybeUninit::new(unset));
    }
    fill(spare);
    // SAFETY: there is room, and `fill` has written them.
    unsafe { values.set_len(len) };
    values
}

/// Writes all of a result whose tasks may have been left out because of `stop`. A stop is never taken back, so that
/// what a task saw is seen here.
pub(crate) fn abandon<T: Copy>(stop: Option<&Stop>, values: &mut [MaybeUninit<T>], unset: T) {
    if stop.is_some_and(Stop::is_requested) {
        values.fill(MaybeUninit::new(unset));
    }
}

/// A slice that starts where a line of the cache does, so that loads of whole lines touch no second one.
#[derive(Debug, Default)]
pub(crate) struct Aligned<T> {
    values: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// A buffer of `len` default values.
    pub(crate) fn new(len: usize) -> Self {
        let values = vec![T::default(); len + LINE / size_of::<T>()];
        // Unaligned where the offset cannot be computed.
        let start = values.as_ptr().align_offset(LINE).min(values.len() - len);
        Self { values, start, len }
    }

    /// Changes the length; what is in it then is anything.
    pub(crate) fn resize(&mut self, len: usize) {
        if self.start + len > self.values.len() {
            *self = Self::new(len);
        }
        self.len = len;
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        &self.values[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..self.start + self.len]
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut clone = Self::new(self.len);
        clone.copy_from_slice(self);
        clone
    }
}

/// Runs `f` with memory that this thread keeps from one kernel to the next.
pub(crate) fn with_scratch<S: Default, R>(
    scratch: &'static LocalKey<RefCell<S>>,
    f: impl FnOnce(&mut S) -> R,
) -> R {
    // Nothing that runs inside starts the same kernel on this thread; if it did, memory of its own.
    scratch.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => f(&mut scratch),
        Err(_) => f(&mut S::default()),
    })
}

/// Implements the `Operand` of the module that calls it, with memory of its `Scratch` for every thread.
macro_rules! operand {
    ($type:ty) => {
        impl Operand for $type {
            fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
                use std::cell::RefCell;
                thread_local! {
                    static SCRATCH: RefCell<Scratch<$type>> = RefCell::new(Scratch::default());
                }
                $crate::cpu::buffer::with_scratch(&SCRATCH, f)
            }
        }
    };
}

pub(crate) use operand;

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

    /// Has the processor fetch what is soon written.
    #[inline(always)]
    pub(crate) fn prefetch(&self, start: usize, len: usize) {
        assert!(start <= self.len && len <= self.len - start);
        isa::prefetch(self.values.wrapping_add(start), len);
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
