//! The figures of a run as a table for people.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::messages::Aborted;
use crate::split::{Abort, Row, Run};

const LEGEND: &str = "\
transfer: time with a write under way; hidden: the part of it in which the prefill was computing
first and second token: seconds after the question, split / in a single process";

/// A line for each question.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "request",
        "tokens",
        "path",
        "moved",
        "transfer",
        "hidden",
        "first token",
        "second token",
        "logit hash",
    ]);
    for (index, row) in rows.iter().enumerate() {
        table.add_row(cells(index, row));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut paths: Vec<_> = rows.iter().map(|row| row.shipped.why.as_str()).collect();
    paths.dedup();
    let aborts: String = rows.iter().enumerate().filter_map(abort).collect();
    format!("{table}\n{aborts}path: {}\n{LEGEND}", paths.join("; "))
}

fn cells(index: usize, row: &Row) -> [String; 9] {
    let shipped = &row.shipped;
    let hidden = shipped.hidden.as_secs_f64() / shipped.transfer.as_secs_f64().max(1e-9);
    [
        (index + 1).to_string(),
        format!("{} + {}", row.prompt_tokens, row.split.tokens.len()),
        shipped.path.clone(),
        format!("{:.2} MB", shipped.bytes as f64 / 1e6),
        format!("{:.1} ms", shipped.transfer.as_secs_f64() * 1e3),
        format!("{:.1} %", hidden * 100.0),
        pair(row, |run| run.first),
        pair(row, |run| run.second),
        if row.is_equal() { "equal" } else { "differs" }.to_owned(),
    ]
}

/// What became of the request that was aborted before this one.
fn abort((index, row): (usize, &Row)) -> Option<String> {
    let Abort { decode, prefill } = row.aborted.as_ref()?;
    let Aborted { layers, blocks, took } = decode;
    let sent = prefill.as_ref().map_or("all".to_owned(), |dropped| dropped.layers.to_string());
    Some(format!(
        "before request {}: another was aborted when {layers} of its layers had arrived, and \
         {sent} sent;\n  its {blocks} blocks were taken back in {:.3} ms and used again at once\n",
        index + 1,
        took.as_secs_f64() * 1e3,
    ))
}

fn pair(row: &Row, time: impl Fn(&Run) -> Option<Duration>) -> String {
    let seconds = |run| time(run).map_or("–".to_owned(), |t| format!("{:.3}", t.as_secs_f64()));
    format!("{} / {}", seconds(&row.split), seconds(&row.single))
}
