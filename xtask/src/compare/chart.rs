//! Plots as SVG, by plotters: what is drawn is data, and where it is shown decides on its ink.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::size;

/// A plot's pixels, for three in a row of a page.
const PLOT: (u32, u32) = (370, 240);
/// Room for the heading of a row of several plots, and its legend.
const HEAD_PX: u32 = 34;
/// Marks on an axis with even steps: at least half as many.
const MARKS_MAX: f64 = 6.0;
const FONT: &str = "sans-serif";
/// What no line is drawn in; a page says what it looks like.
const INK: RGBColor = RGBColor(0, 0, 0);

/// Ink and ground in light and dark, for pages and for pictures that stand alone.
pub const STYLE: &str = "svg{font-family:system-ui,sans-serif;color:#24292f}\
    svg [fill=\"#000000\"]{fill:currentColor}svg [stroke=\"#000000\"]{stroke:currentColor}\
    @media(prefers-color-scheme:dark){svg{color:#d0d7de}}";
/// Behind a picture that stands alone: its reader's page may be of either kind.
const GROUND: &str =
    "svg{background:#fff}@media(prefers-color-scheme:dark){svg{background:#0d1117}}";

/// Red, green and blue, to be read on white and on black.
pub type Colour = (u8, u8, u8);

/// How values become places.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scale {
    /// From nothing, in even steps.
    Even,
    Tens,
    /// Bytes, by powers of two.
    Bytes,
    /// Shares below one, by how near they are to it: 0, 90, 99, 99.9 %.
    Nines,
}

/// Values by values, several lines of them.
#[derive(Clone, PartialEq, Debug)]
pub struct Chart {
    pub title: String,
    pub across: Scale,
    pub up: Scale,
    pub lines: Vec<Line>,
}

/// One contender's.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    pub name: String,
    pub colour: Colour,
    /// Pixels.
    pub width: u32,
    pub points: Vec<Point>,
}

/// A value, and how far it went down and up over the rounds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    pub across: f64,
    pub up: f64,
    pub low: f64,
    pub high: f64,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Even => value,
            Self::Tens => value.log10(),
            Self::Bytes => value.log2(),
            Self::Nines => -(1.0 - value).log10(),
        }
    }

    /// The marks of an axis between two places.
    fn marks(self, from: f64, to: f64) -> Vec<f64> {
        let is_inside = |place: &f64| *place >= from - 1e-9 && *place <= to + 1e-9;
        let marks: Vec<f64> = match self {
            Self::Even => {
                let step = step(to / MARKS_MAX);
                (0..=(to / step) as u32).map(|count| f64::from(count) * step).collect()
            }
            Self::Tens => {
                let decades = from.floor() as i32..=to.ceil() as i32;
                let factors: &[f64] = if to - from > 2.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let of = |decade| factors.iter().map(move |f| f.log10() + f64::from(decade));
                decades.flat_map(of).collect()
            }
            Self::Bytes => {
                // Every second power where there are many.
                let step = if to - from > MARKS_MAX { 2 } else { 1 };
                (from.ceil() as u32..=to.floor() as u32).step_by(step).map(f64::from).collect()
            }
            Self::Nines => [0.5, 0.9, 0.99, 0.999].map(|share| self.place(share)).into(),
        };
        marks.into_iter().filter(is_inside).collect()
    }

    fn label(self, place: f64) -> String {
        match self {
            Self::Even => short(place),
            Self::Tens => short(10f64.powf(place)),
            Self::Bytes => size::show(place.exp2().round() as usize),
            Self::Nines => format!("{} %", short(100.0 * (1.0 - 10f64.powf(-place)))),
        }
    }
}

/// An axis as plotters asks for it, in places.
struct Axis {
    scale: Scale,
    places: Range<f64>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, pixels: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.places.clone()).map(place, pixels)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.scale.marks(self.places.start, self.places.end),
        }
    }

    fn range(&self) -> Range<f64> {
        self.places.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, place: &f64) -> String {
        self.scale.label(*place)
    }
}

