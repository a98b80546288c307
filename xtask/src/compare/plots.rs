//! Which plots are made of a workload's figures. Pure.

use super::chart::{Chart, Colour, Line, Point, Scale};
use super::contender::Role;
use super::figures::{Column, Results, Row, Spread};
use crate::size;

/// Ours, then the peers' in their order, then the limits'.
const OURS: [Colour; 4] = [(47, 111, 214), (20, 160, 190), (110, 150, 240), (90, 70, 160)];
const PEERS: [Colour; 4] = [(214, 120, 20), (36, 150, 92), (176, 84, 190), (196, 64, 72)];
const LIMITS: [Colour; 2] = [(140, 140, 140), (170, 150, 90)];

/// What a plot is about, and its plots.
pub type Group = (&'static str, Vec<Chart>);

/// All plots of a workload, by what they are about.
pub fn all(results: &Results) -> Vec<Group> {
    let against_sizes = |title, up, figure: Figure| {
        let shapes = shapes(results).into_iter();
        let charts = shapes.map(|(operation, batch)| {
            let rows = rows(results, operation, batch);
            chart(results, format!("{operation} b{batch}, {title}"), up, &rows, figure)
        });
        (title, charts.filter(is_drawn).collect())
    };
    let groups = [
        against_sizes("GB/s", Scale::Even, &Row::throughput),
        against_sizes("share of the limit, %", Scale::Even, &|row, at| share(results, row, at)),
        against_sizes("CPU seconds for a GB", Scale::Tens, &Row::cpu),
        ("latency of a batch, us, by rank", latencies(results)),
    ];
    groups.into_iter().filter(|(_, charts)| !charts.is_empty()).collect()
}

/// The three that tell most, for a picture: the largest batches, and the latency of the shortest.
pub fn chosen(results: &Results) -> Vec<Chart> {
    let shape = shapes(results).into_iter().rfind(|(operation, _)| *operation == "read");
    let Some((operation, batch)) = shape else { return Vec::new() };
    let rows = rows(results, operation, batch);
    let title = |what: &str| format!("{operation} b{batch}, {what}");
    let mut charts = vec![
        chart(results, title("GB/s"), Scale::Even, &rows, Row::throughput),
        chart(results, title("CPU seconds for a GB"), Scale::Tens, &rows, Row::cpu),
    ];
    charts.extend(latencies(results).into_iter().find(|chart| chart.title.contains("read")));
    charts
}

/// The colour of a contender, and how wide its line is.
pub fn ink(columns: &[Column], at: usize) -> (Colour, u32) {
    let role = columns[at].role;
    let number = columns[..at].iter().filter(|column| column.role == role).count();
    match role {
        Role::Ours => (OURS[number % OURS.len()], 3),
        Role::Peer => (PEERS[number % PEERS.len()], 2),
        Role::Limit => (LIMITS[number % LIMITS.len()], 1),
    }
}

type Figure<'a> = &'a dyn Fn(&Row, usize) -> Option<Spread>;

fn is_drawn(chart: &Chart) -> bool {
    chart.lines.iter().any(|line| !line.points.is_empty())
}

/// Operations and batches, in the order of the rows.
fn shapes(results: &Results) -> Vec<(&'static str, u64)> {
    let mut shapes = Vec::new();
    for row in &results.rows {
        let shape = (row.cell.operation, row.cell.batch);
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

fn rows<'a>(results: &'a Results, operation: &str, batch: u64) -> Vec<&'a Row> {
    let is_it = |row: &&Row| row.cell.operation == operation && row.cell.batch == batch;
    results.rows.iter().filter(is_it).collect()
}

fn chart(
    results: &Results,
    title: String,
    up: Scale,
    rows: &[&Row],
    figure: impl Fn(&Row, usize) -> Option<Spread>,
) -> Chart {
    let lines = lines(results, |at| {
        let point = |row: &&Row| {
            let Spread { median, min, max } = figure(row, at)?;
            let across = row.cell.block_bytes as f64;
            Some(Point { across, up: median, low: min, high: max })
        };
        rows.iter().filter_map(point).collect()
    });
    Chart { title, across: Scale::Bytes, up, lines }
}

/// A line for each contender that has points; ours last, over the others.
fn lines(results: &Results, points: impl Fn(usize) -> Vec<Point>) -> Vec<Line> {
    let line = |at: usize| {
        let (colour, width) = ink(&results.columns, at);
        Line { name: results.columns[at].name.clone(), colour, width, points: points(at) }
    };
    let lines = (0..results.columns.len()).rev().map(line);
    lines.filter(|line| !line.points.is_empty()).collect()
}

/// Percent of the fastest limit's throughput, round by round.
fn share(results: &Results, row: &Row, at: usize) -> Option<Spread> {
    if results.columns[at].role == Role::Limit {
        return None;
    }
    let ratio = row.ratio(at, results.best(row, Role::Limit)?)?;
    let [median, min, max] = [ratio.median, ratio.min, ratio.max].map(|ratio| 100.0 * ratio);
    Some(Spread { median, min, max })
}

/// How the time of batches is distributed, one plot for each size of the smallest batches.
fn latencies(results: &Results) -> Vec<Chart> {
    let Some(batch) = results.rows.iter().map(|row| row.cell.batch).min() else {
        return Vec::new();
    };
    let rows = results.rows.iter().filter(|row| row.cell.batch == batch);
    let charts = rows.map(|row| {
        let block = size::show(row.cell.block_bytes as usize);
        let point = |(across, up)| Point { across, up, low: up, high: up };
        let curve = |at| {
            row.latency(at).into_iter().flat_map(|one| one.curve().map(point).collect::<Vec<_>>())
        };
        Chart {
            title: format!("{} {block} b{batch}, us by rank", row.cell.operation),
            across: Scale::Nines,
            up: Scale::Tens,
            lines: lines(results, |at| curve(at).collect()),
        }
    });
    charts.filter(is_drawn).collect()
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::results;
    use super::*;

    #[test]
    fn every_contender_with_figures_has_a_line_in_its_colour() {
        let groups = all(&results());
        let titles: Vec<_> = groups.iter().map(|(title, charts)| (*title, charts.len())).collect();
        let wanted = [
            ("GB/s", 1),
            ("share of the limit, %", 1),
            ("CPU seconds for a GB", 1),
            ("latency of a batch, us, by rank", 1),
        ];
        assert_eq!(titles, wanted);
        let lines = &groups[0].1[0].lines;
        let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["memcpy", "fast", "slow", "kvrail"]);
        assert_eq!((lines[3].colour, lines[0].width), (OURS[0], 1));
        let point = Point { across: 65536.0, up: 4.0, low: 2.0, high: 6.0 };
        assert_eq!(lines[3].points, [point]);
    }

    #[test]
    fn shares_are_of_the_limit_and_limits_have_none() {
        let groups = all(&results());
        let shares = &groups[1].1[0].lines;
        assert_eq!(shares.len(), 3);
        assert_eq!(shares[2].points[0].up, 25.0);
    }

    #[test]
    fn a_picture_shows_speed_cost_and_latency() {
        let titles: Vec<_> = chosen(&results()).into_iter().map(|chart| chart.title).collect();
        let wanted =
            ["read b16, GB/s", "read b16, CPU seconds for a GB", "read 64K b16, us by rank"];
        assert_eq!(titles, wanted);
        assert_eq!(chosen(&Results { rows: Vec::new(), ..results() }), []);
    }
}
