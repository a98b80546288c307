//! What was measured, and what follows from it: medians and ratios. Pure.

use serde_json::{Value, json};

use super::bars::Bar;
use super::contender::Role;
use super::latency::Latency;
use super::plan::Cell;

/// So much of other work and a figure is doubtful: on two cores each side has one.
pub const NOISY_CORES: f64 = 0.25;

/// One contender's figures for one cell in one round.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figure {
    pub gigabytes_per_second: f64,
    /// Of a whole batch, where the contender says it.
    pub latency: Option<Latency>,
    /// Of all its processes together, where that is the machine's and not an emulator's.
    pub cpu_seconds_per_gigabyte: Option<f64>,
    /// Cores that others kept busy meanwhile: how far to trust the figure.
    pub foreign_cores: Option<f64>,
}

/// Who took part in a workload.
#[derive(Clone, PartialEq, Debug)]
pub struct Column {
    pub name: String,
    pub role: Role,
    /// What it does while it waits, in its own words.
    pub idle: String,
    /// Cores that its processes keep busy while nothing is asked of them.
    pub idle_cores: Option<f64>,
    /// Why it has no figures, or not all.
    pub note: Option<String>,
}

/// A cell's figures: by contender, then by round; none where there is no figure.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub cell: Cell,
    pub figures: Vec<Vec<Option<Figure>>>,
}

/// All figures of a workload.
#[derive(Clone, PartialEq, Debug)]
pub struct Results {
    pub workload: String,
    pub about: String,
    /// What ours has to reach.
    pub bar: Bar,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

/// Median, minimum and maximum.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of no values. The median of an even number is the mean of the middle two.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = (values.len() - 1) / 2;
        let median = (values[middle] + values[values.len() / 2]) / 2.0;
        Some(Self { median, min, max })
    }

    pub fn json(&self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

impl Row {
    /// Gigabytes a second of one contender.
    pub fn throughput(&self, column: usize) -> Option<Spread> {
        self.spread(column, |figure| Some(figure.gigabytes_per_second))
    }

    /// Any figure of one contender, over the rounds.
    pub fn spread(&self, column: usize, figure: impl Fn(&Figure) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.figures[column].iter().flatten().filter_map(figure))
    }

    /// How long one contender's batches took.
    pub fn latency(&self, column: usize) -> Option<Latency> {
        let rounds = self.figures[column].iter().flatten();
        Latency::median(&rounds.filter_map(|figure| figure.latency).collect::<Vec<_>>())
    }

    /// CPU seconds for a gigabyte of one contender, both sides.
    pub fn cpu(&self, column: usize) -> Option<Spread> {
        self.spread(column, |figure| figure.cpu_seconds_per_gigabyte)
    }

    /// One contender's throughput over another's, round by round: what drifts, drifts for both.
    pub fn ratio(&self, column: usize, base: usize) -> Option<Spread> {
        let rounds = self.figures[column].iter().zip(&self.figures[base]);
        Spread::of(rounds.filter_map(|(one, other)| {
            let (one, other) = (one.as_ref()?, other.as_ref()?);
            Some(one.gigabytes_per_second / other.gigabytes_per_second)
        }))
    }
}

impl Results {
    /// Ours over the best of a role (by its median) in one row, and which that is.
    pub fn ours_over(&self, row: &Row, role: Role) -> Option<(usize, Spread)> {
        let best = self.best(row, role)?;
        Some((best, row.ratio(self.ours()?, best)?))
    }

    /// Our column; the first, where there are several.
    pub fn ours(&self) -> Option<usize> {
        self.of(Role::Ours).next()
    }

    /// Whether any contender has a figure of this kind in any cell.
    pub fn tells(&self, has: impl Fn(&Row, usize) -> bool) -> bool {
        self.rows.iter().any(|row| (0..self.columns.len()).any(|at| has(row, at)))
    }

