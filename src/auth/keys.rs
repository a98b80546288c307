//! Files of pre-shared keys. Pure: text in, keys out.

use std::fmt;

use super::hex;
use crate::limits::{KEY_NAME_MAX_BYTES, KEYS_MAX};
use crate::{Error, Result};

/// Bytes of a key: Noise takes no other.
pub(crate) const KEY_BYTES: usize = 32;

/// A key and who holds it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) secret: [u8; KEY_BYTES],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

/// The keys of a file, this engine's own first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keyring(Vec<Key>);

impl Keyring {
    /// Reads a file's text: `name = hexadecimal digits` in each line, `#` before comments.
    ///
    /// # Errors
    /// Refused: a line is no key, a name comes twice, or there are none or too many.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = key(line).ok_or_else(|| malformed(number))?;
            if keys.iter().any(|known| known.name == key.name) {
                return Err(Error::refused(format!("the key {:?} is there twice", key.name)));
            }
            keys.push(key);
        }
        match keys.len() {
            1..=KEYS_MAX => Ok(Self(keys)),
            count => Err(Error::refused(format!("{count} keys, of 1 to {KEYS_MAX}"))),
        }
    }

    /// This engine's own.
    pub(crate) fn own(&self) -> &Key {
        &self.0[0]
    }

    pub(crate) fn find(&self, name: &[u8]) -> Option<&Key> {
        self.0.iter().find(|key| key.name.as_bytes() == name)
    }
}

/// The line is not quoted: it may hold a secret.
fn malformed(line: usize) -> Error {
    Error::refused(format!(
        "line {line} of the keys is not `name = {} hexadecimal digits` (try `openssl rand -hex \
         {KEY_BYTES}`), the name of 1 to {KEY_NAME_MAX_BYTES} printable characters without spaces",
        2 * KEY_BYTES
    ))
}

fn key(line: &str) -> Option<Key> {
    let (name, digits) = line.split_once('=')?;
    let (name, digits) = (name.trim(), digits.trim());
    let is_fine = (1..=KEY_NAME_MAX_BYTES).contains(&name.len())
        && !name.contains(|c: char| c.is_control() || c.is_whitespace());
    let secret = hex::read(digits)?;
    is_fine.then(|| Key { name: name.to_owned(), secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_our_own_and_others_are_found_by_name() {
        let (a, b) = ("0a".repeat(KEY_BYTES), "Fb".repeat(KEY_BYTES));
        let text = format!("# ours\n prefill-1 = {a}\n\ndecode={b}\n");
        let keys = Keyring::parse(&text).unwrap();
        assert_eq!((keys.own().name.as_str(), keys.own().secret), ("prefill-1", [10; KEY_BYTES]));
        assert_eq!(keys.find(b"decode").unwrap().secret, [0xfb; KEY_BYTES]);
        assert!(keys.find(b"decod").is_none() && keys.find(b"").is_none());
    }

    #[test]
    fn a_bad_line_is_told_by_number_and_never_quoted() {
        let good = "0a".repeat(KEY_BYTES);
        let (short, sign) = (&good[1..], format!("+{}", &good[1..]));
        for bad in [
            "x",
            "a=1",
            &format!("=  {good}"),
            &format!("a b={good}"),
            &format!("a={short}"),
            &format!("a={sign}"),
            &format!("{}={good}", "n".repeat(KEY_NAME_MAX_BYTES + 1)),
        ] {
            let error = Keyring::parse(&format!("ok={good}\n{bad}")).unwrap_err().to_string();
            assert!(error.contains("line 2") && !error.contains(short), "{bad}: {error}");
        }
        assert!(Keyring::parse("# none\n").unwrap_err().to_string().contains("0 keys"));
        let twice = Keyring::parse(&format!("a={good}\na={good}")).unwrap_err().to_string();
        assert!(twice.contains("twice"), "{twice}");
    }
}
