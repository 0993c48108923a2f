//! Device and dtype of training.

use std::fmt;
use std::ops::Deref;

use candle_core::{DType, Device, Tensor};

use super::PerImage;
use crate::models::motion::MotionNorm;
use crate::models::unet::{Injection, UNet, UNetInput};
use crate::{Result, Stop};

/// Device and dtype of a network's computation. Trained weights, their EMA and all losses are f32 in any case: mixed
/// precision, Micikevicius et al. (2018). bf16 has the range of f32, so losses need no scaling.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Device of all tensors.
    pub device: Device,
    /// Dtype of the networks' values.
    pub dtype: DType,
    /// Stop signal, checked within a layer; the error is [`Error::Cancelled`](crate::Error::Cancelled).
    pub stop: Stop,
}

impl Compute {
    /// Computation in f32.
    pub fn exact(device: &Device) -> Self {
        Self { device: device.clone(), dtype: DType::F32, stop: Stop::default() }
    }

    /// Casts a network's input to its dtype.
    pub(super) fn narrow(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_dtype(self.dtype)?)
    }

    /// Noise predicted by a UNet for `(clips*frames, channels, height, width)`, in f32.
    pub(super) fn predict(
        &self,
        unet: &UNet,
        x: &Tensor,
        at: &PerImage,
        context: &Tensor,
        how: (usize, MotionNorm),
    ) -> Result<Tensor> {
        self.predict_with(unet, x, at, (context, &Injection::default()), how)
    }

    /// [`predict`](Self::predict) with what networks beside the UNet add to it.
    pub(super) fn predict_with(
        &self,
        unet: &UNet,
        x: &Tensor,
        at: &PerImage,
        (context, injection): (&Tensor, &Injection),
        (frames, motion_norm): (usize, MotionNorm),
    ) -> Result<Tensor> {
        let input = UNetInput {
            timestep: 0.0,
            frames,
            context: &self.narrow(context)?,
            motion_norm,
            injection,
            stop: &self.stop,
        };
        Ok(unet
            .forward_with_timesteps(&self.narrow(x)?, &at.timesteps(), &input)?
            .to_dtype(DType::F32)?)
    }
}

type Make<T> = Box<dyn Fn(&Compute) -> Result<T> + Send + Sync>;

/// A network whose weights change. In f32 it is built once from tensors that share storage with the variables; in
/// another dtype it is rebuilt with newly rounded weights each time.
pub(super) struct Network<T> {
    make: Make<T>,
    compute: Compute,
    shared: Option<T>,
}

impl<T> Network<T> {
    pub(super) fn new(
        compute: &Compute,
        make: impl Fn(&Compute) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let shared = if compute.dtype == DType::F32 { Some(make(compute)?) } else { None };
        Ok(Self { make: Box::new(make), compute: compute.clone(), shared })
    }

    /// The network with its current weights.
    pub(super) fn get(&self) -> Result<NetworkRef<'_, T>> {
        match &self.shared {
            Some(shared) => Ok(NetworkRef::Borrowed(shared)),
            None => (self.make)(&self.compute).map(NetworkRef::Owned),
        }
    }
}

impl<T> fmt::Debug for Network<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({:?})", self.compute)
    }
}

/// Result of [`Network::get`].
pub(super) enum NetworkRef<'a, T> {
    Borrowed(&'a T),
    Owned(T),
}

impl<T> Deref for NetworkRef<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Borrowed(network) => network,
            Self::Owned(network) => network,
        }
    }
}
