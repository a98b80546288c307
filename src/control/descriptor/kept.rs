//! A document's age, for services that neither know it nor end what nobody keeps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::limits::METADATA_SKEW_MS;

/// When a document was written, and for how long it is good without being written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Milliseconds since 1970-01-01, by the writer's clock.
    pub at_ms: u64,
    /// Milliseconds.
    pub for_ms: u64,
}

impl Kept {
    /// As of `now`, for the length of a lease.
    pub fn from(now: SystemTime, lease: Duration) -> Self {
        Self { at_ms: since_epoch_ms(now), for_ms: milliseconds(lease) }
    }

    /// Whether its writer has let it grow old, even if its clock is behind ours.
    pub fn is_over(&self, now: SystemTime) -> bool {
        let good_until_ms = self.at_ms.saturating_add(self.for_ms).saturating_add(METADATA_SKEW_MS);
        since_epoch_ms(now) > good_until_ms
    }
}

fn since_epoch_ms(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_over_when_nobody_has_kept_it_and_clocks_may_differ() {
        let written = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let kept = Kept::from(written, Duration::from_secs(15));
        let limit = Duration::from_secs(15) + Duration::from_millis(METADATA_SKEW_MS);
        assert!(!kept.is_over(written) && !kept.is_over(written + limit));
        assert!(kept.is_over(written + limit + Duration::from_millis(1)));
        assert!(!kept.is_over(UNIX_EPOCH), "a clock that is far behind proves nothing");
        let forever = Kept { at_ms: u64::MAX, for_ms: u64::MAX };
        assert!(!forever.is_over(written));
    }
}
