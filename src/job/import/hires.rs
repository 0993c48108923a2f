//! A second pass at a larger size, as A1111 and ComfyUI count its steps.

use crate::request::{Hires, Upscale};
use crate::sampler::kept_steps;

/// The second pass that makes so many steps, the last ones of a longer run that they are the share `strength` of.
///
/// Both programs make that run `steps / strength` steps long, rounded down, and take exactly the last `steps` of it.
pub(super) fn second_pass(scale: f64, steps: usize, strength: f64, upscale: Upscale) -> Hires {
    let whole = ((steps as f64 / strength) as usize).max(steps);
    let is_exact = kept_steps(whole, strength).is_ok_and(|kept| kept == steps);
    // Half a step more than the share, so that rounding down leaves it.
    let share = ((steps as f64 + 0.5) / whole as f64).min(1.0);
    let strength = if is_exact { strength } else { share };
    Hires { scale, strength, steps: Some(whole), upscale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_steps_are_made_as_were_asked_for() {
        for steps in 1..=40 {
            for hundredth in 1..=100 {
                let strength = f64::from(hundredth) / 100.0;
                let hires = second_pass(1.5, steps, strength, Upscale::Bicubic);
                let whole = hires.steps.unwrap();
                assert_eq!(whole, ((steps as f64 / strength) as usize).max(steps));
                assert_eq!(kept_steps(whole, hires.strength).unwrap(), steps, "{steps} {strength}");
            }
        }
        let hires = second_pass(2.0, 5, 0.5, Upscale::Nearest);
        assert_eq!((hires.steps, hires.strength), (Some(10), 0.5));
    }
}
