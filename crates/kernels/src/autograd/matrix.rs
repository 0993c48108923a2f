//! Products of matrices that lie in slices, on this thread.

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `columns` values, `stride` apart.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    fn extent(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// Whether a product replaces what is there or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    Replace,
    Add,
}

/// `out = scale · a b`, or `out += scale · a b`; the rows of `out` are `stride` apart.
#[allow(unsafe_code)]
pub(super) fn multiply(
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    stride: usize,
    (into, scale): (Into, f32),
) {
    assert_eq!(a.columns, b.rows);
    if a.rows == 0 || a.columns == 0 || b.columns == 0 {
        if into == Into::Replace {
            out.fill(0.0);
        }
        return;
    }
    assert!(a.extent() <= a.values.len() && b.extent() <= b.values.len());
    assert!((a.rows - 1) * stride + b.columns <= out.len() && b.columns <= stride);
    let add = into == Into::Add;
    // SAFETY: the assertions above keep every element that gemm reads or writes inside its slice, and
    // `out` is a unique borrow, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
