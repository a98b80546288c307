//! What encrypts a data connection: a secret for each direction, drawn by the one that lets it in
//! and told with the pass, over the encrypted control channel. None of it outlives the connection,
//! and nothing of it is derived from keys or certificates, so what was overheard stays secret when
//! those get out.

use std::fmt;
use std::str::FromStr;

use kvrail_reactors::stream::SECRET_BYTES;
use zeroize::{Zeroize, Zeroizing};

use super::passes::random;
use super::{Pass, hex};
use crate::Result;

/// Bytes of both directions.
const SEAL_BYTES: usize = 2 * SECRET_BYTES;

/// The secrets of one connection. Boxed: moved about, it leaves no copies.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seal(Box<[u8; SEAL_BYTES]>);

impl Seal {
    /// One of the system's randomness.
    ///
    /// # Errors
    /// Busy: the system has none.
    pub(super) fn draw() -> Result<Self> {
        let mut seal = Self(Box::new([0; SEAL_BYTES]));
        random(&mut seal.0[..])?;
        Ok(seal)
    }

    /// What the side that connected sends under.
    pub(crate) fn of_guest(&self) -> &[u8; SECRET_BYTES] {
        self.0.first_chunk().expect("it has two")
    }

    /// What the side that lets it in sends under.
    pub(crate) fn of_host(&self) -> &[u8; SECRET_BYTES] {
        self.0.last_chunk().expect("it has two")
    }

    /// As text, which is as secret.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        // Room for all of it: growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * SEAL_BYTES));
        fmt::Write::write_fmt(&mut *text, format_args!("{}", hex::Shown(&self.0[..])))
            .expect("writing to a String does not fail");
        text
    }
}

impl Drop for Seal {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Logs are no place for it.
impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

/// Text that is no seal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoSeal;

impl FromStr for Seal {
    type Err = NoSeal;

    fn from_str(text: &str) -> Result<Self, NoSeal> {
        let mut bytes = hex::read(text).ok_or(NoSeal)?;
        let seal = Self(Box::new(bytes));
        bytes.zeroize();
        Ok(seal)
    }
}

/// What a connection gets in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) pass: Pass,
    /// What everything behind the pass is encrypted by; none where nothing is.
    pub(crate) seal: Option<Seal>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let seal = Seal::draw().unwrap();
        let text = seal.to_text();
        assert_eq!(text.parse(), Ok(seal.clone()));
        for bad in ["", &text[1..], &format!("{}0", *text), &text[..64]] {
            assert_eq!(bad.parse::<Seal>(), Err(NoSeal), "{bad}");
        }
    }

    #[test]
    fn directions_and_connections_share_nothing_and_no_log_shows_it() {
        let (one, other) = (Seal::draw().unwrap(), Seal::draw().unwrap());
        let secrets = [one.of_guest(), one.of_host(), other.of_guest(), other.of_host()];
        for (place, secret) in secrets.iter().enumerate() {
            assert!(!secrets[place + 1..].contains(secret));
        }
        assert_eq!(one.to_text()[..2 * SECRET_BYTES], hex::Shown(one.of_guest()).to_string());
        assert_eq!(format!("{one:?}"), "Seal");
    }
}
