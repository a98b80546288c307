//! Monotonic nanoseconds since the runtime was built, cheap enough for every turn of the hot loop.

/// A clock that all shards of a runtime share.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    clock: quanta::Clock,
    origin: u64,
}

impl Clock {
    /// Time begins now.
    pub(crate) fn new() -> Self {
        let clock = quanta::Clock::new();
        let origin = clock.raw();
        Self { clock, origin }
    }

    /// A world's time, the same in all its processes, whenever they start.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn of(clock: quanta::Clock) -> Self {
        Self { clock, origin: 0 }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.delta_as_nanos(self.origin, self.clock.raw())
    }
}
