//! A weight source that can be cancelled.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

use super::VarBuilder;

use crate::Stop;

/// Wraps a builder so that its next weight fails with [`Error::Cancelled`](crate::Error::Cancelled) once `stop` is
/// requested.
pub(crate) fn until(vb: VarBuilder<'static>, stop: &Stop) -> VarBuilder<'static> {
    let (dtype, device, quantize) = (vb.dtype(), vb.device().clone(), vb.quantize());
    let backend = Until { vb: vb.into(), stop: stop.clone() };
    VarBuilder::from_backend(Box::new(backend), dtype, device).quantized(quantize)
}

struct Until {
    vb: candle_nn::VarBuilder<'static>,
    stop: Stop,
}

impl SimpleBackend for Until {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        _: &Device,
    ) -> Result<Tensor> {
        self.stop.check()?;
        self.vb.get_with_hints_dtype(shape, name, init, dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        self.stop.check()?;
        self.vb.get_unchecked_dtype(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vb.contains_tensor(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::weights::{Component, random};

    #[test]
    fn a_stop_ends_a_build_at_the_next_weight() {
        let stop = Stop::default();
        let mut served = 0;
        let built = random::build(Component::Vae, DType::F16, &Device::Cpu, |vb| {
            let vb = until(vb, &stop).pp("a");
            let bias = vb.get(3, "bias")?;
            assert_eq!((bias.dims(), bias.dtype()), (&[3][..], DType::F16));
            served += 1;
            stop.request();
            vb.get((3, 2), "weight")?;
            served += 1;
            Ok(())
        });
        assert!(matches!(built, Err(Error::Cancelled)), "{:?}", built.err());
        assert_eq!(served, 1);
    }
}
