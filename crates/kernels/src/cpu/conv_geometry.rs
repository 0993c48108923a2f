//! Geometry of a convolution: receptive fields, padding, stride.

use super::microkernel::ZEROS;
use super::pack::Block;

/// The receptive field of every pixel of a result in an input `(images, height, width, channels)`.
pub(crate) struct ConvGeometry {
    images: usize,
    height: usize,
    width: usize,
    pub(crate) kernel: usize,
    stride: usize,
    /// The input's row for every row of the result and row of the kernel, or [`ZEROS`].
    ys: Vec<usize>,
    /// The input's column for every column of the result and column of the kernel, or [`ZEROS`].
    xs: Vec<usize>,
}

impl ConvGeometry {
    /// The geometry of a linear layer over `count` rows.
    pub(crate) fn rows(count: usize) -> Self {
        let xs = (0..count).collect();
        Self { images: 1, height: 1, width: count, kernel: 1, stride: 1, ys: vec![0], xs }
    }

    /// A convolution of images of `size`, seen stretched to `seen`, with zeros `before` and `after`; `None` where
    /// the kernel is larger than that.
    pub(crate) fn convolution(
        images: usize,
        size: (usize, usize),
        seen: (usize, usize),
        kernel: usize,
        (before, after): (usize, usize),
        stride: usize,
    ) -> Option<Self> {
        let line = |size: usize, seen: usize| {
            let outputs = (seen + before + after).checked_sub(kernel)? / stride + 1;
            let place = |output: usize, k: usize| {
                let at = (output * stride + k).checked_sub(before).filter(|at| *at < seen);
                at.map_or(ZEROS, |at| at * size / seen)
            };
            Some(
                (0..outputs)
                    .flat_map(|o| (0..kernel).map(move |k| (o, k)))
                    .map(|(o, k)| place(o, k))
                    .collect(),
            )
        };
        let (height, width) = size;
        let (ys, xs) = (line(height, seen.0)?, line(width, seen.1)?);
        Some(Self { images, height, width, kernel, stride, ys, xs })
    }

    /// Height and width of the result.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.ys.len() / self.kernel, self.xs.len() / self.kernel)
    }

    pub(crate) fn images(&self) -> usize {
        self.images
    }

    /// Pixels of the result.
    pub(crate) fn pixels(&self) -> usize {
        let (height, width) = self.size();
        self.images * height * width
    }

    /// Returns whether every pixel of the result depends on exactly the same pixel of the input (1×1, stride 1, no
    /// padding).
    pub(crate) fn is_identity(&self) -> bool {
        // As many results as inputs, with nothing before the first or after the last, leave no other way.
        let plain = |table: &[usize], size: usize| {
            table.len() == size && ![table.first(), table.last()].contains(&Some(&ZEROS))
        };
        self.kernel == 1 && plain(&self.ys, self.height) && plain(&self.xs, self.width)
    }

    /// Returns whether this is a 3×3 convolution of stride 1.
    pub(crate) fn is_dense_3x3(&self) -> bool {
        self.kernel == 3 && self.stride == 1
    }

    /// The input's pixel that is seen `down` and `across` from where the kernel begins at a pixel of the result; `None`
    /// outside the image, and where no pixel of the result looks. For dense 3×3 kernels.
    pub(crate) fn pixel(
        &self,
        image: usize,
        (line, down): (usize, usize),
        (column, across): (usize, usize),
    ) -> Option<usize> {
        let seen = |table: &[usize], first: usize, offset: usize| {
            let last = table.len() / self.kernel - 1;
            let output = (first + offset).min(last);
            let k = first + offset - output;
            // Of all pairs of an output and a place in the kernel, one is as good as the other.
            table[output * self.kernel..][..self.kernel].get(k).copied().filter(|at| *at != ZEROS)
        };
        let (y, x) = (seen(&self.ys, line, down)?, seen(&self.xs, column, across)?);
        Some((image * self.height + y) * self.width + x)
    }

    /// Offsets `(taps of the block, rows)` for the pixels from `pixel`; `last` stands in for those behind it.
    pub(crate) fn offsets(
        &self,
        pixel: usize,
        last: usize,
        block: &Block,
        channels: usize,
        out: &mut [usize],
    ) {
        let rows = out.len() / block.taps;
        let (height, width) = self.size();
        let (mut line, mut x) = (pixel / width, pixel % width);
        for r in 0..rows {
            if r > 0 && pixel + r <= last {
                x += 1;
                if x == width {
                    (line, x) = (line + 1, 0);
                }
            }
            let (image, y) = (line / height, line % height);
            let ys = &self.ys[y * self.kernel..][..self.kernel];
            let xs = &self.xs[x * self.kernel..][..self.kernel];
            for t in 0..block.taps {
                let tap = block.tap + t;
                let (y, x) = (ys[tap / self.kernel], xs[tap % self.kernel]);
                out[t * rows + r] = if y == ZEROS || x == ZEROS {
                    ZEROS
                } else {
                    ((image * self.height + y) * self.width + x) * channels + block.channel
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_change_nothing_are_those_whose_pixels_are_the_inputs() {
        let mut found = [0; 2];
        for size in 1..6 {
            for seen in 1..12 {
                for (before, after) in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 3), (2, 2)] {
                    for (kernel, stride) in [(1, 1), (1, 2), (1, 3), (3, 1)] {
                        let padding = (before, after);
                        let (height, seen) = ((size, 2), (seen, 2));
                        let window =
                            ConvGeometry::convolution(1, height, seen, kernel, padding, stride);
                        let Some(window) = window else { continue };
                        let same = |table: &[usize], size: usize| table.iter().copied().eq(0..size);
                        let want = kernel == 1 && same(&window.ys, size) && same(&window.xs, 2);
                        let case = (size, seen, padding, kernel, stride);
                        assert_eq!(window.is_identity(), want, "{case:?}");
                        found[usize::from(want)] += 1;
                    }
                }
            }
        }
        assert!(found.iter().all(|count| *count > 4), "{found:?}");
        assert!(ConvGeometry::rows(7).is_identity());
    }
}
