//! Clips whose captions are true, and the oracle that sees it.

use animatelcm::procedural::{Caption, Motion, Observation, Oracle, Scene, Score, Shape};
use animatelcm::rng::Uniform;
use image::{Rgb, RgbImage};
use rayon::prelude::*;

/// Captions and what the oracle sees in the clips that they are rendered to.
fn looked_at(seed: u64, clips: u64, side: usize) -> Vec<(Caption, Observation)> {
    (0..clips)
        .into_par_iter()
        .map(|i| {
            let mut random = Uniform::part(seed, i);
            let caption = Caption::draw(&mut random);
            let frames = Scene::new(caption, random.bits()).frames(side, 16);
            (caption, Oracle::default().observe(&frames))
        })
        .collect()
}

#[test]
fn the_oracle_sees_the_truth_and_chance_in_shuffled_captions() {
    let clips = looked_at(1, 240, 64);
    let (mut score, mut shuffled) = (Score::default(), Score::default());
    for (i, (caption, seen)) in clips.iter().enumerate() {
        let matches = seen.matches(caption);
        assert!(matches.background && matches.color, "{caption}: {seen:?}");
        score.add(caption, matches);
        let (other, _) = &clips[(i + 1) % clips.len()];
        shuffled.add(other, seen.matches(other));
    }
    assert!(score.all.share() >= 0.99 && score.steady.share() >= 0.99, "{score:?}");
    for (name, count, chance) in shuffled.rows() {
        // Shapes that cannot spin, and white on white, make some words a little rarer than others.
        let Some(chance) = chance else { continue };
        let (low, high) = count.interval();
        assert!(low < chance + 0.02 && chance < high + 0.02, "{name}: {count:?}, chance {chance}");
    }
}

#[test]
fn the_oracle_sees_the_truth_at_other_sizes() {
    for (side, clips) in [(48, 60), (128, 16), (256, 4)] {
        for (caption, seen) in looked_at(2, clips, side) {
            let matches = seen.matches(&caption);
            assert!(matches.all() && matches.steady, "{side}: {caption}: {seen:?}");
        }
    }
}

#[test]
fn extents_are_measured_in_parts_of_the_image() {
    let seen = |text: &str| {
        Oracle::default().observe(&Scene::new(text.parse().unwrap(), 9).frames(64, 16))
    };
    let right = seen("a cyan ring moving right on a navy background");
    assert!((0.3..0.6).contains(&right.travel), "{right:?}");
    let growing = seen("a yellow triangle growing on a black background");
    assert!((2.0..3.0).contains(&growing.growth), "{growing:?}");
    let spinning = seen("a white star spinning on a brown background");
    assert!((2.2..2.9).contains(&spinning.turn), "{spinning:?}");
}

#[test]
fn a_clip_played_backwards_shows_the_opposite() {
    let opposites = [
        ("moving left", Motion::Right),
        ("moving down", Motion::Up),
        ("growing", Motion::Shrinking),
        ("standing still", Motion::Still),
        ("bouncing", Motion::Bouncing),
    ];
    for (word, opposite) in opposites {
        let caption: Caption =
            format!("a red square {word} on a black background").parse().unwrap();
        let mut frames = Scene::new(caption, 3).frames(64, 16);
        frames.reverse();
        let seen = Oracle::default().observe(&frames);
        assert_eq!((seen.shape, seen.motion), (Some(Shape::Square), Some(opposite)), "{word}");
    }
}

#[test]
fn a_clip_in_disorder_is_not_steady() {
    let caption: Caption = "a green circle moving up on a white background".parse().unwrap();
    let mut frames = Scene::new(caption, 4).frames(64, 16);
    for i in (0..16).step_by(2) {
        frames.swap(i, (i + 7) % 16);
    }
    let seen = Oracle::default().observe(&frames);
    assert!(!seen.is_steady && seen.motion != Some(Motion::Up), "{seen:?}");
    // An object that is there in half of the frames only has no motion at all.
    let mut frames = Scene::new(caption, 4).frames(64, 16);
    for frame in frames.iter_mut().skip(1).step_by(2) {
        *frame = RgbImage::from_pixel(64, 64, Rgb([245, 245, 245]));
    }
    let seen = Oracle::default().observe(&frames);
    assert_eq!((seen.shape, seen.motion, seen.is_steady), (None, None, false));
}

#[test]
fn the_oracle_survives_whatever_it_is_shown() {
    let mut random = Uniform::new(6);
    let mut noise = |side: u32| {
        RgbImage::from_fn(side, side, |_, _| Rgb([0; 3].map(|_: u8| random.bits() as u8)))
    };
    let oracle = Oracle::default();
    let noisy: Vec<RgbImage> = (0..16).map(|_| noise(32)).collect();
    assert!(!oracle.observe(&noisy).is_steady);
    for frames in [
        vec![],
        vec![RgbImage::new(0, 0)],
        vec![RgbImage::new(1, 1); 3],
        vec![RgbImage::new(1, 9); 2],
        vec![RgbImage::new(64, 64); 16],
        (0..2).map(|_| noise(3)).collect(),
    ] {
        let seen = oracle.observe(&frames);
        assert!(seen.motion.is_none() || !frames.is_empty(), "{seen:?}");
        if frames.iter().all(|frame| frame.pixels().all(|p| p.0 == [0; 3])) {
            assert_eq!((seen.color, seen.shape, seen.motion), (None, None, None));
        }
    }
}
