//! What of a transfer stands behind an event of the caller's, or before one, by the shard that asks
//! the event's GPU: nobody is kept waiting for it.

use std::sync::Arc;

use kvrail_reactors::cuda::{Driver, Event, Failure, Group, Order, Pages, Recorded};

use crate::engine::Inner;
use crate::flight::Portion;
use crate::memory::gpu_error;
use crate::{Error, ErrorKind, Landed};

/// A batch's events, of the caller's own streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Events {
    /// Nothing of the batch begins before it has completed.
    pub(crate) after: Option<Event>,
    /// It completes when all of the batch's memory is quiet.
    pub(crate) before: Option<Event>,
}

/// Goes on with a flight that stood behind an event.
pub(crate) type GoOn = Box<dyn FnOnce(Portion) + Send>;

/// A part of a flight that moves no bytes.
pub(crate) struct AtEvent {
    pub(crate) portion: Portion,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) event: Event,
    /// What is done once the event has completed; where there is nothing, it is recorded.
    pub(crate) go_on: Option<GoOn>,
}

impl AtEvent {
    /// As work of the event's GPU, without copies.
    pub(crate) fn group(&self, tag: u64) -> (Group, Order) {
        let pages = Arc::new(Pages::none(self.driver.clone(), self.event.device()));
        let order = match self.go_on {
            Some(_) => Order { after: Some(self.event), before: None },
            None => Order { after: None, before: Some(self.recorded()) },
        };
        (Group { tag, pages }, order)
    }

    fn recorded(&self) -> Recorded {
        let flight = self.portion.flight().clone();
        let told = Box::new(move |recorded: Result<(), Failure>| {
            if recorded.is_ok() {
                flight.recorded();
            }
        });
        Recorded { event: self.event, told }
    }

    /// Why it need not be waited for any more, if so.
    pub(crate) fn ended_early(&self, now_ns: u64) -> Option<ErrorKind> {
        self.go_on.as_ref().and_then(|_| self.portion.flight().ended_early(now_ns))
    }

    /// The GPU is done with it.
    pub(crate) fn end(self, failure: Option<&Failure>) {
        match (failure, self.go_on) {
            (Some(failure), _) => {
                self.portion.fail_all(&gpu_error(failure).with_landed(Landed::No));
            }
            (None, Some(go_on)) => go_on(self.portion),
            // The flight knows whether it was recorded.
            (None, None) => self.portion.back_recorded(),
        }
    }

    /// Nothing that stands behind it begins.
    pub(crate) fn fail(self, error: &Error) {
        self.portion.fail_all(error);
    }
}

impl Inner {
    /// Goes on with a flight when the event that it stands behind has completed, at once where
    /// there is none. Until then `gate` keeps it from ending.
    pub(crate) fn behind(
        self: &Arc<Self>,
        gate: Portion,
        go_on: impl FnOnce(&Arc<Self>, Portion) + Send + 'static,
    ) {
        let Some(event) = gate.flight().plan.events.after else { return go_on(self, gate) };
        let engine = Arc::downgrade(self);
        // Without the engine the gate fails the flight as Closed.
        let go_on = move |gate: Portion| {
            if let Some(engine) = engine.upgrade() {
                go_on(&engine, gate);
            }
        };
        self.at_event(gate, event, Some(Box::new(go_on)));
    }

    /// Hands what is to be done at an event to the shard that asks its GPU.
    pub(crate) fn at_event(&self, portion: Portion, event: Event, go_on: Option<GoOn>) {
        let driver = match self.gpus().driver() {
            Ok(driver) => driver,
            Err(why) => return portion.fail_all(&Error::refused(format!("no VRAM: {why}"))),
        };
        self.post_to_gpu(event.device(), AtEvent { portion, driver, event, go_on }.into());
    }

    /// Whether the events of a batch are of GPUs that are here.
    ///
    /// # Errors
    /// Refused: one isn't.
    pub(crate) fn check_events(&self, events: Events) -> Result<(), Error> {
        for event in [events.after, events.before].into_iter().flatten() {
            let driver = self.gpus().driver();
            let driver = driver.map_err(|why| Error::refused(format!("no VRAM: {why}")))?;
            let (device, count) = (event.device(), driver.devices().len());
            if device as usize >= count {
                let what = format!("an event of cuda:{device}: this process has {count} GPUs");
                return Err(Error::refused(what));
            }
        }
        Ok(())
    }
}
