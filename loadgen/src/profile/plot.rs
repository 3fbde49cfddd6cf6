//! Line plots as inline SVG: just what the report needs. Colours are classes (`s0` to `s5`), so that the page
//! decides them for light and dark.

use std::fmt::Write;

/// One line.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it is called in the legend.
    pub name: String,
    /// Its points, in order of x.
    pub points: Vec<(f64, f64)>,
}

/// One plot. The y axis starts at 0.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What stands above it.
    pub title: &'static str,
    /// What stands below it.
    pub x_label: &'static str,
    /// Places and texts along the x axis; the first and the last are its ends.
    pub x_ticks: Vec<(f64, String)>,
    /// The lines.
    pub series: Vec<Series>,
}

/// Colours there are; further lines begin anew.
pub const COLOURS: usize = 6;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

impl Plot {
    /// The plot as a `<figure>`; nothing where there are no points.
    pub fn svg(&self) -> String {
        if self.series.iter().all(|series| series.points.is_empty()) || self.x_ticks.len() < 2 {
            return String::new();
        }
        let frame = Frame::new(self);
        let mut svg = format!(
            "<figure><figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(self.title),
            escape(self.title)
        );
        self.axes(&frame, &mut svg);
        for (index, series) in self.series.iter().enumerate() {
            let points: Vec<String> =
                series.points.iter().map(|(x, y)| format!("{:.1},{:.1}", frame.x(*x), frame.y(*y))).collect();
            put(
                &mut svg,
                format_args!("<polyline class=\"s{}\" points=\"{}\"/>\n", index % COLOURS, points.join(" ")),
            );
        }
        svg += "</svg>\n";
        self.legend(&mut svg);
        svg + "</figure>\n"
    }

    fn axes(&self, frame: &Frame, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for value in frame.y_ticks() {
            let y = frame.y(value);
            put(
                svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>"
                ),
            );
            let (x, y) = (LEFT - 8.0, y + 4.0);
            put(svg, format_args!("<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{}</text>\n", short(value)));
        }
        for (value, text) in &self.x_ticks {
            let x = frame.x(*value);
            put(
                svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>"
                ),
            );
            let y = bottom + 18.0;
            put(svg, format_args!("<text class=\"middle\" x=\"{x:.1}\" y=\"{y}\">{}</text>\n", escape(text)));
        }
        let (x, y) = ((LEFT + right) / 2.0, HEIGHT - 6.0);
        put(
            svg,
            format_args!("<text class=\"middle\" x=\"{x}\" y=\"{y}\">{}</text>\n", escape(self.x_label)),
        );
    }

    fn legend(&self, svg: &mut String) {
        svg.push_str("<p class=\"legend\">");
        for (index, series) in self.series.iter().enumerate() {
            let (colour, name) = (index % COLOURS, escape(&series.name));
            put(svg, format_args!("<span><i class=\"s{colour}\"></i>{name}</span> "));
        }
        svg.push_str("</p>\n");
    }
}

/// Where values lie on the drawing.
struct Frame {
    x_from: f64,
    x_to: f64,
    y_to: f64,
    y_step: f64,
}

impl Frame {
    fn new(plot: &Plot) -> Self {
        let highest =
            plot.series.iter().flat_map(|series| &series.points).map(|(_, y)| *y).fold(0.0, f64::max);
        let y_step = step(highest);
        let x_from = plot.x_ticks.first().map_or(0.0, |tick| tick.0);
        let x_to = plot.x_ticks.last().map_or(1.0, |tick| tick.0).max(x_from + 1e-9);
        Self { x_from, x_to, y_to: (highest / y_step).ceil().max(1.0) * y_step, y_step }
    }

    fn x(&self, value: f64) -> f64 {
        let share = ((value - self.x_from) / (self.x_to - self.x_from)).clamp(0.0, 1.0);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value / self.y_to).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn y_ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.y_to / self.y_step).round() as u32;
        (0..=count).map(|tick| f64::from(tick) * self.y_step)
    }
}

/// A round distance between ticks so that there are about five: 1, 2 or 5 times a power of 10.
pub fn step(highest: f64) -> f64 {
    if highest <= 0.0 || !highest.is_finite() {
        return 1.0;
    }
    let rough = highest / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.expect("ten times the power is above it") * power
}

/// A number for an axis: `1.5M`, `20k`, `0.4`.
pub fn short(value: f64) -> String {
    let (scaled, suffix) = match value {
        value if value >= 1e9 => (value / 1e9, "G"),
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e3 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let text = format!("{scaled:.3}");
    format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Text in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_about_five() {
        assert_eq!([0.7, 1.0, 7.0, 55.0, 1_234_567.0].map(step), [0.2, 0.2, 2.0, 20.0, 500_000.0]);
        assert_eq!((step(0.0), step(f64::NAN)), (1.0, 1.0));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.4, 1_500.0, 20_000.0, 1.5e6, 2e9].map(short),
            ["0", "0.4", "1.5k", "20k", "1.5M", "2G"]
        );
    }

    #[test]
    fn a_plot_holds_its_points_inside_its_frame() {
        let ticks = vec![(0.0, "0".to_owned()), (10.0, "10 < 11".to_owned())];
        let series =
            vec![Series { name: "a & b".to_owned(), points: vec![(0.0, 0.0), (10.0, 5.0), (99.0, 5.0)] }];
        let plot = Plot { title: "t", x_label: "x", x_ticks: ticks, series };
        let svg = plot.svg();
        assert!(svg.contains("points=\"74.0,256.0 724.0,12.0 724.0,12.0\""), "{svg}");
        assert!(svg.contains("a &amp; b") && svg.contains("10 &lt; 11"));
        assert_eq!(Plot { series: Vec::new(), ..plot }.svg(), "");
    }
}
