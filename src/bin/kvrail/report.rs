//! What a bench run found: for people as a table, for programs as JSON.

use std::time::Duration;

use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde_json::json;

use crate::size;

/// The figures of one run.
pub struct Report {
    pub operation: &'static str,
    pub path: &'static str,
    pub idle: String,
    pub block_bytes: usize,
    pub batch: usize,
    pub threads: usize,
    pub batches: u64,
    pub elapsed: Duration,
    /// Of this process; the peer's is not seen from here.
    pub cpu_seconds: f64,
    /// Nanoseconds from posting a batch to its end.
    pub latency: Histogram<u64>,
    /// The target drained before the time was over.
    pub is_cut_short: bool,
    pub verified: Option<bool>,
}

impl Report {
    fn gigabytes(&self) -> f64 {
        self.batches as f64 * self.batch as f64 * self.block_bytes as f64 * 1e-9
    }

    fn gigabytes_per_second(&self) -> f64 {
        self.gigabytes() / self.elapsed.as_secs_f64()
    }

    /// Infinite where nothing was moved.
    fn cpu_seconds_per_gigabyte(&self) -> f64 {
        self.cpu_seconds / self.gigabytes()
    }

    fn latency_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 * 1e-3
    }

    pub fn json(&self) -> String {
        json!({
            "operation": self.operation,
            "path": self.path,
            "idle": self.idle,
            "block_bytes": self.block_bytes,
            "batch": self.batch,
            "threads": self.threads,
            "batches": self.batches,
            "seconds": self.elapsed.as_secs_f64(),
            "gigabytes_per_second": self.gigabytes_per_second(),
            "cpu_seconds_per_gigabyte": self.cpu_seconds_per_gigabyte(),
            "batch_latency_us": {
                "p10": self.latency_us(0.1),
                "p25": self.latency_us(0.25),
                "p50": self.latency_us(0.5),
                "p75": self.latency_us(0.75),
                "p90": self.latency_us(0.9),
                "p99": self.latency_us(0.99),
                "p99_9": self.latency_us(0.999),
            },
            "drained": self.is_cut_short,
            "verified": self.verified,
        })
        .to_string()
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut row = |name: &str, value: String| {
            table.add_row([name.to_owned(), value]);
        };
        let blocks = size::show(self.block_bytes);
        row("operation", format!("{} over {}", self.operation, self.path));
        row("shape", format!("{blocks} x {} a batch, {} threads", self.batch, self.threads));
        row("throughput", format!("{:.3} GB/s", self.gigabytes_per_second()));
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            row(&format!("batch {name}"), format!("{:.1} us", self.latency_us(quantile)));
        }
        row("CPU, this side", format!("{:.3} s/GB", self.cpu_seconds_per_gigabyte()));
        row("idle policy", self.idle.clone());
        row("batches", format!("{} in {:.2} s", self.batches, self.elapsed.as_secs_f64()));
        if self.is_cut_short {
            row("cut short", "the target drains".to_owned());
        }
        if let Some(verified) = self.verified {
            row("data", if verified { "verified" } else { "DIFFERS" }.to_owned());
        }
        table
    }
}
