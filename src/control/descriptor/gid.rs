//! A GID as Mooncake writes it: 16 pairs of hexadecimal digits, joined by colons.

use serde::{Deserialize, Deserializer, Serializer, de};

/// Sixteen pairs and the colons between.
const TEXT_BYTES: usize = 16 * 3 - 1;

/// The address in Mooncake's text, lower-case.
pub fn text(gid: &[u8; 16]) -> String {
    let pairs: Vec<_> = gid.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

/// Reads that text, of either case; `None` for everything else.
pub fn parse(text: &str) -> Option<[u8; 16]> {
    if text.len() != TEXT_BYTES || !text.is_ascii() {
        return None;
    }
    let mut gid = [0; 16];
    let mut pairs = text.split(':');
    for byte in &mut gid {
        // A sign would pass as a digit.
        let pair = pairs.next().filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = (pair.len() == 2).then(|| u8::from_str_radix(pair, 16).ok())??;
    }
    pairs.next().is_none().then_some(gid)
}

pub fn serialize<S: Serializer>(gid: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(gid))
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 16], D::Error> {
    let read = String::deserialize(deserializer)?;
    parse(&read).ok_or_else(|| {
        de::Error::custom("a GID is 16 pairs of hexadecimal digits, joined by colons")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "fe:80:00:00:00:00:00:00:50:54:00:ff:fe:12:34:0a";

    #[test]
    fn mooncakes_text_is_read_and_written() {
        let gid = parse(TEXT).unwrap();
        assert_eq!((gid[0], gid[1], gid[15]), (0xfe, 0x80, 0x0a));
        assert_eq!(text(&gid), TEXT);
        assert_eq!(parse(&TEXT.to_uppercase()), Some(gid));
    }

    #[test]
    fn everything_else_is_not() {
        let long = format!("{TEXT}:00");
        let short = TEXT[3..].to_owned();
        for bad in [
            "",
            "fe80::1",
            "fe80:0000:0000:0000:5054:00ff:fe12:340a",
            &long,
            &short,
            &TEXT.replacen("fe", "+e", 1),
            &TEXT.replacen("fe", "gg", 1),
            &TEXT.replacen("fe:80", "fe::80", 1),
            &TEXT.replacen("fe:80", "f:e80", 1),
            &TEXT.replacen("fe", "é", 1),
            &TEXT.replace(':', "-"),
            &format!("{TEXT}\n"),
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(gid: [u8; 16]) {
            prop_assert_eq!(parse(&text(&gid)), Some(gid));
        }
    }
}