/// 1, 2 or 5 times a power of ten, no less than what is asked.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least);
    factor.unwrap_or(10.0) * power
}

/// Without the digits of which rounding makes nothing.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Chart {
    /// An element for a page that has `STYLE`.
    pub fn svg(&self) -> Result<String, String> {
        picture(PLOT, |area| draw(area, self))
    }

    /// Where the values are: the lowest and the highest place, both ways.
    fn bounds(&self) -> [(f64, f64); 2] {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let across = points().map(|point| self.across.place(point.across));
        let up = points().flat_map(|point| [point.low, point.up, point.high]);
        let (low, high) = ends(up.map(|value| self.up.place(value)));
        let up = match self.up {
            Scale::Even => (0.0, high.max(f64::MIN_POSITIVE) * 1.05),
            _ => (low - 0.05, high + 0.05),
        };
        let (left, right) = ends(across);
        // One size alone stands in the middle.
        let across = if left < right { (left, right) } else { (left - 1.0, right + 1.0) };
        [across, up]
    }
}

fn ends(places: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = places.filter(|place| place.is_finite());
    finite
        .map(|place| (place, place))
        .reduce(|(low, high), (one, _)| (low.min(one), high.max(one)))
        .unwrap_or((0.0, 1.0))
}

/// Rows of plots in one picture that stands alone, each under its heading and legend.
pub fn sheet(rows: &[(String, Vec<Chart>)], foot: &str) -> Result<String, String> {
    let columns = rows.iter().map(|(_, charts)| charts.len()).max().unwrap_or(0) as u32;
    let row_px = HEAD_PX + PLOT.1;
    let pixels = (columns * PLOT.0, rows.len() as u32 * row_px + HEAD_PX);
    let svg = picture(pixels, |area| {
        for ((heading, charts), top) in rows.iter().zip((0..).step_by(row_px as usize)) {
            let row = area.clone().shrink((0, top), (pixels.0, row_px));
            legend(&row, heading, &charts[0].lines)?;
            let plots = row.margin(HEAD_PX, 0, 0, 0).split_evenly((1, columns as usize));
            plots.iter().zip(charts).try_for_each(|(area, chart)| draw(area, chart))?;
        }
        write(area, foot, (10, pixels.1 as i32 - 24), 13.0, INK)
    })?;
    let (tag, rest) = svg.split_once('>').ok_or("a picture without a tag")?;
    Ok(format!("{tag}><style>{STYLE}{GROUND}</style>{rest}"))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), String>;

fn picture(pixels: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, pixels).into_drawing_area();
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("a plot can't be drawn: {error}")
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), height: f64, colour: RGBColor) -> Drawn {
    area.draw_text(text, &(FONT, height, &colour).into_text_style(area), at).map_err(failed)
}

fn legend(area: &Area<'_>, heading: &str, lines: &[Line]) -> Drawn {
    // As wide as letters of this height are in the mean.
    const HEIGHT: f64 = 15.0;
    let width = |text: &str| (text.chars().count() as f64 * HEIGHT * 0.55) as i32 + 24;
    write(area, heading, (10, 10), HEIGHT, INK)?;
    let mut left = width(heading) + 20;
    // What is drawn last, over the others, is ours.
    for line in lines.iter().rev() {
        let (red, green, blue) = line.colour;
        write(area, &format!("● {}", line.name), (left, 10), HEIGHT, RGBColor(red, green, blue))?;
        left += width(&line.name);
    }
    Ok(())
}

