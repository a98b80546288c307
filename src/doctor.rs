//! What of kvrail works here, and what to do about the rest: facts are gathered first, each by
//! trying the thing or reading the kernel's text; judging them is pure.

mod facts;
mod judge;

use std::fmt;

pub use self::facts::{Answer, Facts};
pub use kvrail_reactors::probe::Limit;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, stable for scripts: `io_uring`, `memlock`.
    pub name: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What is so, in one sentence.
    pub what: String,
    /// What to do about it; beside [`Verdict::Ok`] a hint.
    pub remedy: Option<String>,
}

/// How bad a finding is; a worse one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All is well.
    Ok,
    /// It works, but not at its best.
    Warn,
    /// An engine can't work like this.
    Fail,
}

impl fmt::Display for Verdict {
    /// `ok`, `warn` or `fail`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// Examines the machine as this process sees it. Takes milliseconds, changes nothing and leaves
/// nothing behind.
pub fn examine() -> Vec<Finding> {
    judge(&Facts::here())
}

/// What to make of facts, check by check, always the same ones.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    judge::all(facts)
}
