//! Context windows: what they cover, how they are weighted, what is refused.

use std::collections::BTreeSet;

use animatelcm::sampler::{Fuse, Window, WindowPlan, WindowSchedule, WindowSettings};
use proptest::prelude::*;

use crate::support::golden;

fn settings(length: usize, overlap: usize) -> WindowSettings {
    WindowSettings {
        length,
        overlap,
        stride: 1,
        schedule: WindowSchedule::Static,
        fuse: Fuse::Flat,
        is_closed: false,
    }
}

fn at(frames: usize, settings: WindowSettings, step: usize) -> Vec<Window> {
    WindowPlan::new(frames, settings).unwrap().at(step)
}

/// First and last frame of every window.
fn ends(windows: &[Window]) -> Vec<(usize, usize)> {
    windows.iter().map(|w| (w.frames[0], w.frames[w.frames.len() - 1])).collect()
}

/// Any settings that are allowed.
fn any_settings() -> impl Strategy<Value = WindowSettings> {
    let schedule = prop::sample::select(WindowSchedule::ALL.to_vec());
    let fuse = prop::sample::select(Fuse::ALL.to_vec());
    let numbers = (2usize..24).prop_flat_map(|length| (Just(length), 0..length));
    (numbers, 1usize..7, schedule, fuse, any::<bool>()).prop_map(
        |((length, overlap), stride, schedule, fuse, is_closed)| WindowSettings {
            length,
            overlap,
            stride: if schedule == WindowSchedule::Static { 1 } else { stride },
            schedule,
            fuse,
            is_closed: is_closed && schedule == WindowSchedule::UniformLooped,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_frame_is_covered_by_weights_that_sum_to_one(
        frames in 1usize..220,
        settings in any_settings(),
        step in prop_oneof![0usize..8, any::<usize>()],
    ) {
        let mut sums = vec![0.0; frames];
        for Window { frames: places, weights } in at(frames, settings, step) {
            prop_assert_eq!(places.len(), weights.len());
            prop_assert_eq!(places.len(), settings.length.min(frames));
            prop_assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len());
            for (frame, weight) in places.into_iter().zip(weights) {
                prop_assert!((0.0..=1.0).contains(&weight));
                sums[frame] += weight;
            }
        }
        for (frame, sum) in sums.into_iter().enumerate() {
            prop_assert!((sum - 1.0).abs() < 1e-12, "frame {}: {}", frame, sum);
        }
    }

    #[test]
    fn only_looped_windows_go_over_the_end(
        frames in 1usize..220,
        settings in any_settings(),
        step in 0usize..20,
    ) {
        if settings.schedule != WindowSchedule::UniformLooped {
            for window in at(frames, settings, step) {
                prop_assert!(window.frames.is_sorted());
            }
        }
    }

    /// The windows of every step are those of the first, further round the loop, and so are their weights; and nothing
    /// tells where the clip begins if windows fit into it.
    #[test]
    fn closed_windows_are_the_same_from_wherever_one_begins(
        hops in 1usize..12,
        (length, overlap) in (2usize..20).prop_flat_map(|length| (Just(length), 0..length)),
        extra in 0usize..20,
        step in 0usize..16,
        fuse in prop::sample::select(Fuse::ALL.to_vec()),
    ) {
        let closed = WindowSettings {
            schedule: WindowSchedule::UniformLooped,
            fuse,
            is_closed: true,
            ..settings(length, overlap)
        };
        let turned = |windows: Vec<Window>, by: usize, frames: usize| {
            let mut turned: Vec<_> = windows
                .into_iter()
                .map(|w| {
                    let places: Vec<usize> = w.frames.iter().map(|f| (f + by) % frames).collect();
                    // Weights are sums in another order.
                    let weights = w.weights.iter().map(|w| (w * 1e9).round() as u64);
                    (places, weights.collect::<Vec<_>>())
                })
                .collect();
            turned.sort();
            turned
        };
        let frames = length + extra;
        let first = at(frames, closed, 0);
        let later = at(frames, closed, step);
        let by = later[0].frames[0];
        prop_assert_eq!(turned(first, by, frames), turned(later, 0, frames));

        let hop = length - overlap;
        let frames = hop * hops;
        if frames >= length {
            let windows = at(frames, closed, step);
            prop_assert_eq!(windows.len(), hops);
            prop_assert_eq!(turned(windows.clone(), hop, frames), turned(windows, 0, frames));
        }
    }

    #[test]
    fn a_clip_that_fits_has_one_window_of_weight_one(
        frames in 1usize..24,
        settings in any_settings(),
        step in 0usize..9,
    ) {
        if frames <= settings.length && !settings.is_closed {
            let plan = WindowPlan::new(frames, settings).unwrap();
            prop_assert!(plan.is_whole());
            let whole = Window { frames: (0..frames).collect(), weights: vec![1.0; frames] };
            prop_assert_eq!(plan.at(step), vec![whole]);
        }
    }
}

#[test]
fn static_windows_are_the_same_at_every_step_and_end_with_the_clip() {
    let windows = at(40, settings(16, 4), 0);
    assert_eq!(ends(&windows), [(0, 15), (12, 27), (24, 39)]);
    assert_eq!(windows, at(40, settings(16, 4), 3));
    assert_eq!(ends(&at(41, settings(16, 4), 0)), [(0, 15), (12, 27), (24, 39), (25, 40)]);
    assert_eq!(ends(&at(17, settings(16, 4), 0)), [(0, 15), (1, 16)]);
}

#[test]
fn uniform_windows_move_by_halves_quarters_and_eighths() {
    let uniform = WindowSettings { schedule: WindowSchedule::Uniform, ..settings(16, 4) };
    assert_eq!(ends(&at(48, uniform, 0)), [(0, 15), (12, 27), (24, 39), (32, 47)]);
    // From the middle; what goes over the end is moved, and what it had at the beginning has a window there.
    assert_eq!(ends(&at(48, uniform, 1)), [(24, 39), (32, 47), (0, 15), (12, 27)]);
    let looped = WindowSettings { schedule: WindowSchedule::UniformLooped, ..uniform };
    assert_eq!(ends(&at(48, looped, 1)), [(24, 39), (36, 3), (0, 15), (12, 27)]);
    let first = |step| at(48, looped, step)[0].frames[0];
    assert_eq!([0, 1, 2, 3, 4, 5].map(first), [0, 24, 12, 36, 6, 30]);
    // The last window of a closed loop has the last and the first frame.
    let closed = WindowSettings { is_closed: true, ..looped };
    assert_eq!(ends(&at(48, closed, 0)), [(0, 15), (12, 27), (24, 39), (36, 3)]);
    // Also where the clip is one window, and in a shorter one.
    assert_eq!(ends(&at(16, closed, 0)), [(0, 15), (12, 11)]);
    assert_eq!(ends(&at(8, closed, 0)), [(0, 7), (4, 3)]);
    assert_eq!(ends(&at(1, closed, 0)), [(0, 0)]);
}

#[test]
fn a_stride_adds_windows_of_frames_further_apart() {
    let stride =
        |stride| WindowSettings { stride, schedule: WindowSchedule::Uniform, ..settings(4, 1) };
    let apart = |windows: &[Window]| -> BTreeSet<usize> {
        windows.iter().flat_map(|w| w.frames.windows(2).map(|pair| pair[1] - pair[0])).collect()
    };
    assert_eq!(apart(&at(16, stride(1), 0)), BTreeSet::from([1]));
    assert_eq!(apart(&at(16, stride(2), 0)), BTreeSet::from([1, 2]));
    assert_eq!(apart(&at(16, stride(9), 0)), BTreeSet::from([1, 2, 4]));
    // Windows of every other frame would hold some twice.
    assert_eq!(apart(&at(7, stride(9), 0)), BTreeSet::from([1]));
    // AnimateDiff-Evolved leaves out frames 1 and 3 here.
    let settings =
        WindowSettings { stride: 2, schedule: WindowSchedule::Uniform, ..settings(15, 4) };
    let covered: BTreeSet<usize> = at(34, settings, 2).into_iter().flat_map(|w| w.frames).collect();
    assert_eq!(covered.len(), 34);
}

#[test]
fn weights_are_those_of_their_formulas() {
    // Two windows of 6 over 9 frames: 0 to 5 and 3 to 8.
    let weights = |fuse| {
        let windows = at(9, WindowSettings { fuse, ..settings(6, 3) }, 0);
        assert_eq!(ends(&windows), [(0, 5), (3, 8)]);
        [windows[0].weights.clone(), windows[1].weights.clone()]
    };
    let assert_near = |got: &[f64], want: &[f64]| {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}, not {want:?}");
    };
    let check = |fuse, shared: [f64; 3]| {
        let [a, b] = weights(fuse);
        assert_near(&a, &[&[1.0; 3][..], &shared].concat());
        assert_near(&b, &[&shared.map(|w| 1.0 - w)[..], &[1.0; 3]].concat());
    };
    check(Fuse::Flat, [0.5; 3]);
    // 3, 2, 1 of the first beside 1, 2, 3 of the second.
    check(Fuse::Pyramid, [0.75, 0.5, 0.25]);
    check(Fuse::OverlapLinear, [1.0, 0.5, 0.0]);
    // 1 - |i - 2.5| / 2.505
    let near = |i: f64| 1.0 - (i - 2.5).abs() / 2.505;
    let least = 1e-2;
    check(Fuse::Relative, [near(3.0) / (near(3.0) + least), 0.5, least / (least + near(2.0))]);
}

