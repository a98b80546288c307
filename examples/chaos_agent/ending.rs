//! How a transfer ends: by itself, by its deadline, cancelled or dropped; and what is known then.

use std::time::{Duration, Instant};

use kvrail::{Error, Landed, Outcome, Proof, Transfer};
use serde_json::{Value, json};

use crate::orders::Ending;

/// Sleeping is exact to a millisecond or two; shorter times are waited for by looking again.
const COARSE: Duration = Duration::from_millis(3);

/// What is known of a transfer that is over.
pub struct Over {
    pub outcome: Outcome,
    /// All of it ended well, its event too.
    pub is_complete: bool,
}

/// How it ended; none of a transfer that was dropped.
pub async fn end(mut transfer: Transfer, ending: Ending) -> Option<Over> {
    let after = match ending {
        Ending::Wait | Ending::Deadline { .. } => return Some(over(transfer.await)),
        Ending::Cancel { after_us } | Ending::Drop { after_us } => after_us,
    };
    let is_over = tokio::select! {
        biased;
        ended = &mut transfer => Some(over(ended)),
        () = pass(Duration::from_micros(after)) => None,
    };
    match (is_over, ending) {
        (None, Ending::Cancel { .. }) => {
            // Whether its event was delivered, nobody says.
            Some(Over { outcome: transfer.cancel().await, is_complete: false })
        }
        (is_over, _) => is_over,
    }
}

fn over(ended: Result<Outcome, kvrail::Failed>) -> Over {
    let is_complete = ended.is_ok();
    Over { outcome: ended.unwrap_or_else(kvrail::Failed::into_outcome), is_complete }
}

async fn pass(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        match time.saturating_sub(start.elapsed()) > COARSE {
            true => tokio::time::sleep(COARSE / 2).await,
            false => tokio::task::yield_now().await,
        }
    }
}

/// One request's end.
pub fn status(status: &Result<(), Error>) -> Value {
    match status {
        Ok(()) => json!({ "kind": "ok", "landed": "yes", "quiet": true }),
        Err(error) => json!({
            "kind": error.kind().label(),
            "landed": landed(error.landed()),
            "quiet": error.remote() == Proof::Quiet,
            "why": error.to_string(),
        }),
    }
}

/// The whole batch's.
pub fn receipt(outcome: &Outcome) -> Value {
    let receipt = outcome.receipt();
    json!({
        "quiet": receipt.remote() == Proof::Quiet,
        "landed": landed(receipt.landed()),
        "fenced": receipt.fenced().label(),
        "took_us": receipt.took().as_micros() as u64,
    })
}

fn landed(landed: Landed) -> &'static str {
    match landed {
        Landed::No => "no",
        Landed::Maybe => "maybe",
        Landed::Yes => "yes",
    }
}
