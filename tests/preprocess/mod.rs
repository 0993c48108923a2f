//! Hints made of pictures, against OpenCV and Pillow.

use animatelcm::preprocess::{Preprocessor, Settings};
use animatelcm::{RgbImage, Stop};
use image::Rgb;

use crate::support::golden::{self, Golden};

const PICTURES: usize = 20;

fn golden() -> Golden {
    golden::load("preprocess/pictures")
}

fn picture(golden: &Golden, number: usize) -> RgbImage {
    golden.images(&format!("{number:02}.picture")).remove(0)
}

fn apply(name: &str, settings: Settings, picture: &RgbImage) -> RgbImage {
    Preprocessor::new(name, &settings).unwrap().apply(picture, &Stop::default()).unwrap()
}

/// The first channel of a picture whose channels are equal.
#[track_caller]
fn plane(picture: &RgbImage) -> Vec<u8> {
    assert!(picture.pixels().all(|p| p[0] == p[1] && p[1] == p[2]));
    picture.pixels().map(|pixel| pixel[0]).collect()
}

fn bytes(golden: &Golden, name: &str) -> Vec<u8> {
    golden.values(name).into_iter().map(|value| value as u8).collect()
}

#[test]
fn canny_finds_the_edges_of_opencv_pixel_for_pixel() {
    let golden = golden();
    let mut sizes = std::collections::BTreeSet::new();
    for number in 0..PICTURES {
        let picture = picture(&golden, number);
        sizes.insert(picture.dimensions());
        let grey = apply("gray", Settings::default(), &picture);
        for (low, high, words) in [(100.0, 200.0, "100.200"), (20.9, 60.5, "20.9.60.5")] {
            for (picture, kind) in [(&picture, "canny"), (&grey, "grey")] {
                let settings = Settings { low: Some(low), high: Some(high), ..Settings::default() };
                let got = plane(&apply("canny", settings, picture));
                let bits = bytes(&golden, &format!("{number:02}.{kind}.{words}"));
                let bit = |i: usize| if bits[i / 8] & (0x80 >> (i % 8)) == 0 { 0 } else { 255 };
                let want: Vec<u8> = (0..got.len()).map(bit).collect();
                assert_eq!(got, want, "picture {number}, {kind}, {words}");
            }
        }
    }
    assert!(sizes.len() > 17 && sizes.contains(&(1, 1)), "{sizes:?}");
}

#[test]
fn filters_make_the_values_of_opencv_and_pillow() {
    let golden = golden();
    let with_all: Vec<usize> = (0..PICTURES)
        .filter(|number| golden.names().contains(&format!("{number:02}.tile").as_str()))
        .collect();
    assert_eq!(with_all.len(), 4);
    let none = Settings::default();
    for number in with_all {
        let picture = picture(&golden, number);
        for kind in ["softedge", "lineart", "scribble", "gray"] {
            let got = plane(&apply(kind, none, &picture));
            let want = bytes(&golden, &format!("{number:02}.{kind}"));
            assert_eq!(got, want, "picture {number}, {kind}");
        }
        for (kind, settings) in [
            ("blur", Settings { sigma: Some(2.5), ..none }),
            ("tile", Settings { factor: Some(4.0), ..none }),
        ] {
            let got = apply(kind, settings, &picture);
            let want = golden.images(&format!("{number:02}.{kind}")).remove(0);
            assert_eq!(got, want, "picture {number}, {kind}");
        }
        let twice = apply("invert", none, &apply("invert", none, &picture));
        assert_eq!(twice, picture);
    }
}

#[test]
fn hints_are_the_same_with_any_number_of_threads() {
    let picture = RgbImage::from_fn(61, 47, |x, y| {
        Rgb([(x * y) as u8, (7 * x + 3 * y) as u8, ((x ^ y) * 5) as u8])
    });
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    // Those of a network have a test of their own.
    for name in Preprocessor::names().iter().filter(|name| **name != "depth") {
        let many = apply(name, Settings::default(), &picture);
        assert_eq!(alone.install(|| apply(name, Settings::default(), &picture)), many, "{name}");
    }
}
