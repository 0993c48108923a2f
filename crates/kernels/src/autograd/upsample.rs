//! The gradient of nearest-neighbour enlargement. candle's own knows whole factors only, and forgets what is there.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{Gradients, View, attach, nothing};

/// See [`crate::upsample_nearest`].
pub(crate) fn upsample_nearest(x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    if !super::applies(&[x]) {
        // Repetition by broadcasting, which candle can differentiate.
        let (batch, channels, from_height, from_width) = x.dims4()?;
        if height % from_height.max(1) != 0 || width % from_width.max(1) != 0 {
            candle_core::bail!("{from_height}×{from_width} cannot be repeated to {height}×{width}");
        }
        let (down, across) = (height / from_height, width / from_width);
        return x
            .reshape((batch, channels, from_height, 1, from_width, 1))?
            .broadcast_as((batch, channels, from_height, down, from_width, across))?
            .reshape((batch, channels, height, width));
    }
    let x = x.contiguous()?;
    let nothing = nothing(&x)?;
    let (batch, channels, from_height, from_width) = x.dims4()?;
    let shape = (batch, channels, height, width);
    let mut values = vec![0f32; batch * channels * height * width];
    let view = View::new(&x)?;
    values
        .par_chunks_mut((height * width).max(1))
        .zip(view.values().par_chunks((from_height * from_width).max(1)))
        .for_each(|(out, plane)| {
            for (oy, line) in out.chunks_exact_mut(width).enumerate() {
                let from = &plane[oy * from_height / height * from_width..][..from_width];
                for (ox, value) in line.iter_mut().enumerate() {
                    *value = from[ox * from_width / width];
                }
            }
        });
    drop(view);
    attach(values, shape, [&x, &nothing, &nothing], Nearest)
}

struct Nearest;

impl Gradients for Nearest {
    const NAME: &'static str = "upsample-nearest";

    fn gradients(
        &self,
        [x, ..]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let (_, _, height, width) = x.dims4()?;
        let (_, _, out_height, out_width) = gradient.dims4()?;
        let view = View::new(&gradient)?;
        let mut out = vec![0f32; x.elem_count()];
        out.par_chunks_mut((height * width).max(1))
            .zip(view.values().par_chunks((out_height * out_width).max(1)))
            .for_each(|(out, grad_out)| {
                for (oy, line) in grad_out.chunks_exact(out_width).enumerate() {
                    let y = oy * height / out_height;
                    for (ox, grad) in line.iter().enumerate() {
                        out[y * width + ox * width / out_width] += grad;
                    }
                }
            });
        Ok([Some(Tensor::from_vec(out, x.shape(), &Device::Cpu)?), None, None])
    }
}