    /// The columns of a role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = usize> {
        (0..self.columns.len()).filter(move |&at| self.columns[at].role == role)
    }

    /// Who of a role has the highest median.
    pub fn best(&self, row: &Row, role: Role) -> Option<usize> {
        let medians = self.of(role).filter_map(|at| Some((at, row.throughput(at)?.median)));
        medians.max_by(|one, other| one.1.total_cmp(&other.1)).map(|(at, _)| at)
    }

    /// Every figure of every round, with what was made of them.
    pub fn json(&self) -> Value {
        let columns: Vec<_> = self.columns.iter().map(Column::json).collect();
        let rows: Vec<_> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({
            "workload": self.workload,
            "about": self.about,
            "bar": format!("{:?}", self.bar),
            "contenders": columns,
            "cells": rows,
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let measured = self.columns.iter().enumerate().map(|(at, column)| {
            let rounds: Vec<_> =
                row.figures[at].iter().map(|figure| figure.map(|figure| figure.json())).collect();
            json!({
                "contender": column.name,
                "rounds": rounds,
                "gigabytes_per_second": row.throughput(at).map(|spread| spread.json()),
            })
        });
        let ratio = |role| {
            let (best, spread) = self.ours_over(row, role)?;
            Some(json!({"to": self.columns[best].name, "ratio": spread.json()}))
        };
        json!({
            "operation": row.cell.operation,
            "block_bytes": row.cell.block_bytes,
            "batch": row.cell.batch,
            "walk": row.cell.walk,
            "measured": measured.collect::<Vec<_>>(),
            "ours_over_best_peer": ratio(Role::Peer),
            "ours_over_limit": ratio(Role::Limit),
        })
    }
}

impl Column {
    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "role": self.role.word(),
            "idle": self.idle,
            "idle_cores": self.idle_cores,
            "note": self.note,
        })
    }
}

impl Figure {
    /// Whether others worked beside it.
    pub fn is_noisy(&self) -> bool {
        self.foreign_cores.is_some_and(|cores| cores > NOISY_CORES)
    }

    fn json(&self) -> Value {
        json!({
            "gigabytes_per_second": self.gigabytes_per_second,
            "batch_latency_us": self.latency.map(|latency| latency.json()),
            "cpu_seconds_per_gigabyte": self.cpu_seconds_per_gigabyte,
            "foreign_cores": self.foreign_cores,
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::latency::tests::latency;
    use super::*;

    fn figure(gigabytes_per_second: f64) -> Option<Figure> {
        Some(Figure {
            gigabytes_per_second,
            latency: Some(latency(10.0)),
            cpu_seconds_per_gigabyte: Some(0.25),
            foreign_cores: Some(0.0),
        })
    }

    fn column(name: &str, role: Role) -> Column {
        let idle = "sleeps".to_owned();
        Column { name: name.into(), role, idle, idle_cores: Some(0.5), note: None }
    }

    /// Two rounds of ours, two peers, a limit with one figure, and a contender without any.
    pub fn results() -> Results {
        let columns = vec![
            column("kvrail", Role::Ours),
            column("slow", Role::Peer),
            column("fast", Role::Peer),
            column("memcpy", Role::Limit),
            Column { note: Some("no network".into()), ..column("absent", Role::Limit) },
        ];
        let figures = vec![
            vec![figure(2.0), figure(6.0)],
            vec![figure(1.0), figure(1.0)],
            vec![figure(4.0), figure(2.0)],
            vec![figure(8.0), None],
            vec![None, None],
        ];
        let cell = Cell { operation: "read", block_bytes: 65536, batch: 16, walk: 1, trace: None };
        let rows = vec![Row { cell, figures }];
        let (workload, about) = ("host".into(), "one host".into());
        Results { workload, about, bar: Bar::HostPeers, columns, rows }
    }

    #[test]
    fn spreads_are_medians_with_their_ends() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        let odd = Spread::of([5.0, 1.0, 2.0]);
        assert_eq!(odd, Some(Spread { median: 2.0, min: 1.0, max: 5.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).map(|spread| spread.median), Some(3.0));
    }

    #[test]
    fn ratios_pair_rounds_and_take_the_best_of_a_role() {
        let results = results();
        let row = &results.rows[0];
        let peer = results.ours_over(row, Role::Peer);
        // By its median the second peer is best; 2/4 and 6/2 are the rounds' ratios.
        assert_eq!(peer, Some((2, Spread { median: 1.75, min: 0.5, max: 3.0 })));
        let limit = results.ours_over(row, Role::Limit);
        assert_eq!(limit, Some((3, Spread { median: 0.25, min: 0.25, max: 0.25 })));
        assert_eq!(results.ours_over(row, Role::Ours).map(|found| found.1.median), Some(1.0));
    }

    #[test]
    fn json_has_every_round_and_the_ratios() {
        let json = results().json();
        let cell = &json["cells"][0];
        assert_eq!(cell["block_bytes"], 65536);
        assert_eq!(cell["measured"][0]["rounds"][1]["gigabytes_per_second"], 6.0);
        assert!(cell["measured"][3]["rounds"][1].is_null());
        assert!(cell["measured"][4]["gigabytes_per_second"].is_null());
        assert_eq!(cell["ours_over_best_peer"]["to"], "fast");
        assert_eq!(cell["ours_over_limit"]["ratio"]["median"], 0.25);
        assert_eq!(json["contenders"][4]["note"], "no network");
    }
}
