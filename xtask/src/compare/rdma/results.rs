//! What the guest told, by cell, and what follows from it: medians, ratios, and the table. Pure.

use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use super::super::figures::Spread;
use super::super::report::{NONE, plain, spread};
use super::guest::{Plan, Told};
use super::system::System;

/// Whose throughput over whose.
const RATIOS: [(System, System); 3] = [
    (System::Kvrail, System::Perftest),
    (System::Kvrail, System::Mooncake),
    (System::Mooncake, System::Perftest),
];

/// All figures.
pub struct Results {
    pub rows: Vec<Row>,
    /// Why a system has no figures, or not all.
    pub notes: Vec<(System, String)>,
}

/// A cell's figures in MB/s: by system, then by round; none where there is no figure.
pub struct Row {
    pub cell: String,
    figures: Vec<Vec<Option<f64>>>,
}

impl Results {
    /// From all that the guest wrote, and what was known before.
    pub fn of(plan: &Plan, told: &[Told], mut notes: Vec<(System, String)>) -> Self {
        let row = |cell: String| {
            let figure = |system: System, round| {
                let is_it = |told: &&Told| {
                    (told.round, &*told.cell, &*told.system) == (round, &*cell, system.word())
                };
                told.iter().find(is_it)?.result.as_ref().ok().copied()
            };
            let rounds = |system| (0..plan.rounds).map(|round| figure(system, round)).collect();
            Row { figures: System::ALL.map(rounds).into(), cell: cell.clone() }
        };
        let rows = plan.cells().iter().map(|cell| row(cell.name())).collect();
        for system in System::ALL {
            // The first reason explains the others.
            let mut of_it = told.iter().filter(|told| told.system == system.word());
            let why = of_it.find_map(|told| {
                Some(format!(
                    "{}, round {}: {}",
                    told.cell,
                    told.round,
                    told.result.as_ref().err()?
                ))
            });
            notes.extend(why.map(|why| (system, why)));
        }
        Self { rows, notes }
    }

    /// Whether a system has a figure in each cell.
    pub fn is_complete(&self, system: System) -> bool {
        self.rows.iter().all(|row| row.throughput(system).is_some())
    }

    pub fn table(&self) -> Table {
        let mut table = plain();
        let names = System::ALL.map(|system| system.word().to_owned()).into_iter();
        let ratios = RATIOS.map(|(one, other)| format!("{} / {}", one.word(), other.word()));
        table.set_header(std::iter::once("cell".to_owned()).chain(names).chain(ratios));
        for row in &self.rows {
            let measured = System::ALL.map(|system| spread(row.throughput(system)));
            let ratios = RATIOS.map(|(one, other)| spread(row.ratio(one, other)));
            table.add_row(std::iter::once(row.cell.clone()).chain(measured).chain(ratios));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// For the terminal: each cell's medians in a line.
    pub fn summary(&self) -> String {
        let rate = |row: &Row, system| match row.throughput(system) {
            Some(spread) => format!("{} {:.1}", system.word(), spread.median),
            None => format!("{} {NONE}", system.word()),
        };
        let line = |row: &Row| {
            let rates = System::ALL.map(|system| rate(row, system)).join(", ");
            format!("{:<16}{rates} MB/s\n", row.cell)
        };
        self.rows.iter().map(line).collect()
    }

    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(Row::json).collect::<Vec<_>>();
        let notes = self.notes.iter().map(|(system, why)| json!([system.word(), why]));
        json!({"cells": rows, "notes": notes.collect::<Vec<_>>()})
    }
}

impl Row {
    fn of(&self, system: System) -> &[Option<f64>] {
        &self.figures[System::ALL.iter().position(|one| *one == system).unwrap_or_default()]
    }

    pub fn throughput(&self, system: System) -> Option<Spread> {
        Spread::of(self.of(system).iter().flatten().copied())
    }

    /// Round by round: what drifts, drifts for both.
    pub fn ratio(&self, one: System, other: System) -> Option<Spread> {
        let rounds = self.of(one).iter().zip(self.of(other));
        Spread::of(rounds.filter_map(|(one, other)| Some((*one)? / (*other)?)))
    }

    fn json(&self) -> Value {
        let by_name = |system: System| (system.word().to_owned(), json!(self.of(system)));
        let rounds: serde_json::Map<_, _> = System::ALL.map(by_name).into_iter().collect();
        let ratios = RATIOS.map(|(one, other)| {
            let ratio = self.ratio(one, other).map(|spread| spread.json());
            (format!("{}_over_{}", one.word(), other.word()), json!(ratio))
        });
        let ratios: serde_json::Map<_, _> = ratios.into_iter().collect();
        json!({"cell": self.cell, "megabytes_per_second": rounds, "ratios": ratios})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: &str = "write 64K b16";

    fn told(round: usize, cell: &str, system: &str, result: Result<f64, String>) -> Told {
        Told { round, cell: cell.to_owned(), system: system.to_owned(), result }
    }

    fn results() -> Results {
        let plan = Plan {
            rounds: 3,
            seconds: 1.0,
            sizes: vec![65536],
            batches: vec![16],
            systems: Vec::new(),
        };
        let told = [
            told(0, WRITE, "perftest", Ok(40.0)),
            told(1, WRITE, "perftest", Ok(20.0)),
            told(2, WRITE, "perftest", Ok(50.0)),
            told(0, WRITE, "mooncake", Ok(20.0)),
            told(1, WRITE, "mooncake", Err("it told no throughput".to_owned())),
            told(2, WRITE, "mooncake", Ok(100.0)),
            told(0, "read 64K b16", "perftest", Ok(1.0)),
        ];
        Results::of(&plan, &told, vec![(System::Kvrail, "not built".to_owned())])
    }

    #[test]
    fn ratios_are_of_the_same_round_and_gaps_are_no_figures() {
        let results = results();
        let row = &results.rows[0];
        let found = row.ratio(System::Mooncake, System::Perftest);
        assert_eq!(found, Some(Spread { median: 1.25, min: 0.5, max: 2.0 }));
        assert_eq!(row.ratio(System::Kvrail, System::Perftest), None);
        assert_eq!(row.throughput(System::Perftest).map(|spread| spread.median), Some(40.0));
        let kvrail = (System::Kvrail, "not built".to_owned());
        let mooncake = "write 64K b16, round 1: it told no throughput".to_owned();
        assert_eq!(results.notes, [kvrail, (System::Mooncake, mooncake)]);
        assert!(results.is_complete(System::Perftest) && !results.is_complete(System::Mooncake));
        let raw = results.json();
        assert_eq!(raw["cells"][0]["megabytes_per_second"]["mooncake"], json!([20.0, null, 100.0]));
        assert_eq!(raw["cells"][0]["ratios"]["mooncake_over_perftest"]["max"], 2.0);
    }

    #[test]
    fn the_table_has_every_cell_and_the_summary_fits_a_terminal() {
        let results = results();
        let text = results.table().to_string();
        let row = text.lines().find(|line| line.contains("write 64K b16")).unwrap();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[2..5], ["40.0 (20.0-50.0)", "60.0 (20.0-100)", "-"]);
        assert_eq!(cells[5..8], ["-", "-", "1.25 (0.500-2.00)"]);
        let summary = results.summary();
        let first = "write 64K b16   perftest 40.0, mooncake 60.0, kvrail - MB/s\n";
        assert!(summary.starts_with(first), "{summary}");
    }
}
