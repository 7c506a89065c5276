//! How a chart is drawn, as SVG.
//!
//! One drawing serves every theme: the colours are those of the light one, and the style sheet of the page has
//! its own for each of them.

use std::fmt::Display;
use std::ops::Range;

use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::drawing::IntoDrawingArea;
use plotters::element::Text;
use plotters::prelude::SVGBackend;
use plotters::series::{AreaSeries, LineSeries};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, IntoTextStyle, RGBColor, ShapeStyle};

use super::charts::{Chart, Line, Scale};
use super::history::{GAP, History, KEPT};

pub(super) const ACCENT: RGBColor = RGBColor(0x0b, 0x6e, 0x6e);
pub(super) const SECOND: RGBColor = RGBColor(0xb4, 0x5f, 0x06);
pub(super) const FAINT: RGBColor = RGBColor(0x8a, 0x94, 0xa3);
pub(super) const ALERT: RGBColor = RGBColor(0xc0, 0x26, 0x2d);
const GRID: RGBColor = RGBColor(0xe4, 0xe7, 0xec);
const WORDS: RGBColor = RGBColor(0x5a, 0x63, 0x70);

/// The drawing is scaled down to its place: coordinates are whole numbers, and these are small.
const FINE: u32 = 4;
const SIZE: (u32, u32) = (400 * FINE, 150 * FINE);
const FONT: u32 = 11 * FINE;

type Points = Vec<(f64, f64)>;

pub(super) fn draw(chart: &Chart, history: &History) -> Result<String, String> {
    let mut svg = String::new();
    draw_on(SVGBackend::with_string(&mut svg, SIZE), chart, history)?;
    Ok(svg)
}

fn draw_on(backend: SVGBackend<'_>, chart: &Chart, history: &History) -> Result<(), String> {
    let (time, values) = (Axis::of_time(), Axis::of_values(chart, history));
    let (begin, (low, high)) = (time.range.start, (values.range.start, values.range.end));
    let font = ("sans-serif", FONT).into_font().color(&WORDS);

    let area = backend.into_drawing_area();
    let mut drawn = ChartBuilder::on(&area)
        .margin_top(6 * FINE)
        .margin_right(14 * FINE)
        .x_label_area_size(20 * FINE)
        .y_label_area_size(52 * FINE)
        .build_cartesian_2d(time, values)
        .map_err(text)?;
    drawn
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.stroke_width(FINE))
        .axis_style(GRID.stroke_width(FINE))
        .set_all_tick_mark_size(0)
        .set_tick_mark_size(LabelAreaPosition::Bottom, 4 * FINE)
        .label_style(font.clone())
        .x_label_formatter(&|x| moment(*x))
        .y_label_formatter(&|y| (chart.format)(*y))
        .draw()
        .map_err(text)?;

    for limit in chart.limits {
        let y = (limit.value)(history);
        if y > high {
            continue;
        }
        let line = LineSeries::new([(begin, y), (0.0, y)], limit.colour.stroke_width(FINE));
        drawn.draw_series(line).map_err(text)?;
        let style = ("sans-serif", FONT).into_text_style(&area).color(&WORDS);
        let style = style.pos(Pos::new(HPos::Left, VPos::Bottom));
        let name = format!("{} {}", limit.name, (chart.format)(y));
        drawn.draw_series([Text::new(name, (begin + 4.0, y), style)]).map_err(text)?;
    }
    for (number, line) in chart.lines.iter().enumerate() {
        for points in stretches(line, history) {
            if chart.is_filled && number == 0 {
                let below = AreaSeries::new(points.iter().copied(), low, line.colour.mix(0.12));
                drawn.draw_series(below).map_err(text)?;
            }
            let style: ShapeStyle = line.colour.stroke_width(2 * FINE - FINE / 2);
            drawn.draw_series(LineSeries::new(points, style)).map_err(text)?;
        }
    }
    // The axes borrow the area.
    drop(drawn);
    area.present().map_err(text)
}

/// The label of a moment; the first one would run into that of the value below it.
fn moment(seconds: f64) -> String {
    match seconds {
        0.0 => "now".into(),
        ..=-300.0 => String::new(),
        _ => format!("−{} min", -seconds / 60.0),
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The unbroken stretches of a line.
fn stretches(line: &Line, history: &History) -> Vec<Points> {
    let mut stretches: Vec<Points> = Vec::new();
    let mut before = None;
    for point in &history.points {
        let x = -history.now.saturating_duration_since(point.at).as_secs_f64();
        let Some(value) = (line.value)(point) else {
            before = None;
            continue;
        };
        if before.is_none_or(|before: f64| x - before > GAP.as_secs_f64()) {
            // From the start of its second, so that one alone can be seen.
            stretches.push(vec![((x - 1.0).max(-KEPT.as_secs_f64()), value)]);
        }
        if let Some(stretch) = stretches.last_mut() {
            stretch.push((x, value));
        }
        before = Some(x);
    }
    stretches
}

/// An axis with labels where we want them.
struct Axis {
    range: Range<f64>,
    /// Where it is labelled.
    marks: Vec<f64>,
    is_logarithmic: bool,
}

impl Axis {
    /// The last minutes.
    fn of_time() -> Self {
        let marks = (0..=5).map(|minute| -60.0 * f64::from(minute)).collect();
        Self { range: -KEPT.as_secs_f64()..0.0, marks, is_logarithmic: false }
    }

    fn of_values(chart: &Chart, history: &History) -> Self {
        let values = chart.lines.iter().flat_map(|line| history.points.iter().filter_map(line.value));
        let limits = chart.limits.iter().map(|limit| (limit.value)(history));
        let highest = values.reduce(f64::max).unwrap_or_default();
        match chart.scale {
            Scale::Linear { top } => {
                // A limit far above would press the lines flat.
                let near = limits.filter(|limit| *limit <= 4.0 * highest.max(top));
                let top = near.fold(highest.max(top), f64::max) * 1.15;
                let step = round_step(top / 4.0);
                let marks = (0..8_u32).map(|n| f64::from(n) * step).take_while(|mark| *mark <= top);
                Self { range: 0.0..top, marks: marks.collect(), is_logarithmic: false }
            }
            Scale::Logarithmic { low, factor } => {
                let highest = limits.fold(highest.max(low * factor.powi(3)), f64::max);
                let marks: Vec<_> = (0..12)
                    .map(|n| low * factor.powi(n))
                    .take_while(|mark| *mark < highest * factor)
                    .collect();
                let top = marks.last().copied().unwrap_or(highest).max(highest * 1.6);
                Self { range: low..top, marks, is_logarithmic: true }
            }
        }
    }

    /// How far along the axis a value is, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let Range { start, end } = self.range;
        let share = if self.is_logarithmic {
            (value.max(start) / start).ln() / (end / start).ln()
        } else {
            (value - start) / (end - start)
        };
        share.clamp(0.0, 1.0)
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        // Pixels; there are few.
        start + (self.share(*value) * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.marks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// The next of 1, 2, 5, 10, 20, ...
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= step);
    (digit.unwrap_or(10.0) * power).max(1.0)
}
