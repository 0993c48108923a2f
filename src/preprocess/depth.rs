//! Greys of depths that a network estimates: near is white.

use std::cell::RefCell;

use crate::media::resize::{Fit, resize_then};
use crate::media::{Rgb, RgbImage};
use crate::{Result, Stop};

/// Relative inverse depths of a picture, larger where it is nearer.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthMap {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The depths, row by row.
    pub values: Vec<f32>,
}

/// A network that estimates depths.
pub trait EstimateDepth {
    /// The depths of a picture, in its size.
    ///
    /// # Errors
    ///
    /// A failure of the network; [`Error::Cancelled`](crate::Error::Cancelled) once `stop` is requested.
    fn depth(&self, image: &RgbImage, stop: &Stop) -> Result<DepthMap>;
}

/// The depths of maps as greys from 0 to 255: from the smallest to the largest value of all maps or, `per_picture`, of
/// each. Values are rounded down, as in controlnet_aux; a map of one value is black.
pub fn greys(maps: &[DepthMap], per_picture: bool) -> Vec<RgbImage> {
    let range = |maps: &[DepthMap]| {
        let values = maps.iter().flat_map(|map| &map.values);
        values.fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), value| {
            (least.min(*value), most.max(*value))
        })
    };
    let whole = range(maps);
    let grey = |map: &DepthMap| {
        let (least, most) = if per_picture { range(std::slice::from_ref(map)) } else { whole };
        let span = if most > least { most - least } else { 1.0 };
        let mut values = map.values.iter();
        RgbImage::from_fn(map.width, map.height, |_, _| {
            let value = values.next().copied().unwrap_or(least);
            Rgb([((value - least) / span * 255.0) as u8; 3])
        })
    };
    maps.iter().map(grey).collect()
}

/// Depth hints of pictures at a size (width, height), with one range of depths for all of them unless `per_picture`:
/// pictures are resized, their depths estimated, and what [`Fit::Pad`] adds stays black. `tell` is called with the
/// number of pictures that are done.
///
/// # Errors
///
/// Those of the network and of `tell`.
pub fn hints(
    images: &[RgbImage],
    (size, fit): ((u32, u32), Fit),
    (network, per_picture): (&dyn EstimateDepth, bool),
    tell: &mut dyn FnMut(usize) -> Result<()>,
    stop: &Stop,
) -> Result<Vec<RgbImage>> {
    let maps = RefCell::new(Vec::with_capacity(images.len()));
    let estimate = |resized: RgbImage| {
        maps.borrow_mut().push(network.depth(&resized, stop)?);
        Ok(resized)
    };
    for (i, image) in images.iter().enumerate() {
        resize_then(image, size, fit, &estimate, stop)?;
        tell(i + 1)?;
    }
    let greys = RefCell::new(greys(&maps.borrow(), per_picture).into_iter());
    let grey = |resized| Ok(greys.borrow_mut().next().unwrap_or(resized));
    images.iter().map(|image| resize_then(image, size, fit, &grey, stop)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Depths that are the red of a picture.
    struct Red;

    impl EstimateDepth for Red {
        fn depth(&self, image: &RgbImage, stop: &Stop) -> Result<DepthMap> {
            stop.check()?;
            let (width, height) = image.dimensions();
            let values = image.pixels().map(|pixel| f32::from(pixel[0]) / 10.0).collect();
            Ok(DepthMap { width, height, values })
        }
    }

    #[test]
    fn a_clip_has_one_range_unless_each_picture_has_its_own() {
        let map = |values: [f32; 3]| DepthMap { width: 3, height: 1, values: values.into() };
        let maps = [map([1.0, 2.0, 3.0]), map([3.0, 4.0, 5.0]), map([2.0, 2.0, 2.0])];
        let greys = |per_picture| {
            let images = super::greys(&maps, per_picture);
            images.iter().flat_map(|image| image.pixels().map(|p| p[0])).collect::<Vec<_>>()
        };
        assert_eq!(greys(false), [0, 63, 127, 127, 191, 255, 63, 63, 63]);
        assert_eq!(greys(true), [0, 127, 255, 0, 127, 255, 0, 0, 0]);
    }

    #[test]
    fn pictures_are_resized_first_and_what_is_padded_stays_black() {
        let image = |red: u8| RgbImage::from_pixel(4, 2, Rgb([red, 9, 9]));
        let mut told = vec![];
        let mut tell = |done| {
            told.push(done);
            Ok(())
        };
        let images = [image(10), image(60)];
        let size = ((8, 8), Fit::Pad);
        let made = hints(&images, size, (&Red, false), &mut tell, &Stop::default()).unwrap();
        assert_eq!(told, [1, 2]);
        for (image, inner) in made.iter().zip([0, 255]) {
            assert_eq!(image.dimensions(), (8, 8));
            for (_, y, pixel) in image.enumerate_pixels() {
                let want = if (2..6).contains(&y) { inner } else { 0 };
                assert_eq!(pixel.0, [want; 3], "{y}");
            }
        }
        let stop = Stop::default();
        stop.request();
        let error = hints(&images, size, (&Red, false), &mut |_| Ok(()), &stop).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Cancelled);
    }
}
