//! The gradients of a shift of whole channels.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{Gradients, View, applies, attach, is_tracked, nothing, sum_of};
use crate::reference;

/// See [`crate::add_per_channel`].
pub(crate) fn add_per_channel(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    if !applies(&[x, shift]) {
        return reference::add_per_channel(x, shift);
    }
    let (x, shift) = (x.contiguous()?, shift.contiguous()?);
    let (images, channels, height, width) = x.dims4()?;
    let each = images / shift.dim(0)?.max(1);
    let values = {
        let (x, shift) = (View::new(&x)?, View::new(&shift)?);
        let mut values = x.values().to_vec();
        let area = (height * width).max(1);
        values.par_chunks_mut(area).enumerate().for_each(|(i, plane)| {
            let by = shift.values()[i / channels / each * channels + i % channels];
            for value in plane {
                *value += by;
            }
        });
        values
    };
    attach(values, x.shape(), [&x, &shift, &nothing(&x)?], Shifted)
}

struct Shifted;

impl Gradients for Shifted {
    const NAME: &'static str = "shift-channels";

    fn gradients(
        &self,
        [x, shift, _]: [&Tensor; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = gradient.contiguous()?;
        let (images, channels, height, width) = gradient.dims4()?;
        let shifts = shift.dim(0)?;
        let grad_shift = is_tracked(&[shift]).then(|| {
            let view = View::new(&gradient)?;
            let mut sum = vec![0f32; shifts * channels];
            let each = images / shifts.max(1);
            for (i, plane) in view.values().chunks_exact((height * width).max(1)).enumerate() {
                sum[i / channels / each * channels + i % channels] += sum_of(plane, |v| v) as f32;
            }
            Tensor::from_vec(sum, (shifts, channels), &Device::Cpu)
        });
        Ok([is_tracked(&[x]).then(|| gradient.clone()), grad_shift.transpose()?, None])
    }
}
