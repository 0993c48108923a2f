//! Two-dimensional convolution.
//!
//! On the CPU a task is one tile of the output's pixels: the inputs that they depend on are gathered row by row into
//! a matrix that stays in one thread's cache, and multiplied with all kernels at once. Nothing is transposed.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{f32_slice, grad, reference};

/// Values of the gathered matrix of a tile, about as many as a core's own cache holds.
const GATHERED: usize = 384 * 1024;

/// Convolves `(batch, in, height, width)` with `(out, in, kernel, kernel)` and adds `bias`, `(out)`.
///
/// On the CPU half-precision tensors are computed in f32.
///
/// # Errors
///
/// When the channels do not agree, or the kernel is larger than the padded picture.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: usize,
    stride: usize,
) -> Result<Tensor> {
    if grad::is_tracked(&[x, weight, bias.unwrap_or(weight)]) {
        return grad::conv2d(x, weight, bias, padding, stride);
    }
    if !x.device().is_cpu() {
        return reference::conv2d(x, weight, bias, padding, stride);
    }
    let dtype = x.dtype();
    let prepare = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
    let bias = match bias {
        Some(bias) => prepare(bias)?,
        None => Tensor::zeros(weight.dim(0)?, DType::F32, x.device())?,
    };
    let op = Gathered { padding, stride };
    prepare(x)?.apply_op3_no_bwd(&prepare(weight)?, &bias, &op)?.to_dtype(dtype)
}

struct Gathered {
    padding: usize,
    stride: usize,
}

/// The sizes of one convolution.
struct Sizes {
    inputs: usize,
    height: usize,
    width: usize,
    kernel: usize,
    padding: usize,
    stride: usize,
    out_width: usize,
}

