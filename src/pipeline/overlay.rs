//! The source's own pixels over decoded frames, where the source is kept.
//!
//! Kept latents come back as the autoencoder makes them. The way of diffusers' `VaeImageProcessor.apply_overlay`
//! (0.42.1) and of AUTOMATIC1111's inpainting: a mask at the size of the frames says how much of each pixel is made.

use std::sync::Arc;

use image::GrayImage;

use crate::media::RgbImage;

/// What is put over the frames of a clip.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// The source's frames in the clip's size: one for all, or one for each.
    pub images: Arc<[RgbImage]>,
    /// Masks of the same size, 255 where frames are made and 0 where they are the source's: one for all, or one for
    /// each; none if frames are kept whole or not at all.
    pub masks: Arc<[GrayImage]>,
    /// The frames, from 0, that are the source's altogether.
    pub keep: Vec<usize>,
}

impl Overlay {
    /// Puts the source's pixels over the frame of that number; whether it has any of them.
    pub fn apply(&self, number: usize, frame: &mut RgbImage) -> bool {
        let Some(source) = of_frame(&self.images, number) else { return false };
        if self.keep.contains(&number) {
            frame.clone_from(source);
            return true;
        }
        let Some(mask) = of_frame(&self.masks, number) else { return false };
        let mut is_changed = false;
        for ((made, source), mask) in frame.pixels_mut().zip(source.pixels()).zip(mask.pixels()) {
            let opacity = u32::from(u8::MAX - mask.0[0]);
            if opacity > 0 {
                is_changed = true;
                for (made, source) in made.0.iter_mut().zip(source.0) {
                    *made = over(*made, source, opacity);
                }
            }
        }
        is_changed
    }
}

/// The element of a frame in a list of one for all frames, or of one for each.
fn of_frame<T>(all: &[T], number: usize) -> Option<&T> {
    if all.len() == 1 { all.first() } else { all.get(number) }
}

/// A value of the source over one that was made, with an opacity of 1 to 255.
///
/// Rounded as by Pillow 13: pasted into a clear image with premultiplied alpha, divided by the alpha, and composed.
fn over(made: u8, source: u8, opacity: u32) -> u8 {
    /// Bits beyond those of bytes in Pillow's `alpha_composite`.
    const BITS: u32 = 7;
    const HALF: u32 = 128;
    let premultiplied = div_255(u32::from(source) * opacity + HALF);
    let straight = (255 * premultiplied / opacity).min(255);
    let (of_source, of_made) = (opacity << BITS, (255 - opacity) << BITS);
    let sum = straight * of_source + u32::from(made) * of_made;
    (div_255(sum + (HALF << BITS)) >> BITS) as u8
}

/// A number divided by 255, rounded down if a half was not added to it before, as Pillow's `SHIFTFORDIV255`.
fn div_255(x: u32) -> u32 {
    ((x >> 8) + x) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_opacity_are_exact() {
        for made in 0..=255 {
            for source in 0..=255 {
                assert_eq!(over(made, source, 255), source);
                // Nearly nothing moves a value by no more than a level.
                assert!(over(made, source, 1).abs_diff(made) <= 1, "{made} {source}");
            }
        }
    }
}
