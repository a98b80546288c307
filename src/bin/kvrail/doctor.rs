//! `kvrail doctor`: what works here, and what to do about the rest.

use clap::Args;
use kvrail::Result;
use kvrail::doctor::{Finding, Verdict, examine};
use serde_json::json;

use crate::table;

/// What `--help` says beneath the options.
pub const EXIT: &str = "\
Exit code: 0 when every check is ok or a warning, 1 when one fails.
Warnings: an engine runs, though not at its best. Failures: it does not run.";

#[derive(Args)]
pub struct Options {
    /// Prints one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Whether no check fails.
pub fn run(options: &Options) -> Result<bool> {
    let findings = examine();
    let worst = findings.iter().map(|found| found.verdict).max().unwrap_or(Verdict::Ok);
    if options.json {
        let checks: Vec<_> = findings.iter().map(check_json).collect();
        println!("{}", json!({ "verdict": worst.to_string(), "checks": checks }));
    } else {
        print(&findings, worst);
    }
    Ok(worst < Verdict::Fail)
}

fn check_json(found: &Finding) -> serde_json::Value {
    json!({
        "name": found.name,
        "verdict": found.verdict.to_string(),
        "what": found.what,
        "remedy": found.remedy,
    })
}

fn print(findings: &[Finding], worst: Verdict) {
    let mut checks = table::new(&["check", "verdict", "finding"]);
    for found in findings {
        let remedy =
            found.remedy.as_ref().map_or_else(String::new, |remedy| format!("\n→ {remedy}"));
        let text = format!("{}{remedy}", found.what);
        checks.add_row([found.name.to_owned(), found.verdict.to_string(), text]);
    }
    println!("{}", checks.trim_fmt());
    let warned = findings.iter().filter(|found| found.verdict == Verdict::Warn).count();
    match worst {
        Verdict::Ok => println!("\nall is well"),
        Verdict::Warn => println!("\nan engine runs here; {warned} warnings"),
        Verdict::Fail => println!("\nan engine does not run here"),
    }
}
