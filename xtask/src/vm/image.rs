//! The compressed kernel inside a vmlinuz, by the x86 boot protocol, which stands in the kernel's
//! Documentation/arch/x86/boot.rst. Pure.

/// Where the header holds the number of setup sectors; 0 means 4.
const SETUP_SECTORS_AT: usize = 0x1f1;
const SECTOR: usize = 512;
/// "HdrS" marks a header of this protocol.
const MAGIC_AT: usize = 0x202;
/// The payload's offset behind the setup sectors, and its length; since protocol 2.08.
const PAYLOAD_OFFSET_AT: usize = 0x248;
const PAYLOAD_LENGTH_AT: usize = 0x24c;
/// The payload ends in the unpacked kernel's size, which no decompressor wants to see.
const SIZE_BYTES: usize = 4;

/// How the payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Xz,
    Zstd,
}

impl Packing {
    /// The program that unpacks it from its input to its output.
    pub fn program(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

/// Finds the compressed kernel in a vmlinuz.
pub fn payload(image: &[u8]) -> Result<(Packing, &[u8]), String> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    if image.get(MAGIC_AT..MAGIC_AT + 4) != Some(b"HdrS") {
        return Err("this is no Linux kernel image: its boot header is missing".to_owned());
    }
    let sectors = match image[SETUP_SECTORS_AT] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let found =
        word(PAYLOAD_OFFSET_AT).zip(word(PAYLOAD_LENGTH_AT)).and_then(|(offset, length)| {
            let start = (sectors + 1) * SECTOR + offset;
            image.get(start..start.checked_add(length.checked_sub(SIZE_BYTES)?)?)
        });
    let payload = found.ok_or("the kernel image is shorter than its header says")?;
    match payload {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok((Packing::Xz, payload)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok((Packing::Zstd, payload)),
        _ => Err("the kernel is packed neither by xz nor by zstd".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZSTD: [u8; 8] = [0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4];

    /// Two setup sectors, then 16 bytes of other things, then the payload and its size.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR + 16];
        image[SETUP_SECTORS_AT] = 2;
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET_AT] = 16;
        image[PAYLOAD_LENGTH_AT] = (payload.len() + SIZE_BYTES) as u8;
        image.extend_from_slice(payload);
        image.extend_from_slice(&[9; SIZE_BYTES]);
        image
    }

    #[test]
    fn the_payload_is_found_behind_the_setup_sectors() {
        assert_eq!(payload(&image(&ZSTD)), Ok((Packing::Zstd, &ZSTD[..])));
        let xz = b"\xfd7zXZ\0...";
        assert_eq!(payload(&image(xz)), Ok((Packing::Xz, &xz[..])));
    }

    #[test]
    fn no_setup_sectors_means_four() {
        let mut image = image(&ZSTD);
        image[SETUP_SECTORS_AT] = 0;
        image.splice(3 * SECTOR..3 * SECTOR, [0; 2 * SECTOR]);
        assert_eq!(payload(&image), Ok((Packing::Zstd, &ZSTD[..])));
    }

    #[test]
    fn other_files_are_told_apart() {
        assert!(payload(b"\x7fELF").unwrap_err().contains("no Linux kernel"));
        assert!(payload(&image(b"\x1f\x8b gzip")).unwrap_err().contains("neither"));
        let whole = image(&ZSTD);
        assert!(payload(&whole[..whole.len() - 5]).unwrap_err().contains("shorter"));
        let mut long = image(&ZSTD);
        long[PAYLOAD_LENGTH_AT..PAYLOAD_LENGTH_AT + 4].fill(0xff);
        assert!(payload(&long).unwrap_err().contains("shorter"));
        let mut empty = image(&ZSTD);
        empty[PAYLOAD_LENGTH_AT] = 0;
        assert!(payload(&empty).unwrap_err().contains("shorter"));
    }
}