impl Sizes {
    /// Rows of the gathered matrix: one for every value of a kernel.
    fn rows(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    /// Whether the picture itself is the matrix.
    fn is_plain(&self) -> bool {
        self.kernel == 1 && self.padding == 0 && self.stride == 1
    }

    /// Fills `(rows, pixels)` with what the output pixels from `start` depend on in one picture.
    fn gather(&self, picture: &[f32], start: usize, pixels: usize, out: &mut [f32]) {
        let area = self.height * self.width;
        let taps = self.kernel * self.kernel;
        for (row, out) in out.chunks_exact_mut(pixels).enumerate() {
            let (channel, tap) = (row / taps, row % taps);
            let plane = &picture[channel * area..(channel + 1) * area];
            let (ky, kx) = (tap / self.kernel, tap % self.kernel);
            let mut done = 0;
            while done < pixels {
                let (oy, ox) = ((start + done) / self.out_width, (start + done) % self.out_width);
                let run = (self.out_width - ox).min(pixels - done);
                let out = &mut out[done..done + run];
                // `checked_sub` fails above the picture, `filter` below it.
                let y = (oy * self.stride + ky).checked_sub(self.padding);
                match y.filter(|y| *y < self.height) {
                    Some(y) => self.gather_run(&plane[y * self.width..][..self.width], ox, kx, out),
                    None => out.fill(0.0),
                }
                done += run;
            }
        }
    }

    /// One run of output pixels of one line, from column `ox`, seen through the kernel's column `kx`.
    fn gather_run(&self, line: &[f32], ox: usize, kx: usize, out: &mut [f32]) {
        if self.stride > 1 {
            for (i, out) in out.iter_mut().enumerate() {
                let x = ((ox + i) * self.stride + kx).checked_sub(self.padding);
                *out = x.and_then(|x| line.get(x)).copied().unwrap_or(0.0);
            }
            return;
        }
        let left = self.padding.saturating_sub(ox + kx).min(out.len());
        let (zeros, rest) = out.split_at_mut(left);
        zeros.fill(0.0);
        let from = (ox + left + kx).saturating_sub(self.padding).min(line.len());
        let inside = rest.len().min(line.len() - from);
        let (copied, zeros) = rest.split_at_mut(inside);
        copied.copy_from_slice(&line[from..from + inside]);
        zeros.fill(0.0);
    }
}

/// The output while tasks write disjoint parts of it.
struct Shared {
    values: *mut f32,
    len: usize,
    /// Planes of one picture.
    outputs: usize,
    /// Pixels of one plane.
    area: usize,
}

// SAFETY: tasks write disjoint elements only; see `add`.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}

impl Shared {
    /// Adds `weight · matrix` to `pixels` pixels from `at` of every plane of one picture. The rows of `matrix` are
    /// `row_stride` apart.
    ///
    /// No two threads may be given the same pixels.
    #[allow(unsafe_code)]
    fn add(&self, weight: &[f32], matrix: &[f32], row_stride: usize, pixels: usize, at: usize) {
        let Self { values, len, outputs, area } = *self;
        let rows = weight.len() / outputs;
        assert_eq!(weight.len(), outputs * rows);
        assert!((rows - 1) * row_stride + pixels <= matrix.len());
        assert!(at % area + pixels <= area && at + (outputs - 1) * area + pixels <= len);
        // SAFETY: the assertions keep reads inside the slices and writes inside the output; `values` points to
        // `len` elements that outlive the tasks, and every task has pixels of its own, so no two share an element.
        unsafe {
            gemm::gemm(
                outputs,
                pixels,
                rows,
                values.add(at),
                1,
                area as isize,
                true,
                weight.as_ptr(),
                1,
                rows as isize,
                matrix.as_ptr(),
                1,
                row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

impl CustomOp3 for Gathered {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, inputs, height, width) = x_layout.shape().dims4()?;
        let (outputs, wanted, kernel, kernel_width) = weight_layout.shape().dims4()?;
        let Self { padding, stride } = *self;
        if wanted != inputs || kernel != kernel_width || stride == 0 || kernel == 0 {
            candle_core::bail!(
                "convolution of {:?} with {:?}, stride {stride}",
                x_layout.dims(),
                weight_layout.dims()
            );
        }
        let side = |size: usize| Some((size + 2 * padding).checked_sub(kernel)? / stride + 1);
        let (Some(out_height), Some(out_width)) = (side(height), side(width)) else {
            candle_core::bail!("a kernel of {kernel} is larger than {height}×{width}");
        };
        let out_area = out_height * out_width;
        let sizes = Sizes { inputs, height, width, kernel, padding, stride, out_width };
        let rows = sizes.rows();
        let shape = Shape::from((batch, outputs, out_height, out_width));
        let x = f32_slice(x, x_layout.start_offset(), batch * inputs * height * width)?;
        let weight = f32_slice(weight, weight_layout.start_offset(), outputs * rows)?;
        let bias = f32_slice(bias, bias_layout.start_offset(), outputs)?;
        let mut out = vec![0f32; shape.elem_count()];
        if out.is_empty() || rows == 0 {
            return Ok((CpuStorage::F32(out), shape));
        }
        out.par_chunks_mut(out_area)
            .enumerate()
            .for_each(|(i, plane)| plane.fill(bias[i % outputs]));

        // Tiles of whole vectors that fit the cache, but enough of them for all threads.
        let fitting = (GATHERED / rows).clamp(64, 1024) / 16 * 16;
        let sharing = (batch * out_area).div_ceil(4 * rayon::current_num_threads());
        let tile = fitting.min(sharing.next_multiple_of(16).max(64)).min(out_area);
        let tiles = out_area.div_ceil(tile);
        let shared = Shared { values: out.as_mut_ptr(), len: out.len(), outputs, area: out_area };
        (0..batch * tiles).into_par_iter().for_each_init(Vec::new, |gathered, task| {
            let (image, start) = (task / tiles, task % tiles * tile);
            let pixels = tile.min(out_area - start);
            let picture = &x[image * inputs * height * width..][..inputs * height * width];
            let (matrix, row_stride) = if sizes.is_plain() {
                (&picture[start..], out_area)
            } else {
                gathered.resize(rows * pixels, 0.0);
                sizes.gather(picture, start, pixels, gathered);
                (&gathered[..], pixels)
            };
            let at = image * outputs * out_area + start;
            shared.add(weight, matrix, row_stride, pixels, at);
        });
        Ok((CpuStorage::F32(out), shape))
    }
}
