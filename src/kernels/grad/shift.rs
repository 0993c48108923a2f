//! The gradients of a shift of whole channels.

use candle_core::{Device, Result, Tensor};

use super::{Gradients, View, applies, attach, is_tracked, nothing};
use crate::kernels::{self, reference};

/// See [`kernels::shift_channels`].
pub(in crate::kernels) fn shift_channels(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    if !applies(&[x, shift]) {
        return reference::shift_channels(x, shift);
    }
    let (x, shift) = (x.contiguous()?, shift.contiguous()?);
    let value = kernels::shift_channels(&x.detach(), &shift.detach())?;
    attach(&value, [&x, &shift, &nothing(&x)?], Shifted)
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
        let of_shift = is_tracked(&[shift]).then(|| {
            let view = View::new(&gradient)?;
            let mut sum = vec![0f32; shifts * channels];
            let each = images / shifts.max(1);
            for (i, plane) in view.values().chunks_exact((height * width).max(1)).enumerate() {
                sum[i / channels / each * channels + i % channels] += plane.iter().sum::<f32>();
            }
            Tensor::from_vec(sum, (shifts, channels), &Device::Cpu)
        });
        Ok([is_tracked(&[x]).then(|| gradient.clone()), of_shift.transpose()?, None])
    }
}
