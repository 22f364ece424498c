//! The charts of the report: inline SVG whose colours are the page's CSS variables, so that they
//! follow light and dark. Legends are the page's; a chart has axes, ticks, a grid and data.

use std::collections::BTreeMap;
use std::sync::Arc;

use kuva::backend::svg::SvgBackend;
use kuva::plot::{LinePlot, ScatterPlot};
use kuva::render::annotations::ReferenceLine;
use kuva::render::layout::{Layout, TickFormat};
use kuva::render::plots::Plot;
use kuva::render::render::render_multiple;
use kuva::render::theme::Theme;

const ACCENT: &str = "var(--accent)";
const MUTED: &str = "var(--muted)";
/// Margins left and right of the plot.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;

/// What the numbers of an axis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// As they are, with two or three significant digits.
    Plain,
    /// Parts of one, shown as per cent.
    Percent,
}

/// One line of a chart.
#[derive(Debug, Clone)]
pub struct Series {
    /// (x, y); points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Half-length of each point's error bar; empty for none.
    pub errors: Vec<f64>,
    /// Drawn in grey instead of the accent colour.
    pub muted: bool,
}

/// A part of the x axis.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its first x.
    pub start: f64,
    /// Its last x.
    pub end: f64,
    /// Its name.
    pub name: String,
}

/// A chart over iterations or stages.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Said to who cannot see it.
    pub label: String,
    /// The lines, first drawn first.
    pub series: Vec<Series>,
    /// What the y axis counts.
    pub unit: Unit,
    /// Labels of x = 1, 2, 3 …; empty for a numeric axis.
    pub categories: Vec<String>,
    /// Width and height in the units of the page's pixels, as far as it is not scaled.
    pub size: (f64, f64),
    /// Stages along the x axis; with more than one, each is named and set off by a line.
    pub spans: Vec<Span>,
    /// Whether the y axis starts at 0.
    pub from_zero: bool,
}

impl Chart {
    /// The chart as an `<svg>` element, or nothing where there is no point to draw.
    pub fn svg(&self) -> Option<String> {
        let points: Vec<(f64, f64)> = self
            .series
            .iter()
            .flat_map(|s| s.points.iter().copied())
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect();
        if points.is_empty() {
            return None;
        }
        let plots: Vec<Plot> = self.series.iter().flat_map(Series::plots).collect();
        let x_range = self.x_range(&points);
        let scene = render_multiple(plots, self.layout(&points, x_range));
        let svg = SvgBackend::new().render_scene(&scene);
        Some(fluid(&svg, (scene.width, scene.height), &self.label, &self.names(x_range)))
    }

    fn x_range(&self, points: &[(f64, f64)]) -> (f64, f64) {
        if self.categories.is_empty() {
            let (low, high) = range(points.iter().map(|p| p.0));
            (low, high.max(low + 1.0))
        } else {
            (0.5, self.categories.len() as f64 + 0.5)
        }
    }

    /// The stages' names above the plot, where the library's annotations would be clipped.
    fn names(&self, (low, high): (f64, f64)) -> String {
        if self.spans.len() < 2 {
            return String::new();
        }
        let width = self.size.0 - LEFT - RIGHT;
        let name = |span: &Span| {
            let middle = (f64::midpoint(span.start, span.end) - low) / (high - low);
            format!(
                "<text x=\"{:.1}\" y=\"10\" font-size=\"9\" text-anchor=\"middle\">{}</text>",
                LEFT + middle * width,
                escape(&span.name)
            )
        };
        self.spans.iter().map(name).collect()
    }

    fn layout(&self, points: &[(f64, f64)], (x_low, x_high): (f64, f64)) -> Layout {
        let errors = self.series.iter().flat_map(Series::extremes);
        let (low, high) = range(points.iter().map(|p| p.1).chain(errors));
        let low = if self.from_zero { low.min(0.0) } else { low };
        let ticks = Ticks::new(low, high);
        let mut layout = Layout::new((x_low, x_high), (ticks.low, ticks.high))
            .with_width(self.size.0)
            .with_height(self.size.1)
            .with_force_margins(LEFT, RIGHT)
            .with_force_margins_y(16.0, 20.0)
            .with_theme(theme())
            .with_tick_size(10)
            .with_x_axis_min(x_low)
            .with_x_axis_max(x_high)
            .with_y_axis_min(ticks.low)
            .with_y_axis_max(ticks.high)
            .with_y_tick_step(ticks.step)
            .with_y_tick_format(ticks.format(self.unit))
            .with_tick_length(3.0);
        layout.show_legend = false;
        if self.categories.is_empty() {
            layout = layout.with_x_tick_format(TickFormat::Integer);
            let step = Ticks::new(x_low, x_high).step.max(1.0);
            layout = layout.with_x_tick_step(step);
        } else {
            layout =
                layout.with_x_tick_step(1.0).with_x_tick_format(category_format(&self.categories));
        }
        if self.spans.len() > 1 {
            for span in &self.spans {
                layout = layout.with_reference_line(
                    ReferenceLine::vertical(span.start)
                        .with_color("var(--rule-strong)")
                        .with_stroke_width(1.0)
                        .with_dasharray("2 3"),
                );
            }
        }
        layout
    }
}

