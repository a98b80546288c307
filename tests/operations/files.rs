//! The files of examples/operations say what the code does: the dashboard asks for the metrics that
//! there are, the seccomp profile lets io_uring through and refuses the rest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kvrail::metrics::{Kind, TABLE};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/operations").join(name)
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(file(name)).expect("it is there");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every expression of the dashboard's panels, with the panel's title.
fn expressions(dashboard: &Value) -> Vec<(&str, &str)> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels
        .flat_map(|panel| {
            let title = panel["title"].as_str().expect("a title");
            let targets = panel["targets"].as_array().expect("targets").iter();
            targets.map(move |target| (title, target["expr"].as_str().expect("an expression")))
        })
        .collect()
}

/// The names of kvrail's metrics in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    expression.split(move |c| !is_word(c)).filter(|word| word.starts_with("kvrail_"))
}

/// What a scraper sees of each metric, and the metric.
fn series() -> Vec<(String, &'static str)> {
    let of = |metric: &kvrail::metrics::Metric| {
        let suffixes: &[&str] = match metric.kind {
            Kind::Counter => &[""],
            Kind::Histogram => &["_bucket", "_count", "_sum"],
        };
        let name = metric.name;
        suffixes.iter().map(move |suffix| (format!("{name}{suffix}"), name)).collect::<Vec<_>>()
    };
    TABLE.iter().flat_map(of).collect()
}

#[test]
fn the_dashboard_shows_every_metric_and_asks_for_no_other() {
    let (dashboard, series) = (json("grafana.json"), series());
    let mut shown = BTreeSet::new();
    for (title, expression) in expressions(&dashboard) {
        for name in names(expression) {
            let found = series.iter().find(|(series, _)| series == name);
            let (_, metric) = found.unwrap_or_else(|| panic!("{title}: nobody records {name}"));
            shown.insert(*metric);
        }
    }
    let all: BTreeSet<_> = TABLE.iter().map(|metric| metric.name).collect();
    assert_eq!(shown, all, "what is shown, and what there is");
    // The list of processes, too.
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let queries = variables.iter().filter_map(|variable| variable["query"].as_str());
    for name in queries.flat_map(names) {
        assert!(series.iter().any(|(series, _)| series == name), "nobody records {name}");
    }
}

#[test]
fn panels_lie_side_by_side_and_have_their_own_numbers() {
    let dashboard = json("grafana.json");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len());
    let places: BTreeSet<_> = panels
        .iter()
        .map(|panel| (panel["gridPos"]["x"].as_u64(), panel["gridPos"]["y"].as_u64()))
        .collect();
    assert_eq!(places.len(), panels.len());
}
