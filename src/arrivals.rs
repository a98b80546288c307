//! What peers tell us behind their data: counters and notifications, whichever way they came.

use crate::counter::Counters;
use crate::notification::{Notification, Notifications};
use crate::path::tcp::{Event, Status};

/// The receiving end of events.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    pub(crate) counters: Counters,
    pub(crate) notifications: Notifications,
}

impl Arrivals {
    /// Takes an event in whole or, where a queue is full or a counter unknown, not at all.
    pub(crate) fn event(&self, event: Event) -> Status {
        if let Some((id, _)) = event.count
            && !self.counters.is_open(id)
        {
            return Status::Refused;
        }
        if let Some((from, bytes)) = event.message
            && self.notifications.push(Notification { from, bytes }).is_err()
        {
            return Status::Busy;
        }
        match event.count {
            Some((id, amount)) if !self.counters.advance(id, amount) => Status::Refused,
            _ => Status::Ok,
        }
    }
}
