//! Tables for a terminal: no lines, 100 columns at most.

use comfy_table::{ContentArrangement, Table, presets};

/// Columns of the widest line; longer cells are wrapped.
const COLUMNS: u16 = 100;

/// An empty table with a header.
pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(COLUMNS);
    table.set_header(header);
    table
}
