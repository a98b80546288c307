//! Mistakes that can be switched on for one thread, to prove that the simulator finds them. There
//! is no switch outside of tests and the simulator: elsewhere every question is a constant `false`.

/// A mistake that the field has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// A request ends while the reactor may still store into its memory.
    ReuseBeforeFence,
    /// Our own side is quiet, and the peer's is claimed to be so too.
    LocalFence,
    /// An event that may have been delivered is sent again, or counts again.
    CountedTwice,
    /// A message does not ring the doorbell of the shard that sleeps.
    LostWake,
    /// A grant is known by its place only: the next tenant's is taken for that of the last. Or what
    /// a read finds of its generation is not looked at.
    GenerationUnchecked,
    /// A queue pair is reset, and taken for drained.
    #[cfg(any(test, fuzzing, feature = "sim", feature = "rdma"))]
    ResetInsteadOfError,
}

#[cfg(any(test, feature = "sim"))]
mod switch {
    use std::cell::Cell;

    use super::Canary;

    thread_local! {
        static ON: Cell<Option<Canary>> = const { Cell::new(None) };
    }

    impl Canary {
        /// Every one of them.
        pub const ALL: [Self; 6] = [
            Self::ReuseBeforeFence,
            Self::LocalFence,
            Self::CountedTwice,
            Self::LostWake,
            Self::GenerationUnchecked,
            Self::ResetInsteadOfError,
        ];

        /// Its name on the command line.
        pub fn name(self) -> &'static str {
            match self {
                Self::ReuseBeforeFence => "reuse-before-fence",
                Self::LocalFence => "local-fence",
                Self::CountedTwice => "counted-twice",
                Self::LostWake => "lost-wake",
                Self::GenerationUnchecked => "generation-unchecked",
                Self::ResetInsteadOfError => "reset-instead-of-error",
            }
        }

        /// The canary of this name.
        pub fn named(name: &str) -> Option<Self> {
            Self::ALL.into_iter().find(|canary| canary.name() == name)
        }
    }

    /// Whether this thread makes the mistake.
    pub(crate) fn is_on(canary: Canary) -> bool {
        ON.get() == Some(canary)
    }

    /// From here on this thread makes this mistake, or none.
    pub(crate) fn set(canary: Option<Canary>) {
        ON.set(canary);
    }
}

#[cfg(any(test, feature = "sim"))]
pub(crate) use self::switch::{is_on, set};

/// Nobody makes mistakes on purpose here.
#[cfg(not(any(test, feature = "sim")))]
pub(crate) const fn is_on(_canary: Canary) -> bool {
    false
}
