//! Outlines of shapes as signed distance functions.

use std::f64::consts::{PI, TAU};

use super::Shape;

/// Ratio of the inner to the outer radius of a star.
const STAR_INNER: f64 = 0.45;

/// Outline of a shape with circumscribed radius 1 around the origin, prepared for many distance queries.
#[derive(Clone, Debug)]
pub(super) enum Outline {
    Disc,
    Ring,
    Polygon(Vec<(f64, f64)>),
}

impl Outline {
    pub(super) fn new(shape: Shape) -> Self {
        // Radii that give all shapes about the same area at the same size.
        let regular = |corners: usize, radius: f64, phase: f64| {
            let corner = |i: usize| {
                let angle = TAU * i as f64 / corners as f64 + phase;
                (radius * angle.sin(), -radius * angle.cos())
            };
            Self::Polygon((0..corners).map(corner).collect())
        };
        match shape {
            Shape::Circle => Self::Disc,
            Shape::Ring => Self::Ring,
            Shape::Square => regular(4, 1.25, PI / 4.0),
            Shape::Triangle => regular(3, 1.4, 0.0),
            Shape::Star => {
                let corner = |i: usize| {
                    let angle = PI * i as f64 / 5.0;
                    let radius = if i.is_multiple_of(2) { 1.45 } else { 1.45 * STAR_INNER };
                    (radius * angle.sin(), -radius * angle.cos())
                };
                Self::Polygon((0..10).map(corner).collect())
            }
        }
    }

    /// Signed distance of a point to the outline; negative inside. `y` points down.
    pub(super) fn distance(&self, x: f64, y: f64) -> f64 {
        match self {
            Self::Disc => x.hypot(y) - 1.0,
            // Radii from 0.55 to 1.1.
            Self::Ring => (x.hypot(y) - 0.825).abs() - 0.275,
            Self::Polygon(corners) => polygon(corners, x, y),
        }
    }
}

/// Signed distance to a polygon: the distance to the nearest edge, with the sign by the crossing number.
fn polygon(corners: &[(f64, f64)], x: f64, y: f64) -> f64 {
    let mut nearest = f64::INFINITY;
    let mut inside = false;
    let Some(mut from) = corners.last().copied() else { return nearest };
    for &to in corners {
        let (edge_x, edge_y) = (to.0 - from.0, to.1 - from.1);
        let (point_x, point_y) = (x - from.0, y - from.1);
        let along = (point_x * edge_x + point_y * edge_y) / (edge_x * edge_x + edge_y * edge_y);
        let along = along.clamp(0.0, 1.0);
        nearest = nearest.min((point_x - along * edge_x).hypot(point_y - along * edge_y));
        if (from.1 > y) != (to.1 > y) && x < from.0 + (y - from.1) / edge_y * edge_x {
            inside = !inside;
        }
        from = to;
    }
    if inside { -nearest } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_right_where_they_are_known() {
        let close = |shape: Shape, x: f64, y: f64, wanted: f64| {
            let got = Outline::new(shape).distance(x, y);
            assert!((got - wanted).abs() < 1e-12, "{shape} at {x}, {y}: {got}, not {wanted}");
        };
        close(Shape::Circle, 3.0, 4.0, 4.0);
        close(Shape::Ring, 0.0, 0.0, 0.55);
        close(Shape::Ring, 0.825, 0.0, -0.275);
        let half = 1.25 / 2f64.sqrt();
        close(Shape::Square, 0.0, 0.0, -half);
        close(Shape::Square, half + 1.0, 0.3, 1.0);
        close(Shape::Square, half + 3.0, half + 4.0, 5.0);
        close(Shape::Triangle, 0.0, -2.4, 1.0);
        close(Shape::Triangle, 0.0, 0.0, -0.7);
        close(Shape::Star, 0.0, -2.45, 1.0);
    }
}
