//! States of a prompt that differ between steps and frames.

use candle_core::{DType, Device, Tensor};

use crate::request::Interpolation;
use crate::{Error, Result};

/// States of a prompt for the UNet's cross-attention, by step and frame.
#[derive(Clone, Debug)]
pub struct States {
    /// At least one, by ascending frames.
    keys: Vec<KeyStates>,
    interpolation: Interpolation,
    /// Frames of a clip that begins again after its last one.
    closed: Option<usize>,
}

/// States of the prompt of one frame.
#[derive(Clone, Debug)]
pub struct KeyStates {
    /// Index of the frame.
    pub frame: usize,
    /// The states, `(batch, tokens, dim)`, and the last step that they are for, counted from 1; at least one. The last
    /// ones go to the end.
    pub versions: Vec<(usize, Tensor)>,
}

/// A place between two keys.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    before: usize,
    after: usize,
    /// Distance from the key before, 1 at the key after.
    t: f64,
}

impl From<&Tensor> for States {
    /// The same states at every step and frame.
    fn from(states: &Tensor) -> Self {
        let key = KeyStates { frame: 0, versions: vec![(usize::MAX, states.clone())] };
        Self { keys: vec![key], interpolation: Interpolation::Linear, closed: None }
    }
}

impl States {
    /// States that go from key to key; `closed` are the frames of a clip whose last key goes on to the first.
    ///
    /// # Errors
    ///
    /// When there are no keys or no states of one, or they have different shapes.
    pub fn new(
        keys: Vec<KeyStates>,
        interpolation: Interpolation,
        closed: Option<usize>,
    ) -> Result<Self> {
        let mut shapes = keys.iter().flat_map(|key| &key.versions).map(|(_, x)| x.dims());
        let is_even = match shapes.next() {
            Some(first) => shapes.all(|shape| shape == first),
            None => false,
        };
        if !is_even || keys.iter().any(|key| key.versions.is_empty()) {
            return Err(Error::request("travel", "its prompts have different numbers of states"));
        }
        Ok(Self { keys, interpolation, closed })
    }

    /// Returns whether frames have different states.
    pub fn travels(&self) -> bool {
        self.keys.len() > 1
    }

    /// The same states in another dtype, if frames share them. Those that are interpolated stay as they are.
    pub(super) fn shared_in(mut self, dtype: DType) -> Result<Self> {
        if let [key] = self.keys.as_mut_slice() {
            for (_, states) in &mut key.versions {
                *states = states.to_dtype(dtype)?;
            }
        }
        Ok(self)
    }

