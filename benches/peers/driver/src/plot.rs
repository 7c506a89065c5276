//! Single-row inserts as a drawing: throughput and p99 by the number of clients.

use std::collections::BTreeSet;
use std::fmt::Display;

use peers_common::{Durability, Error, Figures, Workload};
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Text};
use plotters::prelude::SVGBackend;
use plotters::series::LineSeries;
use plotters::style::{Color, IntoFont, IntoTextStyle, RGBColor};

use crate::summary::Results;

const SIZE: (u32, u32) = (1080, 760);
const LEGEND_HEIGHT: u32 = 60;
const LEGEND_COLUMNS: usize = 6;
// In the middle between black and white, and no background: it can be read on a light page and on a dark one.
const WORDS: RGBColor = RGBColor(0x80, 0x88, 0x94);
const GRID: RGBColor = RGBColor(0x80, 0x88, 0x94);
const RAW: &str = "raw loop";
const OURS: RGBColor = RGBColor(0x0d, 0x94, 0x88);
const OTHERS: [RGBColor; 8] = [
    RGBColor(0xd9, 0x77, 0x06),
    RGBColor(0x3b, 0x82, 0xf6),
    RGBColor(0xdb, 0x27, 0x77),
    RGBColor(0x8b, 0x5c, 0xf6),
    RGBColor(0x65, 0xa3, 0x0d),
    RGBColor(0xef, 0x44, 0x44),
    RGBColor(0x0e, 0xa5, 0xe9),
    RGBColor(0xa1, 0x62, 0x07),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What a panel shows of the figures.
struct Shown {
    title: &'static str,
    value: fn(&Figures) -> f64,
}

const THROUGHPUT: Shown = Shown { title: "rows a second", value: |figures| figures.ops_per_s };
const LATENCY: Shown = Shown { title: "p99, ms", value: |figures| figures.p99_us / 1000.0 };

/// Draws what was measured of [`Workload::Insert`].
///
/// # Errors
/// If nothing of it was measured, or the drawing fails.
pub(crate) fn draw(results: &Results) -> Result<String, Error> {
    let inserts: Vec<&Figures> =
        results.figures().filter(|figures| figures.workload == Workload::Insert).collect();
    let chart = Chart::of(&inserts).ok_or("no inserts were measured, so there is nothing to draw")?;
    let mut svg = String::new();
    chart.draw_on(SVGBackend::with_string(&mut svg, SIZE)).map_err(|error| error.to_string())?;
    Ok(svg)
}

struct Chart<'f> {
    inserts: &'f [&'f Figures],
    clients: Vec<usize>,
    /// The lines, in the order of the legend.
    systems: Vec<&'f str>,
}

impl<'f> Chart<'f> {
    fn of(inserts: &'f [&'f Figures]) -> Option<Self> {
        let clients: BTreeSet<usize> = inserts.iter().map(|figures| figures.clients).collect();
        let mut systems: Vec<&str> = Vec::new();
        for figures in inserts {
            let line = line_of(figures);
            if !systems.contains(&line) {
                systems.push(line);
            }
        }
        (!clients.is_empty()).then(|| Self { inserts, clients: clients.into_iter().collect(), systems })
    }

    fn colour(&self, system: &str) -> RGBColor {
        match system {
            "solewriter" => return OURS,
            RAW => return WORDS,
            _ => {}
        }
        let number = self.systems.iter().position(|name| *name == system).unwrap_or_default();
        OTHERS[number % OTHERS.len()]
    }

    fn draw_on(&self, backend: SVGBackend<'_>) -> Result<(), String> {
        let area = backend.into_drawing_area();
        let (legend, panels) = area.split_vertically(LEGEND_HEIGHT);
        self.draw_legend(&legend)?;
        let kinds = [
            (Durability::Full, THROUGHPUT),
            (Durability::Normal, THROUGHPUT),
            (Durability::Full, LATENCY),
            (Durability::Normal, LATENCY),
        ];
        for (panel, (durability, shown)) in panels.split_evenly((2, 2)).iter().zip(kinds) {
            self.draw_panel(panel, durability, &shown)?;
        }
        area.present().map_err(text)
    }

    fn draw_legend(&self, area: &Area<'_>) -> Result<(), String> {
        let style = ("sans-serif", 14).into_text_style(area).color(&WORDS);
        let width = SIZE.0 as i32 / LEGEND_COLUMNS as i32;
        for (number, system) in self.systems.iter().enumerate() {
            let (column, line) = ((number % LEGEND_COLUMNS) as i32, (number / LEGEND_COLUMNS) as i32);
            let (x, y) = (20 + column * width, 16 + line * 22);
            let stroke = PathElement::new([(x, y), (x + 22, y)], self.colour(system).stroke_width(3));
            area.draw(&stroke).map_err(text)?;
            area.draw(&Text::new(*system, (x + 28, y - 7), style.clone())).map_err(text)?;
        }
        Ok(())
    }

    fn draw_panel(&self, area: &Area<'_>, durability: Durability, shown: &Shown) -> Result<(), String> {
        // One scale for both kinds of durability.
        let values = self.inserts.iter().map(|figures| (shown.value)(figures));
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        if !(low > 0.0 && low.is_finite()) {
            return Ok(());
        }
        let last = self.clients.len() as f64 - 1.0;
        let font = ("sans-serif", 13).into_font().color(&WORDS);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .margin_right(24)
            .caption(format!("{durability}: {}", shown.title), ("sans-serif", 15).into_font().color(&WORDS))
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(-0.1..last + 0.1, (low / 1.5..high * 1.5).log_scale())
            .map_err(text)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.mix(0.35))
            .light_line_style(GRID.mix(0.0))
            .axis_style(GRID.mix(0.6))
            .label_style(font.clone())
            .axis_desc_style(font)
            .x_desc("clients")
            .x_labels(self.clients.len())
            .x_label_formatter(&|x| self.clients_at(*x))
            .y_label_formatter(&|y| short(*y))
            .draw()
            .map_err(text)?;
        for system in &self.systems {
            let points: Vec<_> = self
                .inserts
                .iter()
                .filter(|figures| figures.durability == durability)
                .filter(|figures| line_of(figures) == *system)
                .filter_map(|figures| Some((self.place_of(figures.clients)?, (shown.value)(figures))))
                .collect();
            let colour = self.colour(system);
            let width = if colour == OURS { 4 } else { 2 };
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(width))).map_err(text)?;
            let dots = points.into_iter().map(|point| Circle::new(point, 4, colour.filled()));
            chart.draw_series(dots).map_err(text)?;
        }
        Ok(())
    }

    fn place_of(&self, clients: usize) -> Option<f64> {
        self.clients.iter().position(|other| *other == clients).map(|place| place as f64)
    }

    /// The label of a place on the axis; between two numbers of clients there is none.
    fn clients_at(&self, place: f64) -> String {
        let nearest = place.round();
        if (place - nearest).abs() > 0.01 || nearest < 0.0 {
            return String::new();
        }
        self.clients.get(nearest as usize).map_or_else(String::new, ToString::to_string)
    }
}

/// The raw loops are one line: each is measured with one number of clients.
fn line_of(figures: &Figures) -> &str {
    if figures.system.starts_with("raw") { RAW } else { &figures.system }
}

fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{value}"),
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}
