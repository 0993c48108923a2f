//! The Fréchet distance between two sets of features, each taken for a normal distribution.
//!
//! Dowson and Landau (1982); Heusel et al. (2017), equation 6.

use crate::{Error, Result};

/// Sweeps after which Jacobi's method has converged, or never will: five to ten are usual.
const MOST_SWEEPS: usize = 50;

/// Mean and covariance of features.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    mean: Vec<f64>,
    covariance: Square,
}

impl Gaussian {
    /// The mean and the unbiased covariance of features, one vector for each clip.
    ///
    /// # Errors
    ///
    /// Fewer than two vectors, vectors of different lengths or of none, or a value that is not finite.
    pub fn of(features: &[Vec<f64>]) -> Result<Self> {
        let wrong = |reason: String| Error::request("fvd", reason);
        let count = features.len();
        let [first, _, ..] = features else {
            return Err(wrong(format!("{count} clips have no covariance"))
                .with_hint("compare at least two generated clips with at least two real ones"));
        };
        let n = first.len();
        if n == 0 || features.iter().any(|vector| vector.len() != n) {
            return Err(wrong("the features of the clips are not equally many".into()));
        }
        if features.iter().flatten().any(|value| !value.is_finite()) {
            return Err(wrong("a feature is not a finite number".into()));
        }
        let mut mean = vec![0.0; n];
        for vector in features {
            mean.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value / count as f64);
        }
        let mut covariance = Square::zeros(n);
        for vector in features {
            let centred: Vec<f64> = vector.iter().zip(&mean).map(|(x, mean)| x - mean).collect();
            for (row, left) in covariance.rows_mut().zip(&centred) {
                let left = left / (count - 1) as f64;
                row.iter_mut().zip(&centred).for_each(|(sum, right)| *sum += left * right);
            }
        }
        Ok(Self { mean, covariance })
    }
}

/// The squared Fréchet distance, `|μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2 √(√Σ₁ Σ₂ √Σ₁))`.
///
/// # Errors
///
/// Features of different lengths.
pub fn distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    let n = a.mean.len();
    if n != b.mean.len() {
        let reason = format!("{n} features cannot be compared with {}", b.mean.len());
        return Err(Error::request("fvd", reason));
    }
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b) * (a - b)).sum();
    let root = a.covariance.root();
    let product = root.times(&b.covariance).times(&root);
    let (values, _) = product.symmetric().eigen();
    // Rounding makes small values negative, where there are fewer clips than features.
    let trace: f64 = values.iter().map(|value| value.max(0.0).sqrt()).sum();
    Ok(means + a.covariance.trace() + b.covariance.trace() - 2.0 * trace)
}

/// A square matrix, row by row.
#[derive(Clone, Debug, PartialEq)]
struct Square {
    n: usize,
    values: Vec<f64>,
}

impl Square {
    fn zeros(n: usize) -> Self {
        Self { n, values: vec![0.0; n * n] }
    }

