//! Plots as SVG: lines over axes, bars. By hand: what these pages need is less than what any plotting crate brings, and the
//! text stays text.

use std::fmt::Write as _;

/// Colours of the lines, in their order.
const COLOURS: [&str; 6] = ["#1f5f8b", "#b3423a", "#3b7a57", "#8a5a9e", "#b8860b", "#555555"];
const GRID: &str = "#dddddd";

/// Values along one side.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    label: String,
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From nothing to the largest of `values`, by equal steps.
    pub(super) fn linear(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let most = values.into_iter().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let step = step(most / 4.0);
        let count = (most / step).ceil();
        let mut ticks = Vec::new();
        let mut number = 0.0;
        while number <= count {
            ticks.push((number * step, short(number * step)));
            number += 1.0;
        }
        Self { label: label.to_owned(), low: 0.0, high: count * step, logarithmic: false, ticks }
    }

    /// From the power of ten below `values` to the one above.
    pub(super) fn logarithmic(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|value| *value > 0.0);
        let (least, most) =
            positive.fold((1e9_f64, f64::MIN_POSITIVE), |(least, most), value| (least.min(value), most.max(value)));
        let low = least.log10().floor();
        let high = most.log10().ceil().max(low + 1.0);
        let mut ticks = Vec::new();
        let mut power = low;
        while power <= high {
            let value = 10f64.powf(power);
            ticks.push((value, short(value)));
            power += 1.0;
        }
        Self { label: label.to_owned(), low: 10f64.powf(low), high: 10f64.powf(high), logarithmic: true, ticks }
    }

    /// The values in equal steps, whatever they are.
    pub(super) fn steps(label: &str, names: &[&str]) -> Self {
        let ticks = (0..).map(f64::from).zip(names.iter().map(|name| (*name).to_owned())).collect::<Vec<_>>();
        let last = ticks.last().map_or(1.0, |(at, _)| *at);
        Self { label: label.to_owned(), low: -0.3, high: last + 0.3, logarithmic: false, ticks }
    }

    /// Where a value is, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.low).log10() - self.low.log10()) / (self.high.log10() - self.low.log10())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        place.clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least * 0.999).unwrap_or(power)
}

