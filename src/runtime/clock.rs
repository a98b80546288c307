//! Monotonic nanoseconds since the runtime was built, cheap enough for every turn of the hot loop.

/// A clock that all shards of a runtime share.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    clock: quanta::Clock,
    origin: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self::of(quanta::Clock::new())
    }

    /// Time begins now; it need not be the machine's.
    pub(crate) fn of(clock: quanta::Clock) -> Self {
        let origin = clock.raw();
        Self { clock, origin }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.delta_as_nanos(self.origin, self.clock.raw())
    }
}
