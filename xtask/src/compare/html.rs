//! The report as one page that needs nothing else: facts, what was reached, tables and plots.

use super::bars::{self, Verdict};
use super::chart::{STYLE, sheet};
use super::contender::Role;
use super::facts::Facts;
use super::figures::{Results, Row, Spread};
use super::plots::{all, chosen, ink};
use super::report::{NONE, digits, latencies, method, spread};

const PAGE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;\
    padding:0 1em;color:#24292f;background:#fff}table{border-collapse:collapse;margin:1em 0}\
    td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #8884;white-space:nowrap;\
    font-variant-numeric:tabular-nums}td:first-child,th:first-child,.words td{text-align:left}\
    .words td{white-space:normal}.wide{overflow-x:auto}.plots{display:flex;flex-wrap:wrap}\
    .met{color:#1a7f37}.missed{color:#cf222e}\
    @media(prefers-color-scheme:dark){body{color:#d0d7de;background:#0d1117}\
    .met{color:#3fb950}.missed{color:#f85149}}";
/// The picture shows so many workloads, the first ones.
const PICTURED: usize = 2;

/// A kind of figures: its name, whether a contender has any in a cell, and what they look like.
type Kind = (&'static str, fn(&Row, usize) -> bool, fn(&Row, usize) -> String);
const KINDS: [Kind; 3] = [
    ("GB/s", |row, at| row.throughput(at).is_some(), |row, at| spread(row.throughput(at))),
    ("Latency of a batch, p50 / p99 in us", |row, at| row.latency(at).is_some(), latencies),
    (
        "CPU seconds for a GB, both sides",
        |row, at| row.cpu(at).is_some(),
        |row, at| spread(row.cpu(at)),
    ),
];

/// The whole page.
///
/// # Errors
/// A plot can't be drawn.
pub fn page(facts: &Facts, results: &[Results], rounds: usize) -> Result<String, String> {
    let title = "kvrail, its peers and the machine's limits";
    let facts = facts.lines.iter().map(|(name, value)| vec![escape(name), escape(value)]);
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>{PAGE}{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{}<p>{}</p>\n",
        table("words", &[], facts),
        escape(&method(rounds))
    );
    text += &format!("<h2>What was reached</h2>\n{}", overview(results));
    for one in results {
        text += &section(one)?;
    }
    Ok(text + "</body></html>\n")
}

/// A picture of the first workloads that have peers, for where the page is not.
///
/// # Errors
/// It can't be drawn.
pub fn picture(facts: &Facts, results: &[Results]) -> Result<String, String> {
    let shown = results.iter().filter(|one| one.of(Role::Peer).next().is_some());
    let rows = shown.map(|one| (format!("{}: {}", one.workload, one.about), chosen(one)));
    let rows: Vec<_> = rows.filter(|(_, charts)| !charts.is_empty()).take(PICTURED).collect();
    let is_told = |(name, _): &&(String, String)| ["date", "CPU"].contains(&name.as_str());
    let told = facts.lines.iter().filter(is_told).map(|(_, value)| value.as_str());
    let foot = "Median, and minimum to maximum, by bytes of a request. ";
    sheet(&rows, &(foot.to_owned() + &told.collect::<Vec<_>>().join(", ")))
}

/// A line for each workload: how many cells meet their bars, and the ratios.
fn overview(results: &[Results]) -> String {
    let head = ["workload", "speed", "CPU", "to best peer", "to limit", "idle cores"];
    let ratios = |one: &Results, role| {
        let ratio = |row| Some(one.ours_over(row, role)?.1.median);
        spread(Spread::of(one.rows.iter().filter_map(ratio)))
    };
    let line = |one: &Results| {
        let idle = one.ours().and_then(|at| one.columns[at].idle_cores);
        vec![
            format!("<a href=\"#{0}\">{0}</a>: {1}", escape(&one.workload), escape(&one.about)),
            count(one, bars::speed),
            count(one, bars::cpu),
            ratios(one, Role::Peer),
            ratios(one, Role::Limit),
            idle.map_or(NONE.to_owned(), |cores| format!("{cores:.3}")),
        ]
    };
    let note = "<p>Cells in which ours meets its bar, of those that have one; and ours over \
                theirs: the median of the cells, the worst and the best.</p>\n";
    table("", &head, results.iter().map(line)) + note
}

fn count(results: &Results, verdict: fn(&Results, &Row) -> Option<Verdict>) -> String {
    let verdicts: Vec<_> = results.rows.iter().filter_map(|row| verdict(results, row)).collect();
    let met = verdicts.iter().filter(|verdict| verdict.is_met()).count();
    match verdicts.len() {
        0 => NONE.to_owned(),
        all => coloured(met == all, &format!("{met} of {all}")),
    }
}

fn coloured(is_met: bool, text: &str) -> String {
    let class = if is_met { "met" } else { "missed" };
    format!("<span class=\"{class}\">{}</span>", escape(text))
}

fn section(results: &Results) -> Result<String, String> {
    let (name, about) = (escape(&results.workload), escape(&results.about));
    let mut text = format!("<h2 id=\"{name}\">{name}: {about}</h2>\n{}", contenders(results));
    text += &format!("<div class=\"wide\">{}</div>\n", cells(results));
    for (name, has, shown) in KINDS {
        if results.tells(has) {
            let figures = figures(results, shown);
            text +=
                &format!("<details><summary>{name}, everybody</summary>\n{figures}</details>\n");
        }
    }
    for (title, charts) in all(results) {
        text += &format!("<h3>{}</h3>\n<div class=\"plots\">\n", escape(title));
        for chart in charts {
            text += &chart.svg()?;
        }
        text += "</div>\n";
    }
    Ok(text)
}

/// Who took part, in the colours of the plots, and what each does while it waits.
fn contenders(results: &Results) -> String {
    let line = |at: usize| {
        let (column, ((red, green, blue), _)) = (&results.columns[at], ink(&results.columns, at));
        let idle = column.idle_cores.map_or(NONE.to_owned(), |cores| format!("{cores:.2}"));
        let name = escape(&column.name);
        vec![
            format!("<span style=\"color:rgb({red},{green},{blue})\">●</span> {name}"),
            column.role.word().to_owned(),
            escape(&column.idle),
            idle,
            escape(column.note.as_deref().unwrap_or_default()),
        ]
    };
    let head = ["", "", "while it waits (idle policy)", "idle cores", "not measured, or not all"];
    table("words", &head, (0..results.columns.len()).map(line))
}

/// Cell by cell: ours beside the best peer and the limit, and what is asked.
fn cells(results: &Results) -> String {
    let head = [
        "cell",
        "GB/s",
        "best peer",
        "ours to it",
        "limit",
        "ours to it",
        "bar",
        "reached",
        "CPU s/GB",
        "least peer's to ours",
        "p50 / p99 us",
    ];
    let line = |row: &Row| {
        let ours = results.ours().unwrap_or(0);
        let mut line = vec![escape(&row.cell.name()), spread(row.throughput(ours))];
        for role in [Role::Peer, Role::Limit] {
            let found = results.ours_over(row, role);
            let name = found.map(|(at, _)| escape(&results.columns[at].name));
            line.extend([name.unwrap_or(NONE.into()), spread(found.map(|found| found.1))]);
        }
        let speed = bars::speed(results, row);
        let cpu = row.cpu(ours).map_or(NONE.to_owned(), |used| digits(used.median));
        line.push(speed.as_ref().map_or(NONE.to_owned(), |verdict| escape(&verdict.bar)));
        line.extend([reached(speed), cpu, reached(bars::cpu(results, row)), latencies(row, ours)]);
        line
    };
    table("", &head, results.rows.iter().map(line))
}

fn reached(verdict: Option<Verdict>) -> String {
    let shown = |verdict: Verdict| {
        let word = if verdict.is_met() { "met" } else { "missed" };
        coloured(verdict.is_met(), &format!("{} {word}", digits(verdict.reached)))
    };
    verdict.map_or(NONE.to_owned(), shown)
}

/// What everybody reached, cell by cell.
fn figures(results: &Results, shown: impl Fn(&Row, usize) -> String) -> String {
    let names: Vec<_> = results.columns.iter().map(|column| escape(&column.name)).collect();
    let head: Vec<_> = std::iter::once("cell").chain(names.iter().map(String::as_str)).collect();
    let line = |row: &Row| {
        let measured = (0..results.columns.len()).map(|at| shown(row, at));
        std::iter::once(escape(&row.cell.name())).chain(measured).collect()
    };
    table("", &head, results.rows.iter().map(line))
}

/// Of cells that are HTML already.
fn table(class: &str, head: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let row = |cells: String| format!("<tr>{cells}</tr>\n");
    let head: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
    let lines: String = lines
        .map(|line| row(line.iter().map(|cell| format!("<td>{cell}</td>")).collect()))
        .collect();
    let head = if head.is_empty() { head } else { row(head) };
    format!("<table class=\"{class}\">\n{head}{lines}</table>\n")
}

/// Text as HTML.
fn escape(text: &str) -> String {
    let named = |letter| match letter {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        other => other.to_string(),
    };
    text.chars().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::results;
    use super::*;

    fn facts() -> Facts {
        let lines = [("date", "today"), ("CPU", "<fast> & \"good\""), ("kernel", "6.1")];
        Facts { lines: lines.map(|(name, value)| (name.into(), value.into())).into() }
    }

    #[test]
    fn a_page_has_facts_verdicts_contenders_and_plots_and_needs_no_other_file() {
        let text = page(&facts(), &[results()], 2).unwrap();
        assert!(text.contains("&lt;fast&gt; &amp; &quot;good&quot;"), "{text}");
        assert!(text.contains("<td>1.3 x fast</td><td><span class=\"met\">1.75 met</span>"));
        assert!(text.contains("<span class=\"met\">1 of 1</span>"), "{text}");
        for name in ["kvrail", "slow", "fast", "memcpy", "absent"] {
            assert!(text.contains(&format!("</span> {name}</td>")), "{name}");
        }
        assert!(text.contains("no network") && text.contains("<td>sleeps</td>"));
        assert_eq!(text.matches("<svg ").count(), 4);
        let outside = text.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !outside.contains("http") && !outside.contains("src=") && !text.contains("<script")
        );
    }

    #[test]
    fn tags_are_closed() {
        let text = page(&facts(), &[results(), results()], 2).unwrap();
        for tag in ["table", "tr", "td", "th", "div", "span", "svg", "h2", "h3", "details", "text"]
        {
            let opened = text.matches(&format!("<{tag}>")).count()
                + text.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, text.matches(&format!("</{tag}>")).count(), "{tag}");
            assert!(opened > 0, "{tag}");
        }
    }

    #[test]
    fn every_line_of_a_table_has_as_many_cells_as_its_head() {
        for text in [cells(&results()), figures(&results(), latencies), overview(&[results()])] {
            let heads = text.matches("<th>").count();
            assert_eq!(text.matches("<td>").count(), heads, "one line each: {text}");
        }
    }

    #[test]
    fn the_picture_says_where_its_figures_come_from() {
        let svg = picture(&facts(), &[results()]).unwrap();
        assert!(svg.contains("today, &lt;fast&gt;") && svg.contains("host: one host"), "{svg}");
    }
}