fn short(value: f64) -> String {
    let (value, unit) = if value >= 10_000.0 { (value / 1000.0, "k") } else { (value, "") };
    let text = format!("{value:.4}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// One line; where there is a spread, a bar from its low to its high at each point.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// In the legend.
    pub(super) name: String,
    /// `x`, and of `y` value, lowest, highest.
    pub(super) points: Vec<(f64, [f64; 3])>,
    /// Drawn with gaps.
    pub(super) dashed: bool,
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
}

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 270.0;
/// Of the plot inside of a chart: left, top, right, bottom.
const INSIDE: [f64; 4] = [58.0, 34.0, 366.0, 222.0];

/// Charts beside and below each other.
pub(super) fn charts(all: &[Chart], columns: usize) -> String {
    let columns = columns.clamp(1, all.len().max(1));
    let rows = all.len().div_ceil(columns);
    let mut text = opening(WIDTH * size(columns), HEIGHT * size(rows));
    for (number, chart) in all.iter().enumerate() {
        let (x, y) = (WIDTH * size(number % columns), HEIGHT * size(number / columns));
        let _ = writeln!(text, "<g transform=\"translate({x},{y})\">\n{}</g>", one(chart));
    }
    text.push_str("</svg>\n");
    text
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
const fn size(count: usize) -> f64 {
    count as f64
}

fn opening(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

fn one(chart: &Chart) -> String {
    let [left, top, right, bottom] = INSIDE;
    let x = |value: f64| left + (right - left) * chart.x.at(value);
    let y = |value: f64| bottom - (bottom - top) * chart.y.at(value);
    let mut text = format!(
        "<text x=\"{left}\" y=\"16\" font-size=\"13\" font-weight=\"bold\">{}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(13,{}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
        escaped(&chart.title),
        f64::midpoint(left, right),
        bottom + 32.0,
        escaped(&chart.x.label),
        f64::midpoint(top, bottom),
        escaped(&chart.y.label),
    );
    for (value, label) in &chart.y.ticks {
        let _ = writeln!(
            text,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{GRID}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 5.0,
            y(*value) + 4.0,
            escaped(label),
            at = y(*value),
        );
    }
    for (value, label) in &chart.x.ticks {
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\" stroke=\"black\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 4.0,
            bottom + 16.0,
            escaped(label),
            at = x(*value),
        );
    }
    let _ = writeln!(text, "<line x1=\"{left}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\" stroke=\"black\"/>");
    for (number, line) in chart.lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let dashes = if line.dashed { " stroke-dasharray=\"5 3\"" } else { "" };
        let path: Vec<String> =
            line.points.iter().map(|(at, [value, ..])| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"{dashes}/>",
            path.join(" ")
        );
        for (at, [value, low, high]) in &line.points {
            let _ = writeln!(
                text,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" opacity=\"0.5\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"2.6\" fill=\"{colour}\"/>",
                y(*low),
                y(*high),
                y(*value),
                x = x(*at),
            );
        }
        if chart.lines.len() > 1 {
            let legend = top + 4.0 + 14.0 * size(number);
            let _ = writeln!(
                text,
                "<line x1=\"{}\" x2=\"{}\" y1=\"{legend}\" y2=\"{legend}\" stroke=\"{colour}\" stroke-width=\"1.8\"{dashes}/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                left + 8.0,
                left + 30.0,
                left + 35.0,
                legend + 4.0,
                escaped(&line.name),
            );
        }
    }
    text
}

/// One bar of [`bars`].
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// On its left.
    pub(super) name: String,
    /// On its right.
    pub(super) label: String,
    /// Its lengths one after the other, each in a colour of its own.
    pub(super) parts: Vec<(f64, &'static str)>,
}

/// Bars below each other, and a line across them at `mark`.
pub(super) fn bars(all: &[Bar], most: f64, mark: Option<(f64, &str)>) -> String {
    const LEFT: f64 = 230.0;
    const LENGTH: f64 = 420.0;
    const STEP: f64 = 22.0;
    let height = STEP * size(all.len()) + 50.0;
    let length = |value: f64| LENGTH * (value / most).clamp(0.0, 1.0);
    let mut text = opening(LEFT + LENGTH + 130.0, height);
    for (number, bar) in all.iter().enumerate() {
        let y = STEP * size(number) + 32.0;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 12.0,
            escaped(&bar.name)
        );
        let mut at = 0.0;
        for (value, colour) in &bar.parts {
            let _ = writeln!(
                text,
                "<rect x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"16\" fill=\"{colour}\"/>",
                LEFT + length(at),
                length(at + value) - length(at)
            );
            at += value;
        }
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{}\">{}</text>",
            LEFT + length(at) + 6.0,
            y + 12.0,
            escaped(&bar.label)
        );
    }
    if let Some((value, label)) = mark {
        let at = LEFT + length(value);
        let _ = writeln!(
            text,
            "<text x=\"{at:.1}\" y=\"18\" text-anchor=\"middle\">{}</text>\n<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"24\" \
             y2=\"{}\" stroke=\"black\" stroke-dasharray=\"4 3\"/>",
            escaped(label),
            height - 10.0
        );
    }
    text.push_str("</svg>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ends_and_ticks() {
        let linear = Axis::linear("µs", [3.0, 37.0]);
        assert_eq!((linear.low, linear.high), (0.0, 40.0));
        assert_eq!(
            linear.ticks.iter().map(|(_, label)| label.as_str()).collect::<Vec<_>>(),
            ["0", "10", "20", "30", "40"]
        );
        let powers = Axis::logarithmic("pods", [10.0, 100_000.0]);
        assert_eq!((powers.low, powers.high), (10.0, 100_000.0));
        assert_eq!(
            powers.ticks.iter().map(|(_, label)| label.as_str()).collect::<Vec<_>>(),
            ["10", "100", "1000", "10k", "100k"]
        );
        assert!((powers.at(1000.0) - 0.5).abs() < 1e-9);
        assert!(Axis::logarithmic("one value", [5.0]).high > 5.0);
        assert_eq!(Axis::steps("", &["a", "b"]).ticks[1].1, "b");
    }

    #[test]
    fn every_point_is_inside_and_the_text_is_escaped() {
        let line = |name: &str, dashed| Line {
            name: name.into(),
            points: vec![(10.0, [1.0, 0.5, 2.0]), (1000.0, [400.0, 300.0, 9000.0])],
            dashed,
        };
        let chart = Chart {
            title: "a < b & c".into(),
            x: Axis::logarithmic("x", [10.0, 1000.0]),
            y: Axis::linear("y", [400.0]),
            lines: vec![line("one", false), line("other", true)],
        };
        let text = charts(&[chart.clone(), chart.clone(), chart], 2);
        assert!(text.contains("a &lt; b &amp; c") && text.contains("width=\"760\" height=\"540\""), "{text}");
        // What is above the axis ends at its top.
        assert!(text.contains("y2=\"34.0\" stroke=\"#1f5f8b\""), "{text}");
        assert_eq!(text.matches("<g ").count(), 3);
        assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
    }

    #[test]
    fn bars_are_laid_end_to_end_and_cut_at_the_most() {
        let bar = Bar { name: "x".into(), label: "7 s".into(), parts: vec![(1.0, "#111111"), (9.0, "#222222")] };
        let text = bars(&[bar], 2.0, Some((1.0, "the bar")));
        assert!(
            text.contains("x=\"230.0\" y=\"32\" width=\"210.0\"")
                && text.contains("x=\"440.0\" y=\"32\" width=\"210.0\""),
            "{text}"
        );
        assert!(text.contains("the bar"));
    }
}