impl Series {
    fn plots(&self) -> Vec<Plot> {
        let color = if self.muted { MUTED } else { ACCENT };
        let keep = |(i, (x, y)): (usize, &(f64, f64))| {
            (x.is_finite() && y.is_finite())
                .then(|| (*x, *y, self.errors.get(i).copied().unwrap_or(0.0)))
        };
        let kept: Vec<(f64, f64, f64)> = self.points.iter().enumerate().filter_map(keep).collect();
        let data: Vec<(f64, f64)> = kept.iter().map(|(x, y, _)| (*x, *y)).collect();
        let line = LinePlot::new()
            .with_data(data.iter().copied())
            .with_color(color)
            .with_stroke_width(1.6);
        // A single point makes no line, and error bars need something to sit on.
        let dots = !self.errors.is_empty() || data.len() <= 12;
        let mut plots = vec![Plot::Line(line)];
        if dots {
            let mut scatter = ScatterPlot::new().with_data(data).with_color(color).with_size(2.6);
            if !self.errors.is_empty() {
                scatter = scatter.with_y_err(kept.iter().map(|(_, _, e)| *e));
            }
            plots.push(Plot::Scatter(scatter));
        }
        plots
    }

    /// The ends of the error bars.
    fn extremes(&self) -> impl Iterator<Item = f64> + '_ {
        self.points
            .iter()
            .zip(&self.errors)
            .flat_map(|((_, y), e)| [y - e, y + e])
            .filter(|y| y.is_finite())
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// An axis with round numbers: about four steps of 1, 2 or 5 times a power of ten.
struct Ticks {
    low: f64,
    high: f64,
    step: f64,
}

impl Ticks {
    fn new(low: f64, high: f64) -> Self {
        let span = if high - low > 0.0 { high - low } else { high.abs().max(1.0) };
        let raw = span / 4.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * power)
            .into_iter()
            .find(|step| *step >= raw * 0.999)
            .unwrap_or(10.0 * power);
        let bottom = (low / step + 1e-9).floor() * step;
        let top = (high / step - 1e-9).ceil() * step;
        Self { low: bottom, high: if top > bottom { top } else { bottom + step }, step }
    }

    fn format(&self, unit: Unit) -> TickFormat {
        let (factor, suffix) = match unit {
            Unit::Percent => (100.0, " %"),
            Unit::Plain => (1.0, ""),
        };
        let step = self.step * factor;
        let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        let tiny = step < 1e-3;
        TickFormat::Custom(Arc::new(move |value| {
            let value = value * factor;
            // A tick at zero is not "-0".
            let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
            if tiny && value != 0.0 {
                format!("{value:.0e}{suffix}")
            } else if value.abs() >= 10_000.0 {
                format!("{:.0}k{suffix}", value / 1000.0)
            } else if tiny {
                format!("0{suffix}")
            } else {
                format!("{value:.decimals$}{suffix}")
            }
        }))
    }
}

fn category_format(names: &[String]) -> TickFormat {
    let names: BTreeMap<i64, String> =
        names.iter().enumerate().map(|(i, name)| (i as i64 + 1, name.clone())).collect();
    TickFormat::Custom(Arc::new(move |value| {
        if (value - value.round()).abs() > 1e-6 {
            return String::new();
        }
        names.get(&(value.round() as i64)).cloned().unwrap_or_default()
    }))
}

fn theme() -> Theme {
    Theme {
        background: "none".into(),
        axis_color: "var(--rule-strong)".into(),
        grid_color: "var(--rule)".into(),
        tick_color: "var(--rule-strong)".into(),
        text_color: MUTED.into(),
        font_family: None,
        ..Theme::light()
    }
}

/// Gives the fixed-size element a view box, so that it scales with the page. Ids are made this
/// chart's own, since the page has many.
fn fluid(svg: &str, (width, height): (f64, f64), label: &str, names: &str) -> String {
    let Some(end) = svg.find('>') else { return String::new() };
    let own: String = label.chars().filter(char::is_ascii_alphanumeric).collect();
    let body = svg[end + 1..].replace("kuva-clip-", &format!("{own}-clip-"));
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">{names}{body}",
        escape(label)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