    fn identity(n: usize) -> Self {
        let mut matrix = Self::zeros(n);
        matrix.values.iter_mut().step_by(n + 1).for_each(|value| *value = 1.0);
        matrix
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.n.max(1))
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f64]> {
        self.values.chunks_exact_mut(self.n.max(1))
    }

    fn diagonal(&self) -> impl Iterator<Item = f64> {
        self.values.iter().step_by(self.n + 1).copied()
    }

    fn trace(&self) -> f64 {
        self.diagonal().sum()
    }

    fn times(&self, other: &Self) -> Self {
        let mut product = Self::zeros(self.n);
        for (to, row) in product.rows_mut().zip(self.rows()) {
            for (factor, line) in row.iter().zip(other.rows()) {
                to.iter_mut().zip(line).for_each(|(sum, value)| *sum += factor * value);
            }
        }
        product
    }

    fn transposed(&self) -> Self {
        let n = self.n;
        let values = (0..n * n).map(|i| self.values[i % n * n + i / n]).collect();
        Self { n, values }
    }

    /// The mean with the transpose, which differs by rounding.
    fn symmetric(&self) -> Self {
        let other = self.transposed();
        let pairs = self.values.iter().zip(&other.values);
        Self { n: self.n, values: pairs.map(|(a, b)| 0.5 * (a + b)).collect() }
    }

    /// The symmetric square root of a symmetric matrix without negative eigenvalues.
    fn root(&self) -> Self {
        let (values, vectors) = self.eigen();
        let mut scaled = vectors.clone();
        for (row, value) in scaled.rows_mut().zip(values) {
            let root = value.max(0.0).sqrt();
            for x in row.iter_mut() {
                *x *= root;
            }
        }
        vectors.transposed().times(&scaled)
    }

    /// Eigenvalues of a symmetric matrix, and its eigenvectors as rows: the cyclic method of Jacobi; Golub and Van Loan
    /// (2013), "Matrix Computations", algorithm 8.5.3.
    fn eigen(&self) -> (Vec<f64>, Self) {
        let n = self.n;
        let (mut a, mut vectors) = (self.clone(), Self::identity(n));
        let whole: f64 = a.values.iter().map(|x| x * x).sum();
        let mut before = f64::INFINITY;
        for _ in 0..MOST_SWEEPS {
            let above = a.rows().enumerate().flat_map(|(p, row)| row.iter().skip(p + 1));
            let off: f64 = above.map(|x| x * x).sum();
            // Bounds the squares of how far the diagonal is from the eigenvalues.
            if off <= 1e-28 * whole || off >= before {
                break;
            }
            before = off;
            for p in 0..n {
                for q in p + 1..n {
                    a.rotate(p, q, &mut vectors);
                }
            }
        }
        (a.diagonal().collect(), vectors)
    }

    /// Turns the plane of two axes so that the value between them becomes zero.
    fn rotate(&mut self, p: usize, q: usize, vectors: &mut Self) {
        let n = self.n;
        let between = self.values[p * n + q];
        if between == 0.0 {
            return;
        }
        let tau = (self.values[q * n + q] - self.values[p * n + p]) / (2.0 * between);
        let tangent = tau.signum() / (tau.abs() + tau.hypot(1.0));
        let cosine = tangent.hypot(1.0).recip();
        let sine = tangent * cosine;
        let turn = |x: &mut f64, y: &mut f64| {
            (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        };
        for matrix in [&mut *self, vectors] {
            let (above, below) = matrix.values.split_at_mut(q * n);
            let (x, y) = (&mut above[p * n..(p + 1) * n], &mut below[..n]);
            x.iter_mut().zip(y).for_each(|(x, y)| turn(x, y));
        }
        for row in self.rows_mut() {
            let (left, right) = row.split_at_mut(q);
            turn(&mut left[p], &mut right[0]);
        }
        self.values[p * n + q] = 0.0;
        self.values[q * n + p] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix<const N: usize>(rows: [[f64; N]; N]) -> Square {
        Square { n: N, values: rows.concat() }
    }

    fn assert_near(a: &Square, b: &Square) {
        let near = a.values.iter().zip(&b.values).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near, "{a:?} is not {b:?}");
    }

    #[test]
    fn eigenvalues_and_eigenvectors_are_those_of_the_matrix() {
        let a = matrix([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]]);
        let (mut values, vectors) = a.eigen();
        let mut scaled = vectors.clone();
        for (row, value) in scaled.rows_mut().zip(&values) {
            for x in row.iter_mut() {
                *x *= value;
            }
        }
        assert_near(&vectors.transposed().times(&scaled), &a);
        assert_near(&vectors.times(&vectors.transposed()), &Square::identity(3));
        values.sort_by(f64::total_cmp);
        let root = 2.0_f64.sqrt();
        for (value, expected) in values.iter().zip([2.0 - root, 2.0, 2.0 + root]) {
            assert!((value - expected).abs() < 1e-14, "{values:?}");
        }
        // Equal values on the diagonal, a matrix of zeros, and the smallest.
        let half = 0.5_f64.sqrt();
        assert_near(&matrix([[1.0; 2]; 2]).root(), &matrix([[half; 2]; 2]));
        assert_eq!(Square::zeros(2).eigen().0, [0.0, 0.0]);
        assert_eq!(matrix([[9.0]]).root().values, [3.0]);
    }

    #[test]
    fn a_root_times_itself_is_the_matrix() {
        let a = matrix([[5.0, 2.0, 1.0], [2.0, 4.0, 0.5], [1.0, 0.5, 3.0]]);
        assert_near(&a.root().times(&a.root()), &a);
    }

    #[test]
    fn what_has_no_covariance_is_refused() {
        let fails = |features: &[Vec<f64>], words: &str| {
            let error = Gaussian::of(features).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            assert!(error.to_string().contains(words), "{error}");
        };
        fails(&[], "0 clips");
        fails(&[vec![1.0]], "1 clips");
        fails(&[vec![1.0], vec![1.0, 2.0]], "equally many");
        fails(&[vec![], vec![]], "equally many");
        fails(&[vec![1.0], vec![f64::NAN]], "finite");
        let one = Gaussian::of(&[vec![1.0], vec![2.0]]).unwrap();
        let two = Gaussian::of(&[vec![1.0, 0.0], vec![2.0, 0.0]]).unwrap();
        assert!(distance(&one, &two).is_err());
    }

    #[test]
    fn normal_distributions_in_one_dimension_are_as_far_as_means_and_deviations() {
        let of = |values: &[f64]| {
            Gaussian::of(&values.iter().map(|v| vec![*v]).collect::<Vec<_>>()).unwrap()
        };
        // Means 0 and 3, deviations √2 and √8.
        let far = distance(&of(&[-1.0, 1.0]), &of(&[1.0, 5.0])).unwrap();
        assert!((far - (9.0 + 2.0)).abs() < 1e-12, "{far}");
        assert!(distance(&of(&[-1.0, 1.0]), &of(&[1.0, -1.0])).unwrap().abs() < 1e-12);
    }
}
