//! Which executor drives the shards, and why: the choice, and the probing before it.

use std::fmt;
use std::io;
use std::str::FromStr;

use kvrail_reactors::affinity;
use serde::{Deserialize, Serialize};

use crate::limits::MEMLOCK_MIN_BYTES;
use crate::{Error, Result};

/// What the shards wait on. Whatever is built on a runtime means the same on either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// [`Driver::Uring`] where the kernel gives it, else [`Driver::Epoll`], with a warning that
    /// says why and what to do.
    #[default]
    Auto,
    /// io_uring, or an error: completions, fewer system calls.
    Uring,
    /// epoll: works everywhere, in containers under the default seccomp profiles and with little
    /// locked memory.
    Epoll,
}

impl Driver {
    /// io_uring or epoll: which of the two to start, and why not the other if nobody chose.
    ///
    /// # Errors
    /// Refused, with the remedy, when io_uring was asked for and is not to be had.
    pub(super) fn choose(self) -> Result<(Self, Option<Error>)> {
        self.choose_by(probe)
    }

    fn choose_by(self, probe: impl FnOnce() -> Result<()>) -> Result<(Self, Option<Error>)> {
        match self {
            Self::Epoll => Ok((Self::Epoll, None)),
            Self::Uring => probe().map(|()| (Self::Uring, None)),
            Self::Auto => {
                Ok(probe()
                    .map_or_else(|error| (Self::Epoll, Some(error)), |()| (Self::Uring, None)))
            }
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

impl FromStr for Driver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Auto, Self::Uring, Self::Epoll];
        all.into_iter().find(|driver| driver.to_string() == text).ok_or_else(|| {
            Error::refused(format!("driver {text:?}: there are auto, uring and epoll"))
        })
    }
}

/// Says once a runtime which driver it has; `why_not` is what kept it from io_uring.
pub(super) fn announce(driver: Driver, why_not: Option<&Error>) {
    match why_not {
        Some(error) => tracing::warn!(%driver, why = %error, "io_uring is not used"),
        None => tracing::info!(%driver, "the shards run"),
    }
}

/// Whether glommio can run here. It would start its threads first and fail there.
fn probe() -> Result<()> {
    let limit = affinity::memlock_bytes()
        .map_err(|error| Error::refused("getrlimit failed").with_source(error))?;
    check_memlock(limit)?;
    affinity::probe_uring().map_err(no_uring)
}

fn check_memlock(limit_bytes: Option<u64>) -> Result<()> {
    match limit_bytes {
        Some(bytes) if bytes < MEMLOCK_MIN_BYTES => Err(Error::refused(format!(
            "this process may lock {bytes} bytes of memory, the io_uring executor needs \
             {MEMLOCK_MIN_BYTES}: raise it (`ulimit -l`, LimitMEMLOCK=, \
             `docker run --ulimit memlock=-1`)"
        ))),
        _ => Ok(()),
    }
}

fn no_uring(error: io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "a seccomp profile or the sysctl kernel.io_uring_disabled forbids it: allow \
             io_uring_setup, io_uring_enter and io_uring_register in the container's profile, \
             set the sysctl to 0"
        }
        io::ErrorKind::Unsupported => {
            "the kernel has none or a seccomp profile hides it: run Linux 5.11 or later and allow \
             io_uring_setup, io_uring_enter and io_uring_register in the container's profile"
        }
        _ => "raise the process's limits on memory and descriptors",
    };
    Error::refused(format!("io_uring can't be used: {remedy}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn little_locked_memory_is_refused_with_numbers() {
        let error = check_memlock(Some(64 << 10)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let text = error.to_string();
        assert!(text.contains("65536") && text.contains("524288"), "{text}");
        assert!(check_memlock(None).is_ok());
        assert!(check_memlock(Some(MEMLOCK_MIN_BYTES)).is_ok());
    }

    #[test]
    fn refused_io_uring_names_the_remedy() {
        for errno in [1, 38] {
            // EPERM, ENOSYS
            let error = no_uring(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("io_uring_setup"), "{error}");
        }
    }

    #[test]
    fn the_choice_follows_the_wish_and_then_the_kernel() {
        let refused = || Err(Error::refused("no"));
        assert_eq!(Driver::Auto.choose_by(|| Ok(())).unwrap().0, Driver::Uring);
        let (driver, why) = Driver::Auto.choose_by(refused).unwrap();
        assert!(driver == Driver::Epoll && why.is_some());
        assert!(Driver::Uring.choose_by(refused).is_err());
        let (driver, why) = Driver::Epoll.choose_by(refused).unwrap();
        assert!(driver == Driver::Epoll && why.is_none());
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for driver in [Driver::Auto, Driver::Uring, Driver::Epoll] {
            assert_eq!(driver.to_string().parse::<Driver>().unwrap(), driver);
            assert_eq!(serde_json::to_string(&driver).unwrap(), format!("\"{driver}\""));
        }
        assert!("kqueue".parse::<Driver>().unwrap_err().to_string().contains("epoll"));
    }
}
