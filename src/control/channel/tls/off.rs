//! What stands in for TLS in a build without it: nothing that can exist.

use std::io;

use tokio::net::TcpStream;

use super::{Duplex, Files, Stream};
use crate::auth::{PeerId, TlsFiles};
use crate::error::{Error, Result};

/// Certificates: none.
pub(super) enum Tls {}

pub(super) fn load(_: &TlsFiles) -> Result<Files<Tls>> {
    Err(Error::refused("this build has no TLS: build kvrail with the feature `tls`, or use keys"))
}

pub(super) fn refusal(_: &io::Error) -> Option<Error> {
    None
}

impl Tls {
    pub fn own(&self) -> PeerId {
        match *self {}
    }

    pub async fn connect(&self, _: TcpStream, _: &str) -> Result<Stream> {
        match *self {}
    }

    pub async fn accept<S: Duplex + 'static>(&self, _: S) -> Result<(Stream, PeerId)> {
        match *self {}
    }
}
