//! Plot of the loss curves.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::metric::Metric;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 180.0;
const MARGIN: f64 = 48.0;

/// An SVG with one panel per stage: the smoothed loss on a logarithmic axis.
pub(super) fn curves(metrics: &[Metric]) -> String {
    let mut stages: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    let mut order: Vec<&str> = Vec::new();
    for metric in metrics {
        if !order.contains(&metric.stage.as_str()) {
            order.push(&metric.stage);
        }
        let points = stages.entry(&metric.stage).or_default();
        points.push((metric.step as f64, metric.loss.max(1e-12)));
    }
    let total = (HEIGHT + MARGIN) * order.len() as f64 + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {total}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + 2.0 * MARGIN
    );
    for (row, stage) in order.iter().enumerate() {
        let top = MARGIN + row as f64 * (HEIGHT + MARGIN);
        panel(&mut svg, stage, &smooth(&stages[stage]), top);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Means of groups of neighbouring points, at most a few hundred groups.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(200).max(1);
    let mean =
        |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count as f64;
    points
        .chunks(each)
        .map(|chunk| {
            let x = mean(&mut chunk.iter().map(|p| p.0), chunk.len());
            (x, mean(&mut chunk.iter().map(|p| p.1), chunk.len()))
        })
        .collect()
}

fn panel(svg: &mut String, stage: &str, points: &[(f64, f64)], top: f64) {
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (first, last) = range(&mut points.iter().map(|p| p.0));
    let (low, high) = range(&mut points.iter().map(|p| p.1));
    let (bottom, ceiling) = (low.log10(), high.log10().max(low.log10() + 1e-3));
    let x = |step: f64| MARGIN + WIDTH * (step - first) / (last - first).max(1.0);
    let y = |loss: f64| top + HEIGHT * (1.0 - (loss.log10() - bottom) / (ceiling - bottom));
    let mut line = String::new();
    for (step, loss) in points {
        let _ = write!(line, "{:.1},{:.1} ", x(*step), y(*loss));
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{MARGIN}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" \
         stroke=\"#bbb\"/>\n<polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" \
         stroke-width=\"1.5\"/>\n<text x=\"{MARGIN}\" y=\"{}\">{stage}: loss, steps {first:.0} to \
         {last:.0}</text>\n<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{high:.2e}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{low:.2e}</text>",
        line.trim_end(),
        top - 6.0,
        MARGIN - 4.0,
        top + 12.0,
        MARGIN - 4.0,
        top + HEIGHT,
    );
}
