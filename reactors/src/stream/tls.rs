//! Kernel TLS on a TCP socket: the kernel seals what is sent into records of TLS 1.3 and opens
//! those that arrive, so that sends and receives stay what they are. There is no handshake here:
//! both ends have their keys from elsewhere.
//!
//! The cipher is ChaCha20-Poly1305. One key of it serves a connection however much it carries,
//! where AES-GCM's are worn out after some 400 GB (RFC 8446, 5.5), which a lane carries in minutes.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use zeroize::Zeroizing;

use super::Direction;

/// What one direction is encrypted by: a key, then the number that makes its nonces.
pub const SECRET_BYTES: usize = KEY_BYTES + IV_BYTES;

/// Of ChaCha20-Poly1305 (RFC 8439).
const KEY_BYTES: usize = 32;
const IV_BYTES: usize = 12;

/// `TLS_TX` and `TLS_RX` of linux/tls.h, and its names for the version and the cipher.
const TLS_TX: libc::c_int = 1;
const TLS_RX: libc::c_int = 2;
const TLS_1_3_VERSION: u16 = 0x0304;
const TLS_CIPHER_CHACHA20_POLY1305: u16 = 54;

/// `TLS_RX_EXPECT_NO_PAD` (Linux 6.0): records are opened straight into the receiver's memory. Our
/// senders don't pad; one that did would only cost its receiver a second try.
const TLS_RX_EXPECT_NO_PAD: libc::c_int = 4;

/// `struct tls12_crypto_info_chacha20_poly1305`: version, cipher, nonce, key, number of the first
/// record. It has no salt.
const INFO_BYTES: usize = 2 + 2 + IV_BYTES + KEY_BYTES + 8;

/// Has the kernel encrypt one direction from here on.
pub(super) fn begin(
    socket: &TcpStream,
    direction: Direction,
    secret: &[u8; SECRET_BYTES],
) -> io::Result<()> {
    match set(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls") {
        // The other direction came first.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => other?,
    }
    match direction {
        Direction::Send => set(socket, libc::SOL_TLS, TLS_TX, &*info(secret)),
        Direction::Receive => {
            set(socket, libc::SOL_TLS, TLS_RX, &*info(secret))?;
            // Older kernels don't know it, and do without.
            let _ = set(socket, libc::SOL_TLS, TLS_RX_EXPECT_NO_PAD, &1u32.to_ne_bytes());
            Ok(())
        }
    }
}

fn info(secret: &[u8; SECRET_BYTES]) -> Zeroizing<[u8; INFO_BYTES]> {
    let (key, iv) = secret.split_at(KEY_BYTES);
    let mut info = Zeroizing::new([0; INFO_BYTES]);
    info[..2].copy_from_slice(&TLS_1_3_VERSION.to_ne_bytes());
    info[2..4].copy_from_slice(&TLS_CIPHER_CHACHA20_POLY1305.to_ne_bytes());
    info[4..][..IV_BYTES].copy_from_slice(iv);
    info[4 + IV_BYTES..][..KEY_BYTES].copy_from_slice(key);
    info
}

fn set(socket: &TcpStream, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes of `value` during the call and keeps no pointer.
    match unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_key_and_nonce_where_it_looks_for_them() {
        let mut secret = [1; SECRET_BYTES];
        secret[KEY_BYTES..].fill(2);
        let told = info(&secret);
        assert_eq!(told.len(), 56, "linux/tls.h");
        assert_eq!(told[..4], [0x0304u16.to_ne_bytes(), 54u16.to_ne_bytes()].concat());
        assert!(told[4..16].iter().all(|byte| *byte == 2));
        assert!(told[16..48].iter().all(|byte| *byte == 1));
        assert!(told[48..].iter().all(|byte| *byte == 0), "records are counted from 0");
    }
}
