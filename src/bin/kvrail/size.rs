//! Sizes as people write them: `65536`, `64K`, `1M`, `16MiB`.

/// Reads a size in bytes; the suffixes K, M, G and T count in powers of 1024.
pub fn parse(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let suffix = text[digits.len()..].to_ascii_lowercase();
    let shift = match suffix.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{text:?} is not a size: write 65536, 64K, 1M or 2G")),
    };
    let number: usize = digits.parse().map_err(|_| format!("{text:?} is not a size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is more than memory can hold"))
}

/// A size in the largest unit that divides it.
pub fn show(bytes: usize) -> String {
    let units = [("G", 30), ("M", 20), ("K", 10)];
    let unit = units.iter().find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| bytes.to_string(), |(name, shift)| format!("{}{name}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [("0", 0), ("65536", 65536), ("64k", 65536), ("1M", 1 << 20)] {
            assert_eq!(parse(text), Ok(bytes));
        }
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        assert_eq!(parse("16MB"), Ok(16 << 20));
        for text in ["", "K", "1X", "-1", "1.5M", "99999999999T", "é"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(show(65536), "64K");
        assert_eq!(show(65537), "65537");
    }
}
