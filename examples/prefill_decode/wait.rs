//! Waiting for the other process, with an end to it.

use std::time::Duration;

use crate::llama::Failure;

/// A prompt that fills the pool takes half a minute on one slow core; ten minutes is for ever.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Blocks until `future` is done; `what` is said where it takes too long.
pub fn wait<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let late = |_| format!("{what} did not come within {} s", PATIENCE.as_secs()).into();
        tokio::time::timeout(PATIENCE, future).await.map_err(late)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_passed_on() {
        assert_eq!(wait("a number", async { 7 }).unwrap(), 7);
    }
}