    /// The states of some frames at a step, counted from 0: `(batch, tokens, dim)` if all frames share them, else
    /// `(frames, tokens, dim)`, interpolated in f32.
    ///
    /// # Errors
    ///
    /// Those of the tensor library.
    pub fn at(&self, step: usize, frames: &[usize]) -> Result<Tensor> {
        if let [key] = self.keys.as_slice() {
            return Ok(key.at(step)?.clone());
        }
        let keys: Vec<Tensor> = self
            .keys
            .iter()
            .map(|key| Ok(key.at(step)?.to_dtype(DType::F32)?))
            .collect::<Result<_>>()?;
        let states = frames.iter().map(|frame| {
            let Place { before, after, t } = self.place(*frame);
            let (Some(a), Some(b)) = (keys.get(before), keys.get(after)) else {
                return Err(candle_core::Error::msg("a key of the travel is missing").into());
            };
            match self.interpolation {
                _ if t == 0.0 => Ok(a.clone()),
                Interpolation::Linear => weighted((a, 1.0 - t), (b, t)),
                Interpolation::Spherical => spherical(a, b, t),
            }
        });
        Ok(Tensor::cat(&states.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The keys around a frame. Before the first and after the last it is that one, unless the clip is closed.
    fn place(&self, frame: usize) -> Place {
        let after = self.keys.partition_point(|key| key.frame <= frame);
        let at = |i: usize| self.keys.get(i).map_or(0, |key| key.frame);
        let last = self.keys.len() - 1;
        let (before, after, passed, length) = if after > 0 && after <= last {
            (after - 1, after, frame - at(after - 1), at(after) - at(after - 1))
        } else {
            let Some(frames) = self.closed else {
                let held = if after == 0 { 0 } else { last };
                return Place { before: held, after: held, t: 0.0 };
            };
            let passed = (frame + if after == 0 { frames } else { 0 }).saturating_sub(at(last));
            (last, 0, passed, (frames + at(0)).saturating_sub(at(last)))
        };
        Place { before, after, t: passed as f64 / length.max(1) as f64 }
    }
}

impl KeyStates {
    /// The states at a step, counted from 0.
    fn at(&self, step: usize) -> candle_core::Result<&Tensor> {
        let version = self.versions.iter().find(|(until, _)| step < *until);
        match version.or(self.versions.last()) {
            Some((_, states)) => Ok(states),
            None => candle_core::bail!("a prompt has no states"),
        }
    }
}

fn weighted((a, of_a): (&Tensor, f64), (b, of_b): (&Tensor, f64)) -> Result<Tensor> {
    Ok(((a * of_a)? + (b * of_b)?)?)
}

/// Spherical interpolation of all states of a prompt as one vector (Shoemake, 1985): diffusers' `slerp`.
fn spherical(a: &Tensor, b: &Tensor, t: f64) -> Result<Tensor> {
    /// Sine below which two prompts have the same direction, or opposite ones.
    const SAME: f64 = 1e-6;
    let values = |x: &Tensor| -> Result<Vec<f32>> {
        Ok(x.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?)
    };
    let (va, vb) = (values(a)?, values(b)?);
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine = dot(&va, &vb) / (dot(&va, &va) * dot(&vb, &vb)).sqrt();
    let angle = cosine.clamp(-1.0, 1.0).acos();
    if angle.is_nan() || angle.sin() < SAME {
        return weighted((a, 1.0 - t), (b, t));
    }
    let part = |t: f64| (t * angle).sin() / angle.sin();
    weighted((a, part(1.0 - t)), (b, part(t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(frame: usize, value: f32) -> KeyStates {
        let states = Tensor::full(value, (1, 2, 3), &Device::Cpu).unwrap();
        KeyStates { frame, versions: vec![(usize::MAX, states)] }
    }

    fn values(states: &States, frames: &[usize]) -> Vec<f32> {
        let all = states.at(0, frames).unwrap();
        all.narrow(1, 0, 1)
            .unwrap()
            .narrow(2, 0, 1)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    fn travel(keys: Vec<KeyStates>, closed: Option<usize>) -> States {
        States::new(keys, Interpolation::Linear, closed).unwrap()
    }

    #[test]
    fn between_keys_states_go_from_one_to_the_next_and_outside_the_nearest_holds() {
        let states = travel(vec![key(2, 0.0), key(6, 4.0), key(7, 10.0)], None);
        assert_eq!(
            values(&states, &[0, 1, 2, 3, 5, 6, 7, 8, 100]),
            [0., 0., 0., 1., 3., 4., 10., 10., 10.]
        );
        // A window's frames have the states that they have in the clip.
        assert_eq!(values(&states, &[5, 0, 7]), [3., 0., 10.]);
    }

    #[test]
    fn in_a_closed_clip_the_last_key_goes_on_to_the_first() {
        let states = travel(vec![key(1, 0.0), key(5, 4.0)], Some(9));
        assert_eq!(values(&states, &[5, 6, 7, 8, 0, 1, 2]), [4., 3.2, 2.4, 1.6, 0.8, 0., 1.]);
        let from_zero = travel(vec![key(0, 0.0), key(2, 4.0)], Some(4));
        assert_eq!(values(&from_zero, &[0, 1, 2, 3]), [0., 2., 4., 2.]);
    }

    #[test]
    fn a_single_key_is_shared_by_all_frames() {
        let states = travel(vec![key(4, 1.0)], None);
        assert!(!states.travels());
        assert_eq!(states.at(0, &[0, 1, 2]).unwrap().dims(), [1, 2, 3]);
    }

    #[test]
    fn versions_last_until_their_steps() {
        let tensor = |value: f32| Tensor::full(value, (1, 2, 3), &Device::Cpu).unwrap();
        let versions = vec![(2, tensor(1.0)), (3, tensor(2.0))];
        let states = travel(vec![KeyStates { frame: 0, versions }], None);
        let at =
            |step| states.at(step, &[0]).unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!([0, 1, 2, 3, 9].map(at), [1., 1., 2., 2., 2.]);
    }

    #[test]
    fn spherical_interpolation_keeps_lengths_and_bears_equal_and_opposite_states() {
        let tensor = |values: [f32; 2]| Tensor::new(&[[values]], &Device::Cpu).unwrap();
        let between = |a, b, t| {
            spherical(&tensor(a), &tensor(b), t)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        let half = between([1., 0.], [0., 1.], 0.5);
        assert!(half.iter().all(|x| (x - 0.5f32.sqrt()).abs() < 1e-6), "{half:?}");
        assert_eq!(between([1., 2.], [1., 2.], 0.5), [1., 2.]);
        assert_eq!(between([1., 2.], [-1., -2.], 0.25), [0.5, 1.]);
        assert_eq!(between([0., 0.], [1., 1.], 0.5), [0.5, 0.5]);
    }

    #[test]
    fn uneven_states_are_refused() {
        let longer = Tensor::zeros((1, 4, 3), DType::F32, &Device::Cpu).unwrap();
        let longer = KeyStates { frame: 5, versions: vec![(1, longer)] };
        assert!(States::new(vec![key(0, 1.0), longer], Interpolation::Linear, None).is_err());
        assert!(States::new(vec![], Interpolation::Linear, None).is_err());
    }
}
