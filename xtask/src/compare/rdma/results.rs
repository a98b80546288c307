//! What the guest told, as the figures of a workload. Pure.

use super::super::bars::Bar;
use super::super::contender::Role;
use super::super::figures::{Column, Figure, Results, Row};
use super::super::plan::Cell;
use super::NAME;
use super::guest::{Plan, Told};
use super::system::System;

const MEGABYTES: f64 = 1e3;

/// All figures, from all that the guest wrote, and why systems are not there.
pub fn results(plan: &Plan, told: &[Told], missing: &[(System, String)]) -> Results {
    let column = |system| column(system, note(system, told, missing));
    let row = |cell: Cell| {
        let rounds = |system| (0..plan.rounds).map(move |round| figure(told, round, cell, system));
        Row { cell, figures: System::ALL.map(|system| rounds(system).collect()).into() }
    };
    Results {
        workload: NAME.to_owned(),
        about: "two processes, two soft-RoCE NICs of one guest".to_owned(),
        bar: Bar::Rdma,
        columns: System::ALL.map(column).into(),
        rows: plan.cells().into_iter().map(row).collect(),
    }
}

fn column(system: System, note: Option<String>) -> Column {
    let (role, idle) = match system {
        System::Kvrail => (Role::Ours, "polls for 50 us, then sleeps"),
        System::Mooncake => (Role::Peer, "its workers poll without end"),
        System::Perftest => (Role::Limit, "polls without end"),
    };
    Column { name: system.word().to_owned(), role, idle: idle.to_owned(), idle_cores: None, note }
}

/// Why a system has no figures, or not all: the first reason explains the others.
fn note(system: System, told: &[Told], missing: &[(System, String)]) -> Option<String> {
    let missing = missing.iter().find(|(one, _)| *one == system).map(|(_, why)| why.clone());
    let mut of_it = told.iter().filter(|told| told.system == system.word());
    let failed = || {
        let of_one = |told: &Told| {
            let why = told.result.as_ref().err()?;
            Some(format!("{}, round {}: {why}", told.cell, told.round))
        };
        of_it.find_map(of_one)
    };
    missing.or_else(failed)
}

fn figure(told: &[Told], round: usize, cell: Cell, system: System) -> Option<Figure> {
    let is_it = |told: &&Told| {
        told.round == round && told.cell == cell.name() && told.system == system.word()
    };
    let megabytes_per_second = told.iter().find(is_it)?.result.as_ref().ok()?;
    Some(Figure {
        gigabytes_per_second: megabytes_per_second / MEGABYTES,
        latency: None,
        cpu_seconds_per_gigabyte: None,
        foreign_cores: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::figures::Spread;
    use super::super::super::{facts::Facts, html, report};
    use super::*;

    const WRITE: &str = "write 64K b16";

    fn told(round: usize, cell: &str, system: &str, result: Result<f64, String>) -> Told {
        Told { round, cell: cell.to_owned(), system: system.to_owned(), result }
    }

    fn example() -> Results {
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
        results(&plan, &told, &[(System::Kvrail, "not built".to_owned())])
    }

    #[test]
    fn figures_are_of_their_rounds_and_gaps_are_none() {
        let results = example();
        let row = &results.rows[0];
        assert_eq!(row.ratio(1, 0), Some(Spread { median: 1.25, min: 0.5, max: 2.0 }));
        assert_eq!(row.ratio(2, 0), None);
        assert_eq!(row.throughput(0).map(|spread| spread.median), Some(0.04));
        let notes: Vec<_> = results.columns.iter().map(|column| column.note.as_deref()).collect();
        let mooncake = "write 64K b16, round 1: it told no throughput";
        assert_eq!(notes, [None, Some(mooncake), Some("not built")]);
    }

    #[test]
    fn reports_speak_of_what_was_measured_alone() {
        let (facts, results) = (Facts { lines: Vec::new() }, [example()]);
        let text = report::markdown(&facts, &results, 3);
        assert!(text.contains("0.0400 (0.0200-0.0500)"), "{text}");
        assert!(!text.contains("CPU seconds") && !text.contains("Latency of"), "{text}");
        assert!(!text.contains("other work"), "nobody looked at it: {text}");
        let page = html::page(&facts, &results, 3).unwrap();
        assert!(page.contains("GB/s, everybody") && !page.contains("CPU seconds for a GB, every"));
        assert_eq!(page.matches("<svg ").count(), 3, "two operations, one beside its limit");
    }
}
