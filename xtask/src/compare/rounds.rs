//! The rounds: for each cell every contender in turn, again and again, so that whatever drifts
//! drifts for all of them.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use super::Field;
use super::contender::{Contender, TRACE, Workload};
use super::figures::{Column, Figure, Results, Row};
use super::plan::{Cell, Pace, shapes_cells};
use super::process::Running;
use crate::shell::Shell;

/// What every workload's measurements share.
pub struct Rounds<'a> {
    pub shell: &'a Shell,
    pub field: &'a Field,
    pub cells: &'a [Cell],
    /// What `TRACE` is about.
    pub trace: Option<Cell>,
    pub count: usize,
    pub pace: Pace,
    pub logs: &'a Path,
}

/// A contender at the start of a workload, and what is known of it.
struct Entry<'a> {
    contender: &'a Contender,
    running: Option<Running>,
    column: Column,
}

impl Rounds<'_> {
    /// All workloads, one after the other; only the contenders of one are there at a time.
    pub fn run(&self, workloads: &[&Workload]) -> Vec<Results> {
        let figures = |one: &&Workload| one.contenders.len() * self.cells(one).len() * self.count;
        let measurements = workloads.iter().map(figures).sum();
        let minutes = self.pace.estimate_s(measurements) / 60.0;
        println!("{measurements} measurements at most: {minutes:.1} minutes");
        let bar = progress(measurements);
        let results = workloads.iter().map(|one| self.workload(one, &bar)).collect();
        bar.finish_and_clear();
        results
    }

    fn workload(&self, workload: &Workload, bar: &ProgressBar) -> Results {
        bar.set_message(format!("{}: starting", workload.name));
        let enter = |one| self.enter(workload.name, one);
        let mut entries: Vec<_> = workload.contenders.iter().map(enter).collect();
        let rows = self.cells(workload).into_iter().map(|cell| {
            let mut figures = vec![Vec::new(); entries.len()];
            for _ in 0..self.count {
                for (entry, figures) in entries.iter_mut().zip(&mut figures) {
                    let (name, shape) = (entry.contender.name, cell.name());
                    bar.set_message(format!("{}: {shape}, {name}", workload.name));
                    figures.push(entry.measure(cell, self.pace));
                    bar.inc(1);
                }
            }
            Row { cell, figures }
        });
        let rows = rows.collect();
        let columns = entries.into_iter().map(Entry::column).collect();
        let (name, about) = (workload.name.to_owned(), workload.about.to_owned());
        Results { workload: name, about, bar: workload.bar, columns, rows }
    }

    /// Those that were asked for, or a workload's own.
    fn cells(&self, workload: &Workload) -> Vec<Cell> {
        match (workload.shapes, self.trace) {
            (_, Some(cell)) if workload.name == TRACE.name => vec![cell],
            ([], _) => self.cells.to_vec(),
            (shapes, _) => shapes_cells(shapes),
        }
    }

    /// Starts a contender; one that can't be started stays in the tables and says why.
    fn enter<'a>(&self, workload: &str, contender: &'a Contender) -> Entry<'a> {
        let program = contender.program;
        let command = |segment: Option<&str>, is_target| {
            program.command(self.shell, contender, segment, is_target)
        };
        let started = match self.field.missing(program) {
            Some(why) => Err(why.to_owned()),
            None => Running::start(contender, &self.logs.join(workload), command),
        };
        let mut column = Column {
            name: contender.name.to_owned(),
            role: contender.role,
            idle: "unknown".to_owned(),
            idle_cores: None,
            note: started.as_ref().err().cloned(),
        };
        let mut running = started.ok();
        column.idle_cores = running.as_mut().and_then(|running| running.idle_cores().ok());
        Entry { contender, running, column }
    }
}

impl Entry<'_> {
    fn measure(&mut self, cell: Cell, pace: Pace) -> Option<Figure> {
        let running = self.running.as_mut()?;
        if cell.batch < self.contender.from_batch {
            return None;
        }
        let mut quietest: Option<Figure> = None;
        for _ in 0..=pace.retries {
            match running.measure(cell, pace) {
                Ok(figure) => quietest = Some(quieter(quietest, figure)),
                Err(why) => {
                    // The first reason explains the others.
                    self.column.note.get_or_insert(format!("{}: {why}", cell.name()));
                    break;
                }
            }
            if quietest.is_some_and(|figure| !figure.is_noisy()) {
                break;
            }
        }
        quietest
    }

    fn column(self) -> Column {
        let idle = self.running.and_then(|running| running.idle).unwrap_or(self.column.idle);
        Column { idle, ..self.column }
    }
}

/// The one beside which others worked less; nothing else decides, or luck would.
fn quieter(before: Option<Figure>, figure: Figure) -> Figure {
    let is_quieter = |before: &Figure| before.foreign_cores <= figure.foreign_cores;
    before.filter(is_quieter).unwrap_or(figure)
}

fn progress(measurements: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta:>4}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(measurements as u64).with_style(style)
}
