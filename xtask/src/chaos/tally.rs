//! What happened, counted: for the table, and for what must add up.

use std::collections::{BTreeMap, HashMap};

use comfy_table::{Table, presets};
use serde_json::Value;

use super::player::Plan;

/// Of one path.
#[derive(Default)]
pub struct Tally {
    pub transfers: u64,
    bytes: u64,
    by_path: BTreeMap<String, u64>,
    /// Requests by their end.
    ends: BTreeMap<String, u64>,
    /// Of the first that did not end well: which it was, and its error.
    first: Option<String>,
    /// Ends of batches that did not succeed, by remote side and whose word that is.
    receipts: BTreeMap<String, u64>,
    pub events: BTreeMap<&'static str, u64>,
    pub renewed: u64,
    doubtful: u64,
    receipt_us: Vec<u64>,
    revoked_us: Vec<u64>,
    back_us: Vec<u64>,
}

impl Tally {
    /// One transfer, with its answer; none where the requester was killed.
    pub fn transfer(&mut self, plan: &Plan, blocks: &[Value], answer: &Value) {
        self.transfers += 1;
        let path = answer["path"].as_str().unwrap_or("not started, or killed");
        count(&mut self.by_path, path);
        let Some(ends) = answer["ends"].as_array() else {
            let word = if answer.is_null() { "requester killed" } else { "dropped" };
            *self.ends.entry(word.to_owned()).or_default() += blocks.len() as u64;
            self.back_us.extend(answer["back_us"].as_u64());
            return;
        };
        for (end, block) in ends.iter().zip(blocks) {
            let kind = end["kind"].as_str().unwrap_or("?");
            count(&mut self.ends, kind);
            if kind != "ok" {
                self.first.get_or_insert_with(|| format!("{} in {plan:?}", end["why"]));
            }
            self.bytes += block["bytes"].as_u64().filter(|_| kind == "ok").unwrap_or(0);
        }
        let receipt = &answer["receipt"];
        if !receipt.is_null() && ends.iter().any(|end| end["kind"] != "ok") {
            let operation = if plan.write { "write" } else { "read" };
            let remote = if receipt["quiet"] == true { "quiet" } else { "unproven" };
            let fenced = receipt["fenced"].as_str().unwrap_or("?");
            count(&mut self.receipts, &format!("{operation} {remote}, by {fenced}"));
            self.receipt_us.extend(receipt["took_us"].as_u64());
        }
    }

    pub fn settled(&mut self, answer: &Value) {
        self.doubtful += answer["doubtful"].as_u64().unwrap_or(0);
        let revoked = answer["revoked_us"].as_array().into_iter().flatten();
        self.revoked_us.extend(revoked.filter_map(Value::as_u64));
    }

    pub fn event(&mut self, word: &'static str, times: usize) {
        *self.events.entry(word).or_default() += times as u64;
    }

    /// What has not ended well, or not gone by this path.
    pub fn astray(&self, path: &str) -> Option<String> {
        let end = self.ends.iter().find(|(end, _)| *end != "ok");
        let way = self.by_path.iter().find(|(way, _)| *way != path);
        let first = self.first.as_deref().unwrap_or("all ended well");
        let told =
            |(what, times)| format!("{times} transfers or requests: {what}; the first: {first}");
        end.or(way).map(told)
    }

    /// For people.
    pub fn table(&mut self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        let gigabytes = self.bytes as f64 / 1e9;
        table.add_row(["transfers", &format!("{} ({gigabytes:.1} GB)", self.transfers)]);
        table.add_row(["by path", &listed(self.by_path.iter())]);
        table.add_row(["requests", &listed(self.ends.iter())]);
        table.add_row(["receipts", &listed(self.receipts.iter())]);
        table.add_row(["trouble", &listed(self.events.iter())]);
        let renewed = format!("{}, for {} blocks in doubt", self.renewed, self.doubtful);
        table.add_row(["regions given up", &renewed]);
        for (what, times) in [
            ("receipt took", &mut self.receipt_us),
            ("revocation took", &mut self.revoked_us),
            ("dropped lease came back", &mut self.back_us),
        ] {
            table.add_row([what, &spread(times)]);
        }
        table.to_string()
    }
}

fn count(map: &mut BTreeMap<String, u64>, key: &str) {
    match map.get_mut(key) {
        Some(count) => *count += 1,
        None => drop(map.insert(key.to_owned(), 1)),
    }
}