#[test]
fn pyramids_are_those_of_diffusers() {
    let told = golden::json("free_noise/free_noise");
    for (name, fuse) in [("flat", Fuse::Flat), ("pyramid", Fuse::Pyramid)] {
        for (length, want) in told["weights"][name].as_object().unwrap() {
            let length: usize = length.parse().unwrap();
            let want: Vec<f64> =
                want.as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
            // A closed loop of windows that begin at every frame: a frame is once at every place of a window.
            let closed = WindowSettings {
                schedule: WindowSchedule::UniformLooped,
                fuse,
                is_closed: true,
                ..settings(length, length - 1)
            };
            let windows = at(length, closed, 0);
            let total: f64 = want.iter().sum();
            assert_eq!(windows.len(), length);
            for (i, want) in want.iter().enumerate() {
                assert!((windows[0].weights[i] - want / total).abs() < 1e-12, "{name} {length}");
            }
        }
    }
    // Their last window is counted in part, and weighted too little.
    let sums = told["diffusers_sums"].as_array().unwrap();
    assert!(sums.iter().any(|sum| sum.as_f64().unwrap() < 0.5));
}

#[test]
fn impossible_windows_name_their_field() {
    let usual = settings(16, 4);
    for (settings, field, got) in [
        (WindowSettings { length: 0, overlap: 0, ..usual }, "context-length", "got 0"),
        (WindowSettings { length: 1, overlap: 0, ..usual }, "context-length", "got 1"),
        (WindowSettings { overlap: 16, ..usual }, "context-overlap", "got 16"),
        (WindowSettings { overlap: 99, ..usual }, "context-overlap", "got 99"),
        (WindowSettings { stride: 0, ..usual }, "context-stride", "got 0"),
        (WindowSettings { stride: 2, ..usual }, "context-stride", "got 2"),
        (WindowSettings { is_closed: true, ..usual }, "loop", "`static`"),
    ] {
        for frames in [1, 16, 100] {
            let error = WindowPlan::new(frames, settings).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            let text = error.to_string();
            assert!(text.starts_with(field) && text.contains(got), "{text}");
        }
    }
    assert!(WindowPlan::new(0, usual).is_err());
}

#[test]
fn names_are_also_those_of_animatediff_evolved() {
    for schedule in WindowSchedule::ALL {
        assert_eq!(schedule.to_string().parse::<WindowSchedule>().unwrap(), schedule);
    }
    for fuse in Fuse::ALL {
        assert_eq!(fuse.to_string().parse::<Fuse>().unwrap(), fuse);
    }
    let schedule = |name: &str| name.parse::<WindowSchedule>().unwrap();
    assert_eq!(schedule("standard_uniform"), WindowSchedule::Uniform);
    assert_eq!(schedule("looped_uniform"), WindowSchedule::UniformLooped);
    assert_eq!(schedule("Standard Static"), WindowSchedule::Static);
    assert!("batched".parse::<WindowSchedule>().is_err() && "gauss".parse::<Fuse>().is_err());
}
