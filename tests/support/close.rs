//! Comparing numbers so that a failure says where and by how much.

use candle_core::{DType, Tensor};

/// Fails when a value of `got` is further than `tolerance` from that of `want`.
///
/// The message has the largest difference, where it is, and the first five pairs.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let place = |i| format!("at {:?} of {:?}", position(i, got.dims()), got.dims());
    compare(&values(got), &values(want), tolerance, place);
}

/// As [`assert_close`], for slices.
#[track_caller]
pub(crate) fn assert_all_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "lengths differ");
    compare(got, want, tolerance, |i| format!("at {i} of {}", got.len()));
}

/// `|got - want| / |want|` in the L2 norm.
#[track_caller]
pub(crate) fn relative_l2(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let (got, want) = (values(got), values(want));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    difference / norm(&mut want.iter().copied())
}

/// Fails when [`relative_l2`] is beyond `tolerance`, which it also is for NaN.
#[track_caller]
pub(crate) fn assert_relative(got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_l2(got, want);
    if error <= tolerance {
        return;
    }
    assert_close(got, want, 0.0);
    panic!("relative L2 error {error:e} is beyond {tolerance:e}");
}

#[track_caller]
fn compare(got: &[f64], want: &[f64], tolerance: f64, place: impl Fn(usize) -> String) {
    // NaN is as far as anything can be.
    let distance = |i: usize| Some((got[i] - want[i]).abs()).filter(|d| !d.is_nan());
    let worst = (0..got.len())
        .max_by(|a, b| {
            let key = |i: usize| distance(i).unwrap_or(f64::INFINITY);
            key(*a).total_cmp(&key(*b))
        })
        .filter(|i| distance(*i).is_none_or(|d| d > tolerance));
    if let Some(worst) = worst {
        let pairs: Vec<_> = got.iter().zip(want).take(5).collect();
        panic!(
            "largest difference {:e} {} is beyond {tolerance:e}: got {}, want {}\nfirst (got, want): {pairs:?}",
            (got[worst] - want[worst]).abs(),
            place(worst),
            got[worst],
            want[worst],
        );
    }
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn position(mut index: usize, dims: &[usize]) -> Vec<usize> {
    let mut position: Vec<_> = dims
        .iter()
        .rev()
        .map(|&dim| {
            let here = index % dim;
            index /= dim;
            here
        })
        .collect();
    position.reverse();
    position
}

#[test]
#[should_panic(expected = "largest difference 2e0 at [1, 0] of [2, 2]")]
fn the_largest_difference_is_named() {
    let device = candle_core::Device::Cpu;
    let got = Tensor::new(&[[1.0, 2.0], [3.0, 4.5]], &device).unwrap();
    let want = Tensor::new(&[[1.0, 2.0], [5.0, 4.0]], &device).unwrap();
    assert_close(&got, &want, 1e-3);
}

#[test]
#[should_panic(expected = "largest difference NaN")]
fn nan_is_never_close() {
    assert_all_close(&[1.0, f64::NAN], &[1.0, 2.0], 1e9);
}