fn draw(area: &Area<'_>, chart: &Chart) -> Drawn {
    let [(left, right), (bottom, top)] = chart.bounds();
    let across = Axis { scale: chart.across, places: left..right };
    let up = Axis { scale: chart.up, places: bottom..top };
    write(area, &chart.title, (10, 6), 15.0, INK)?;
    let mut builder = ChartBuilder::on(area);
    builder.margin_top(28).margin_right(24).x_label_area_size(24).y_label_area_size(46);
    let mut plot = builder.build_cartesian_2d(across, up).map_err(failed)?;
    plot.configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.15))
        .axis_style(INK.mix(0.5))
        .label_style((FONT, 13))
        .draw()
        .map_err(failed)?;
    for line in &chart.lines {
        let (red, green, blue) = line.colour;
        let style = RGBColor(red, green, blue).stroke_width(line.width);
        let place = |point: &Point, up| (chart.across.place(point.across), chart.up.place(up));
        let points = line.points.iter().map(|point| place(point, point.up));
        plot.draw_series(LineSeries::new(points, style)).map_err(failed)?;
        let spreads = line.points.iter().filter(|point| point.low < point.high);
        let bars = spreads.map(|point| {
            PathElement::new([place(point, point.low), place(point, point.high)], style)
        });
        plot.draw_series(bars).map_err(failed)?;
        let dots = line.points.iter();
        let dots = dots.map(|point| Circle::new(place(point, point.up), 2, style.filled()));
        plot.draw_series(dots).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let point = |across, up| Point { across, up, low: up / 2.0, high: up };
        let points = vec![point(4096.0, 1.0), point(65536.0, 3.0)];
        let line = Line { name: "a & b".into(), colour: (1, 2, 3), width: 2, points };
        let (across, up) = (Scale::Bytes, Scale::Even);
        Chart { title: "GB/s < all".into(), across, up, lines: vec![line] }
    }

    #[test]
    fn a_plot_has_its_title_its_marks_and_its_line() {
        let svg = chart().svg().unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("GB/s &lt; all"), "{svg}");
        for mark in ["4K", "64K", "3"] {
            assert!(svg.contains(&format!("\n{mark}\n")), "{mark}: {svg}");
        }
        assert_eq!(svg.matches("stroke=\"#010203\"").count(), 3, "a line and two spreads: {svg}");
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
    }

    #[test]
    fn axes_are_marked_where_people_count() {
        let labels = |scale: Scale, from, to| {
            let marks = scale.marks(scale.place(from), scale.place(to)).into_iter();
            marks.map(|place| scale.label(place)).collect::<Vec<_>>()
        };
        assert_eq!(labels(Scale::Even, 0.0, 4.1), ["0", "1", "2", "3", "4"]);
        assert_eq!(labels(Scale::Tens, 1.0, 12.0), ["1", "2", "5", "10"]);
        assert_eq!(labels(Scale::Tens, 1.0, 1200.0), ["1", "10", "100", "1000"]);
        assert_eq!(labels(Scale::Nines, 0.1, 0.999), ["50 %", "90 %", "99 %", "99.9 %"]);
        assert_eq!(labels(Scale::Bytes, 4096.0, 16384.0), ["4K", "8K", "16K"]);
    }

    #[test]
    fn nothing_to_draw_is_no_failure() {
        let none = Chart { lines: Vec::new(), ..chart() };
        assert!(none.svg().is_ok());
        let alone = Point { across: 4096.0, up: 1.0, low: 1.0, high: 1.0 };
        let line = Line { points: vec![alone], ..chart().lines.remove(0) };
        assert!(Chart { up: Scale::Tens, lines: vec![line], ..chart() }.svg().is_ok());
    }

    #[test]
    fn a_sheet_has_headings_legends_and_a_foot() {
        let rows = vec![("tcp".to_owned(), vec![chart(), chart()])];
        let svg = sheet(&rows, "measured <here>").unwrap();
        assert!(svg.starts_with("<svg ") && svg.contains("><style>svg{"), "{svg}");
        assert!(svg.contains("● a &amp; b") && svg.contains("measured &lt;here&gt;"), "{svg}");
        assert_eq!(svg.matches("<svg").count(), 1);
    }
}
