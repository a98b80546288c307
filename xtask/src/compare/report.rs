//! Figures as people read them: a Markdown report, and a summary for the terminal.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::contender::Role;
use super::facts::Facts;
use super::figures::{NOISY_CORES, Results, Row, Spread};
use super::latency::Latency;

/// What stands where there is no figure.
pub const NONE: &str = "-";

/// The whole report.
pub fn markdown(facts: &Facts, results: &[Results], rounds: usize) -> String {
    let mut text = String::from("# kvrail, its peers and the machine's limits\n\n");
    for (name, value) in &facts.lines {
        text += &format!("- {name}: {value}\n");
    }
    text += &format!("\n{}\n", method(rounds));
    for one in results {
        text += &format!("\n## {}: {}\n", one.workload, one.about);
        text += &format!("\nGB/s\n\n{}\n", throughput(one));
        if one.tells(|row, at| row.latency(at).is_some()) {
            text += &format!("\nLatency of a batch, p50 / p99 in us\n\n{}\n", latency(one));
        }
        if one.tells(|row, at| row.cpu(at).is_some()) {
            text += &format!("\nCPU seconds for a GB, both sides\n\n{}\n", cpu(one));
        }
        text += &format!("\n{}", remarks(one));
    }
    text
}

/// How to read the figures.
pub fn method(rounds: usize) -> String {
    format!(
        "Each cell is measured by all contenders in turn, rounds: {rounds}. Median (min-max). \
         Ratios are ours over theirs, round by round, so that they outlive the drift of the \
         machine; the absolute figures don't. The best peer and the limit of a cell are those \
         with the highest median. b16 is a batch of 16 requests; one caller where none is named. \
         Throughput, latency and CPU are of the same run."
    )
}

fn throughput(results: &Results) -> Table {
    let is_there = |role| results.columns.iter().any(|column| column.role == role);
    let bases = [(Role::Peer, "to best peer"), (Role::Limit, "to limit")];
    let bases: Vec<_> = bases.into_iter().filter(|(role, _)| is_there(*role)).collect();
    let names: Vec<_> = bases.iter().map(|(_, name)| *name).collect();
    table(results, &names, |row| {
        let measured = (0..results.columns.len()).map(|at| spread(row.throughput(at)));
        let ratio = |role| spread(results.ours_over(row, role).map(|found| found.1));
        measured.chain(bases.iter().map(|(role, _)| ratio(*role))).collect()
    })
}

fn latency(results: &Results) -> Table {
    table(results, &[], |row| (0..results.columns.len()).map(|at| latencies(row, at)).collect())
}

/// The median and the 99th percentile of one contender's batches.
pub fn latencies(row: &Row, column: usize) -> String {
    let shown = |one: Latency| format!("{} / {}", digits(one.p50_us()), digits(one.p99_us()));
    row.latency(column).map_or(NONE.to_owned(), shown)
}

fn cpu(results: &Results) -> Table {
    table(results, &[], |row| {
        let median = |at| row.cpu(at).map(|spread| digits(spread.median));
        (0..results.columns.len()).map(|at| median(at).unwrap_or(NONE.into())).collect()
    })
}

/// What each contender does when idle, and who is missing.
fn remarks(results: &Results) -> String {
    let mut text = String::new();
    for column in &results.columns {
        let word = column.role.word();
        text += &format!("- {} ({word}): waits: {}", column.name, column.idle);
        if let Some(cores) = column.idle_cores {
            text += &format!("; idle it uses {cores:.2} cores");
        }
        if let Some(note) = &column.note {
            text += &format!("; not measured, or not all: {note}");
        }
        text += "\n";
    }
    text + &noise(results).unwrap_or_default()
}

/// How far to trust the figures.
fn noise(results: &Results) -> Option<String> {
    let all = || results.rows.iter().flat_map(|row| row.figures.iter().flatten().flatten());
    let foreign = Spread::of(all().filter_map(|figure| figure.foreign_cores))?;
    let noisy = all().filter(|figure| figure.is_noisy()).count();
    let (median, max, count) = (foreign.median, foreign.max, all().count());
    Some(format!(
        "- other work on this machine took {median:.2} cores, at most {max:.2}; {noisy} of {count} \
         figures were taken beside more than {NOISY_CORES} cores of it\n"
    ))
}

