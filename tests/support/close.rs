//! Comparing numbers so that a failure says where and by how much.

use candle_core::{DType, Tensor};

/// Fails when a value of `got` is further than `tolerance` from that of `want`, or not a number.
///
/// The message has the largest difference, where it is, and the first five pairs.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let worst = Worst::of(&values(got), &values(want));
    assert!(worst.difference <= tolerance, "beyond {tolerance:e}: {}", worst.report(got.dims()));
}

/// As [`assert_close`], for slices.
#[track_caller]
pub(crate) fn assert_all_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let worst = Worst::of(got, want);
    assert!(worst.difference <= tolerance, "beyond {tolerance:e}: {}", worst.report(&[got.len()]));
}

/// Fails when [`relative_l2`] is beyond `tolerance`, or not a number.
#[track_caller]
pub(crate) fn assert_relative(got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_l2(got, want);
    assert!(
        error <= tolerance,
        "relative L2 error {error:e} is beyond {tolerance:e}; {}",
        Worst::of(&values(got), &values(want)).report(got.dims())
    );
}

/// `|got - want| / |want|` in the L2 norm.
#[track_caller]
pub(crate) fn relative_l2(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let (got, want) = (values(got), values(want));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    if difference == 0.0 { 0.0 } else { difference / norm(&mut want.iter().copied()) }
}

/// The largest difference of two lists.
struct Worst {
    difference: f64,
    index: usize,
    pairs: Vec<(f64, f64)>,
}

impl Worst {
    /// Finds it; what is not a number differs infinitely, unless both are the same infinity.
    fn of(got: &[f64], want: &[f64]) -> Self {
        let pairs: Vec<_> = got.iter().copied().zip(want.iter().copied()).collect();
        let (index, difference) = pairs
            .iter()
            .map(|(g, w)| if g == w { 0.0 } else { (g - w).abs() })
            .map(|difference| if difference.is_nan() { f64::INFINITY } else { difference })
            .enumerate()
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .unwrap_or((0, 0.0));
        Self { difference, index, pairs }
    }

    fn report(&self, dims: &[usize]) -> String {
        let Self { difference, index, pairs } = self;
        let (got, want) = pairs[*index];
        format!(
            "largest difference {difference:e} at {:?} of {dims:?}: got {got}, want {want}\n\
             first (got, want): {:?}",
            position(*index, dims),
            &pairs[..pairs.len().min(5)]
        )
    }
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn position(mut index: usize, dims: &[usize]) -> Vec<usize> {
    let mut position = Vec::new();
    for dim in dims.iter().rev() {
        position.insert(0, index % dim);
        index /= dim;
    }
    position
}

#[test]
#[should_panic(expected = "largest difference 2e0 at [1, 0] of [2, 2]: got 3, want 5")]
fn the_largest_difference_is_named() {
    let device = candle_core::Device::Cpu;
    let got = Tensor::new(&[[1.0, 2.0], [3.0, 4.5]], &device).unwrap();
    let want = Tensor::new(&[[1.0, 2.0], [5.0, 4.0]], &device).unwrap();
    assert_close(&got, &want, 1e-3);
}

#[test]
#[should_panic(expected = "largest difference inf at [1] of [2]: got NaN, want 2")]
fn what_is_not_a_number_is_never_close() {
    assert_all_close(&[1.0, f64::NAN], &[1.0, 2.0], 1e9);
}