fn listed<K: AsRef<str>>(counts: impl Iterator<Item = (K, impl std::fmt::Display)>) -> String {
    counts.map(|(key, count)| format!("{} {count}", key.as_ref())).collect::<Vec<_>>().join("\n")
}

/// The distribution of times, in milliseconds.
fn spread(times_us: &mut [u64]) -> String {
    times_us.sort_unstable();
    let at = |part: f64| {
        let index = ((times_us.len() - 1) as f64 * part).round() as usize;
        times_us[index] as f64 / 1e3
    };
    match times_us.len() {
        0 => "never".to_owned(),
        count => format!(
            "p50 {:.2} ms, p90 {:.2}, p99 {:.2}, max {:.2} ({count} times)",
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        ),
    }
}

/// How often each counter was advanced, as far as the requesters know.
#[derive(Default)]
pub struct Ledger {
    /// By owner, process of that name, and counter: surely, and perhaps besides.
    advances: HashMap<(usize, u8, u64), (u64, u64)>,
}

impl Ledger {
    /// A batch of writes ended; its counter was advanced just once if it ended well.
    pub fn count(&mut self, counter: (usize, u8, u64), answer: &Value) {
        let (surely, perhaps) = self.advances.entry(counter).or_default();
        match answer["complete"] == true {
            true => *surely += 1,
            false => *perhaps += 1,
        }
    }

    /// What is wrong with the counters of a process.
    pub fn check(&self, seat: usize, incarnation: u8, values: &Value) -> Option<String> {
        let values = values.as_array().into_iter().flatten().filter_map(Value::as_u64);
        values.zip(0..).find_map(|(value, counter)| {
            let known = self.advances.get(&(seat, incarnation, counter));
            let (surely, perhaps) = known.copied().unwrap_or_default();
            let fits = (surely..=surely + perhaps).contains(&value);
            (!fits).then(|| {
                format!(
                    "counter {counter} stands at {value}, after {surely} batches that ended well \
                     and {perhaps} that did not"
                )
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_shown_by_rank() {
        let mut times: Vec<u64> = (1..=100).rev().map(|ms| ms * 1000).collect();
        let shown = spread(&mut times);
        assert!(shown.starts_with("p50 51.00 ms, p90 90.00, p99 99.00, max 100.00"), "{shown}");
        assert_eq!(spread(&mut []), "never");
    }

    #[test]
    fn a_counter_is_advanced_once_for_each_success() {
        let mut ledger = Ledger::default();
        ledger.count((1, 0, 0), &json!({ "complete": true }));
        ledger.count((1, 0, 0), &Value::Null);
        for (value, fits) in [(0, false), (1, true), (2, true), (3, false)] {
            assert_eq!(ledger.check(1, 0, &json!([value])).is_none(), fits, "{value}");
        }
        assert!(ledger.check(1, 1, &json!([0])).is_none());
        assert!(ledger.check(0, 0, &json!([1])).is_some());
    }

    #[test]
    fn what_goes_astray_is_named() {
        let mut tally = Tally::default();
        let plan = Plan::calm(0, 1, 0, true);
        let answer = |path| json!({ "ends": [{ "kind": "ok" }], "path": path });
        tally.transfer(&plan, &[json!({})], &answer("host"));
        assert_eq!(tally.astray("host"), None);
        tally.transfer(&plan, &[json!({})], &answer("tcp"));
        assert!(tally.astray("host").is_some_and(|astray| astray.contains("tcp")));
    }

    #[test]
    fn what_ended_badly_has_a_receipt_in_the_table() {
        let mut tally = Tally::default();
        let plan = Plan::calm(0, 1, 0, true);
        let blocks = [json!({ "bytes": 4096 })];
        let receipt = json!({ "quiet": true, "fenced": "lane", "took_us": 7000 });
        let answer = |kind: &str| json!({ "ends": [{ "kind": kind }], "receipt": receipt });
        tally.transfer(&plan, &blocks, &answer("ok"));
        tally.transfer(&plan, &blocks, &answer("cancelled"));
        tally.transfer(&plan, &blocks, &Value::Null);
        let table = tally.table();
        for words in ["write quiet, by lane 1", "cancelled 1", "requester killed 1", "max 7.00"] {
            assert!(table.contains(words), "{table}");
        }
    }
}
