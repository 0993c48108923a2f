//! Images as AnimateLCM-I2V takes them, against Pillow, and the colours of its frames, against OpenCV.

use animatelcm::Stop;
use animatelcm::media::RgbImage;
use animatelcm::media::hsv::HsvMean;
use animatelcm::media::resize::{Fit, resize};

use crate::support::golden::{self, Golden};

const IMAGES: &str = "i2v/images";

fn image(golden: &Golden, name: &str) -> RgbImage {
    let bytes = golden.tensor(&format!("{name}_u8"));
    let (height, width, _) = bytes.dims3().unwrap();
    let bytes = bytes.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

#[test]
fn images_cover_a_frame_exactly_as_in_pil() {
    let golden = golden::load(IMAGES);
    let mut others = 0;
    for name in ["tall", "wide", "near", "small"] {
        let photo = image(&golden, name);
        for (width, height) in [(64, 32), (32, 48), (24, 16)] {
            let fitted = |fit| resize(&photo, width, height, fit, &Stop::default()).unwrap();
            let want = image(&golden, &format!("{name}.{width}x{height}"));
            assert!(fitted(Fit::Cover) == want, "{name} {width}x{height}");
            others += u32::from(fitted(Fit::Crop) != want);
        }
    }
    // Cropping first is something else.
    assert!(others > 6, "{others}");
}

#[test]
fn colours_are_moved_exactly_as_by_opencv() {
    let golden = golden::load(IMAGES);
    let frame = image(&golden, "frame");
    for name in ["tall", "wide", "near", "small", "frame", "black", "red"] {
        let source = match name {
            "black" => RgbImage::new(2, 2),
            "red" => RgbImage::from_pixel(5, 3, image::Rgb([250, 10, 5])),
            name => image(&golden, name),
        };
        let mut moved = frame.clone();
        HsvMean::of(&source).apply(&mut moved);
        let want = image(&golden, &format!("matched.{name}"));
        let wrong = moved.pixels().zip(want.pixels()).filter(|(a, b)| a != b).count();
        assert_eq!(wrong, 0, "{name}: of {}", want.pixels().len());
        assert!(moved != frame, "{name}");
    }
}