fn table(results: &Results, more: &[&str], cells: impl Fn(&Row) -> Vec<String>) -> Table {
    let mut table = plain();
    let names = results.columns.iter().map(|column| column.name.as_str());
    table.set_header(std::iter::once("cell").chain(names).chain(more.iter().copied()));
    for row in &results.rows {
        table.add_row(std::iter::once(row.cell.name()).chain(cells(row)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A table in Markdown, as wide as it gets.
pub fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// What to see at a glance, in 100 columns: ours over the others, in the middle and at worst.
pub fn summary(results: &[Results]) -> String {
    let mut text = String::new();
    for one in results {
        let count = one.rows.len();
        text += &format!("{:<11}{count} cells: {}\n", one.workload, one.about);
        for (role, name) in [(Role::Peer, "best peer"), (Role::Limit, "limit")] {
            if let Some(line) = against(one, role) {
                text += &format!("{:<11}over the {name}: {line}\n", "");
            }
        }
        for column in one.columns.iter().filter(|column| column.note.is_some()) {
            let note = column.note.as_deref().unwrap_or_default();
            text += &shortened(&format!("{:<11}{}: {note}", "", column.name));
        }
    }
    text
}

fn against(results: &Results, role: Role) -> Option<String> {
    let rows = results.rows.iter();
    let ratios: Vec<_> = rows
        .filter_map(|row| Some((results.ours_over(row, role)?.1.median, row.cell.name())))
        .collect();
    let middle = Spread::of(ratios.iter().map(|ratio| ratio.0))?.median;
    let ends = |(ratio, cell): &(f64, String)| format!("{} at {cell}", digits(*ratio));
    let worst = ratios.iter().min_by(|one, other| one.0.total_cmp(&other.0))?;
    let best = ratios.iter().max_by(|one, other| one.0.total_cmp(&other.0))?;
    Some(format!("{}, worst {}, best {}", digits(middle), ends(worst), ends(best)))
}

fn shortened(line: &str) -> String {
    const COLUMNS: usize = 100;
    let short: String = line.chars().take(COLUMNS).collect();
    short + "\n"
}

pub fn spread(spread: Option<Spread>) -> String {
    let shown = |spread: Spread| {
        let [median, min, max] = [spread.median, spread.min, spread.max].map(digits);
        format!("{median} ({min}-{max})")
    };
    spread.map_or(NONE.to_owned(), shown)
}

/// Three digits, which is more than repeats.
pub fn digits(value: f64) -> String {
    let places = match value {
        value if value < 0.1 => 4,
        value if value < 1.0 => 3,
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::results;
    use super::*;

    #[test]
    fn the_report_has_a_line_for_every_cell_and_says_who_is_missing() {
        let facts = Facts { lines: vec![("kernel".into(), "6.1".into())] };
        let text = markdown(&facts, &[results()], 2);
        assert!(text.contains("- kernel: 6.1\n"), "{text}");
        assert!(text.contains("## host: one host\n"), "{text}");
        let lines: Vec<_> =
            text.lines().filter(|line| line.starts_with("| read 64K b16")).collect();
        let cells =
            |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let throughput = cells(lines[0]);
        let wanted = ["4.00 (2.00-6.00)", "1.00 (1.00-1.00)", "3.00 (2.00-4.00)"];
        assert_eq!(throughput[2..5], wanted);
        assert_eq!(throughput[5..7], ["8.00 (8.00-8.00)", "-"]);
        assert_eq!(throughput[7..9], ["1.75 (0.500-3.00)", "0.250 (0.250-0.250)"]);
        assert_eq!(cells(lines[1])[2], "10.0 / 20.0");
        assert_eq!(cells(lines[2])[2..7], ["0.250", "0.250", "0.250", "0.250", "-"]);
        assert!(text.contains("absent (limit)") && text.contains("no network"), "{text}");
    }

    #[test]
    fn tables_are_aligned() {
        let text = throughput(&results()).to_string();
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.len() == 3 && widths.windows(2).all(|two| two[0] == two[1]), "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("|--")), "{text}");
    }

    #[test]
    fn the_summary_fits_a_terminal() {
        let mut one = results();
        one.columns[4].note = Some("a long story ".repeat(20));
        let text = summary(&[one]);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("over the best peer: 1.75, worst 1.75 at read 64K b16"), "{text}");
        assert!(text.contains("absent: a long story"), "{text}");
    }
}
