//! Cost against size, as SVG: points, and the straight line through the origin and the last of them.

use std::fmt::Write as _;

/// One panel: what it shows, its unit, and points of size and cost.
pub(super) struct Curve {
    pub(super) title: String,
    pub(super) unit: &'static str,
    pub(super) across: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// Pixels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 60.0;

/// All panels side by side.
pub(super) fn svg(curves: &[Curve]) -> String {
    let (width, height) = ((WIDTH + 2.0 * MARGIN) * curves.len() as f64, HEIGHT + 2.0 * MARGIN);
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
"##
    );
    for (number, curve) in curves.iter().enumerate() {
        panel(&mut text, curve, (WIDTH + 2.0 * MARGIN) * number as f64 + MARGIN);
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, curve: &Curve, left: f64) {
    let most = |of: fn(&(f64, f64)) -> f64| curve.points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
    let place = |(x, y): (f64, f64)| (left + WIDTH * x / most_x, MARGIN + HEIGHT * (1.0 - y / most_y));
    let (bottom, right) = (MARGIN + HEIGHT, left + WIDTH);
    let (title, unit, across) = (&curve.title, curve.unit, curve.across);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        r##"<text x="{left}" y="{:.1}" fill="#222222"><tspan font-weight="bold">{title}</tspan> [{unit}]</text>
<path d="M{left} {MARGIN} V{bottom} H{right}" fill="none" stroke="#222222"/>
<text x="{right}" y="{:.1}" text-anchor="end" fill="#777777">{across}</text>"##,
        MARGIN - 20.0,
        bottom + 36.0
    );
    if let Some(last) = curve.points.last() {
        let (x, y) = place(*last);
        let _ = writeln!(
            text,
            r##"<path d="M{left} {bottom} L{x:.1} {y:.1}" stroke="#b6bcc4" stroke-dasharray="4"/>"##
        );
    }
    for point in &curve.points {
        let (x, y) = place(*point);
        let _ = writeln!(
            text,
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="#1f6feb"/>
<text x="{x:.1}" y="{:.1}" text-anchor="end" fill="#222222">{:.4}</text>
<text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="#777777">{}</text>"##,
            y - 8.0,
            point.1,
            bottom + 18.0,
            point.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn() {
        let points = vec![(1_000.0, 1.5), (10_000.0, 15.0)];
        let curve = Curve { title: "cost".to_owned(), unit: "ms", across: "agents", points };
        let picture = svg(&[curve]);
        assert_eq!(picture.matches("<circle").count(), 2);
        assert!(picture.contains("15.0000") && picture.contains(">10000<"));
    }
}
