//! Scalar functions written so that the compiler turns loops over them into vector code; see [`fused`] for `FMA`.

/// `e^x` within 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN for NaN.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    let clamped = if x > 88.722_84 { 88.722_84 } else { x };
    let clamped = if clamped < -87.336_54 { -87.336_54 } else { clamped };
    let (rounded, e) = reduced::<FMA>(clamped);
    // Two factors, because 2^128 itself is not a number of this type. The sum has the integer in its lowest bits; a
    // cast would be checked value by value.
    let n = rounded.to_bits() as i32 - ROUND.to_bits() as i32;
    let half = n >> 1;
    let scale = |k: i32| f32::from_bits(((k + 127) << 23) as u32);
    let value = e * scale(half) * scale(n - half);
    let value = if x < -87.336_54 { 0.0 } else { value };
    let value = if x > 88.722_84 { f32::INFINITY } else { value };
    if x.is_nan() { x } else { value }
}

/// [`exp`] of what is negative, or hardly above 0; 0 below -87.
#[inline(always)]
pub fn exp_negative<const FMA: bool>(x: f32) -> f32 {
    let clamped = if x < -87.0 { -87.0 } else { x };
    let (rounded, e) = reduced::<FMA>(clamped);
    // The lowest bits are the integer; those above are shifted out.
    let value = e * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { value }
}

/// `n` as the lowest bits of a number, and `e^(x - n ln 2)`, after Cody and Waite.
#[inline(always)]
fn reduced<const FMA: bool>(x: f32) -> (f32, f32) {
    let rounded = fused::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    // ln 2 in two parts, so that `n * high` is exact.
    let r = fused::<FMA>(n, -0.693_359_4, x);
    let r = fused::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = fused::<FMA>(p, r, 1.398_2e-3);
    p = fused::<FMA>(p, r, 8.333_452e-3);
    p = fused::<FMA>(p, r, 4.166_579_6e-2);
    p = fused::<FMA>(p, r, 1.666_666_5e-1);
    p = fused::<FMA>(p, r, 0.5);
    (rounded, fused::<FMA>(p * r, r, r) + 1.0)
}

/// Adding and subtracting 1.5 · 2²³ rounds to the nearest integer without a call.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The error function, absolute error below 5e-7 (about four units in the last place at 1).
///
/// A rational minimax approximation `x P(x²) / Q(x²)` on `[-4, 4]`, beyond which the result is ±1 in f32.
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    let c = x.clamp(-4.0, 4.0);
    let s = c * c;
    let mut p = -2.726_142_3e-10_f32;
    p = fused::<FMA>(p, s, 2.770_681_5e-8);
    p = fused::<FMA>(p, s, -2.101_024e-6);
    p = fused::<FMA>(p, s, -5.692_506_4e-5);
    p = fused::<FMA>(p, s, -7.349_906e-4);
    p = fused::<FMA>(p, s, -2.954_6e-3);
    p = fused::<FMA>(p, s, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5_f32;
    q = fused::<FMA>(q, s, -2.133_740_6e-4);
    q = fused::<FMA>(q, s, -1.682_827e-3);
    q = fused::<FMA>(q, s, -7.373_329e-3);
    q = fused::<FMA>(q, s, -1.426_473_9e-2);
    let value = c * p / q;
    // From here on ±1 is the nearest number of this type.
    if x.abs() > 3.832_5 { 1f32.copysign(x) } else { value }
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub fn silu<const FMA: bool>(x: f32) -> f32 {
    // Of what is not positive, so that nothing is too large.
    let e = exp_negative::<FMA>(-x.abs());
    let part = if x < 0.0 { e } else { 1.0 };
    x * (part / (1.0 + e))
}

/// `x · Φ(x)` with the exact normal distribution function, not the tanh approximation.
#[inline(always)]
pub fn gelu<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `a · b + c`, rounded once if `FMA`, which should only be where the processor has an instruction for it.
#[inline(always)]
pub fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        check_exp::<false>();
        check_exp::<true>();
    }

    fn check_exp<const FMA: bool>() {
        let mut worst = 0.0_f64;
        let mut x = -87.0_f32;
        while x < 88.5 {
            let want = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * 2f64.powi(want.log2().floor() as i32);
            worst = worst.max((f64::from(exp::<FMA>(x)) - want).abs() / unit);
            x += 0.000_917;
        }
        assert!(worst < 2.0, "{worst} units");
        assert_eq!(exp::<FMA>(0.0), 1.0);
        assert_eq!(exp::<FMA>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<FMA>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<FMA>(f32::NAN).is_nan());
        let mut x = -87.0_f32;
        while x < 1.0 {
            assert_eq!(exp_negative::<FMA>(x), exp::<FMA>(x), "{x}");
            x += 0.000_917;
        }
        for x in [-87.1, -1e9, f32::NEG_INFINITY] {
            assert_eq!(exp_negative::<FMA>(x), 0.0);
        }
        assert!(exp_negative::<FMA>(f32::from_bits(0xffc0_01ff)).is_nan());
    }

    #[test]
    fn erf_is_close_everywhere_and_odd() {
        check_erf::<false>();
        check_erf::<true>();
    }

    fn check_erf<const FMA: bool>() {
        let (mut x, mut worst) = (-6.0_f32, 0.0_f64);
        while x < 6.0 {
            let want = candle_core::cpu::erf::erf_f64(f64::from(x));
            worst = worst.max((f64::from(erf::<FMA>(x)) - want).abs());
            assert_eq!(erf::<FMA>(-x), -erf::<FMA>(x));
            x += 0.000_713;
        }
        assert!(worst < 5e-7, "{worst:e}");
        assert!(erf::<FMA>(f32::NAN).is_nan());
    }

    #[test]
    fn silu_and_gelu_keep_their_limits() {
        check_limits::<false>();
        check_limits::<true>();
    }

    fn check_limits<const FMA: bool>() {
        assert_eq!(silu::<FMA>(0.0), 0.0);
        assert_eq!(silu::<FMA>(100.0), 100.0);
        assert_eq!(silu::<FMA>(-200.0), 0.0);
        assert_eq!(gelu::<FMA>(10.0), 10.0);
        assert!(gelu::<FMA>(-10.0).abs() < 1e-5);
    }
}
