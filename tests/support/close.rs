//! Comparison of tensors with a message that helps.

use candle_core::{DType, Tensor};

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// `‖got − want‖₂ / ‖want‖₂`.
pub(crate) fn relative(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let (mut difference, mut norm) = (0.0, 0.0);
    for (g, w) in values(got).into_iter().zip(values(want)) {
        difference += (f64::from(g) - f64::from(w)).powi(2);
        norm += f64::from(w).powi(2);
    }
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// Fails when the relative L2 difference exceeds `tolerance`.
#[track_caller]
pub(crate) fn assert_relative(got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative(got, want);
    assert!(
        error <= tolerance,
        "relative difference {error:.3e} > {tolerance:.1e}\n{}",
        worst(got, want)
    );
}

/// Fails when any value differs by more than `tolerance`.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    let far = values(got).iter().zip(values(want)).any(|(g, w)| !((g - w).abs() <= tolerance));
    assert!(!far, "differs by more than {tolerance:e}\n{}", worst(got, want));
}

fn worst(got: &Tensor, want: &Tensor) -> String {
    let (got, want) = (values(got), values(want));
    let (at, difference) = got
        .iter()
        .zip(&want)
        .map(|(g, w)| (g - w).abs())
        .enumerate()
        .fold((0, 0.0), |best, (i, d)| if d > best.1 || d.is_nan() { (i, d) } else { best });
    let first: Vec<_> = got.iter().zip(&want).take(5).collect();
    format!(
        "worst at {at}: {} for {} (difference {difference:e}); first pairs {first:?}",
        got[at], want[at]
    )
}
