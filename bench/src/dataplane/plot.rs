//! Bars of the main figures, as SVG.

use std::fmt::Write as _;

use super::metric::{Metric, Results};
use super::report::figure;
use super::subject::Subject;

/// What is drawn, a panel each.
const PANELS: [Metric; 8] = [
    Metric::Tcp1,
    Metric::Tcp4,
    Metric::MachinePerGb,
    Metric::Udp64,
    Metric::Udp1400,
    Metric::PingP99,
    Metric::LoadedPingP99,
    Metric::Memory,
];
/// Panels side by side.
const COLUMNS: usize = 2;
/// Pixels: a panel, what it keeps free around its bars, a bar with the space below it, and the space for names.
const PANEL_WIDTH: f64 = 460.0;
const MARGIN: f64 = 24.0;
const BAR: f64 = 22.0;
const HEAD: f64 = 34.0;
const NAMES: f64 = 110.0;
/// Space for a value behind the longest bar.
const VALUES: f64 = 70.0;

/// The whole picture.
pub(super) fn svg(results: &Results, caption: &str) -> String {
    let drawn: Vec<Subject> = results
        .subjects()
        .filter(|subject| *subject == Subject::Ours || Subject::PEERS.contains(subject))
        .collect();
    let panel_height = HEAD + BAR * drawn.len() as f64 + MARGIN;
    let rows = PANELS.len().div_ceil(COLUMNS);
    let (width, height) =
        (MARGIN + PANEL_WIDTH * COLUMNS as f64, 2.0 * MARGIN + HEAD + panel_height * rows as f64);
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{MARGIN}" y="{HEAD}" font-size="16" font-weight="bold" fill="#222222">{}</text>
"##,
        escaped(caption)
    );
    for (number, metric) in PANELS.into_iter().enumerate() {
        let left = MARGIN + PANEL_WIDTH * (number % COLUMNS) as f64;
        let top = MARGIN + HEAD + panel_height * (number / COLUMNS) as f64;
        text += &panel(results, metric, &drawn, (left, top));
    }
    text.push_str("</svg>\n");
    text
}

/// One metric: a bar for each subject, as long as its median.
fn panel(results: &Results, metric: Metric, drawn: &[Subject], (left, top): (f64, f64)) -> String {
    let better = if metric.less_is_better() { "less is better" } else { "more is better" };
    // Beside the bare veth all bars would look the same, so it is told and not drawn.
    let limit = results.median(Subject::Veth, metric);
    let limit = limit.map(|value| format!("; bare veth: {}", figure(value))).unwrap_or_default();
    let (title, unit) = (metric.title(), metric.unit());
    let mut text = String::new();
    let y = top + HEAD - 14.0;
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        r##"<text x="{left}" y="{y}" fill="#222222"><tspan font-weight="bold">{title}</tspan> [{unit}] <tspan fill="#777777">{better}{limit}</tspan></text>"##
    );
    let medians = || drawn.iter().filter_map(|subject| results.median(*subject, metric));
    let longest = medians().fold(f64::MIN_POSITIVE, f64::max);
    for (row, subject) in drawn.iter().enumerate() {
        let y = top + HEAD + BAR * row as f64;
        let (middle, from) = (y + BAR * 0.6, left + NAMES);
        let name = subject.name();
        let _ = writeln!(
            text,
            r##"<text x="{:.1}" y="{middle:.1}" text-anchor="end" fill="#222222">{name}</text>"##,
            from - 8.0
        );
        let Some(value) = results.median(*subject, metric) else { continue };
        let length = (PANEL_WIDTH - NAMES - VALUES - MARGIN) * value / longest;
        let colour = if *subject == Subject::Ours { "#1f6feb" } else { "#b6bcc4" };
        let _ = writeln!(
            text,
            r##"<rect x="{from:.1}" y="{:.1}" width="{length:.1}" height="{:.1}" fill="{colour}"/>
<text x="{:.1}" y="{middle:.1}" fill="#222222">{}</text>"##,
            y + 1.0,
            BAR - 6.0,
            from + length + 6.0,
            figure(value)
        );
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_that_was_measured_has_its_bar() {
        let mut results = Results::default();
        results.add(Subject::Ours, [(Metric::Tcp1, 6.0)]);
        results.add(Subject::Boringtun1, [(Metric::Tcp1, 1.0)]);
        results.add(Subject::Veth, [(Metric::Tcp1, 45.0)]);
        let picture = svg(&results, "a < b & c");
        // The background is a rectangle too.
        assert_eq!(picture.matches("<rect").count(), 3);
        assert!(picture.contains("a &lt; b &amp; c") && picture.contains("bare veth: 45.0"));
    }
}
