//! A client of the HTTP metadata API: GET, PUT and DELETE of `<url>?key=<key>`. It has no lease and
//! does not compare: what another engine has is found by looking, and put again if it is missing.

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::time::Duration;

use super::store::{Document, Entry, Put, in_time};
use crate::control::ControlLimits;
use crate::control::address::Address;
use crate::error::{Error, Result};
use crate::limits::CONTROL_FRAME_MAX_BYTES;

/// What curl escapes: all but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Port of a URL that has none.
const HTTP_PORT: u16 = 80;

/// How much of a server's error text is quoted.
const QUOTED_MAX_CHARS: usize = 160;

pub(super) struct HttpStore {
    url: String,
    client: Client<HttpConnector, Full<Bytes>>,
    timeout: Duration,
}

impl HttpStore {
    /// Checks the URL; asks nobody yet.
    pub fn new(url: &str, limits: &ControlLimits) -> Result<Self> {
        server_of(url)?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(limits.metadata_connect));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { url: url.to_owned(), client, timeout: limits.metadata_request })
    }

    /// The document, if there is one.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        match self.send(Method::GET, key, Bytes::new()).await? {
            (StatusCode::OK, body) => Ok(Some(body)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => Err(self.unexpected("GET", key, status, &body)),
        }
    }

    /// Stores what of the entry isn't there yet, the daemon's address first, as Mooncake does.
    pub async fn put(&self, entry: &Entry, before: Option<&[u8]>) -> Result<Put> {
        if before != Some(&entry.rpc.text) {
            if before.is_some() {
                // Mooncake's own server never replaces such a document.
                self.erase(&entry.rpc.key).await?;
            }
            if self.write(&entry.rpc).await? == Put::Taken {
                return Ok(Put::Taken);
            }
        }
        self.write(&entry.ram).await
    }

    /// Writes the descriptor anew, whose age then is none, if the name is still ours.
    pub async fn renew(&self, entry: &Entry) -> Result<bool> {
        let is_ours = self.get(&entry.rpc.key).await?.as_deref() == Some(&entry.rpc.text[..]);
        Ok(is_ours && self.write(&entry.ram).await? == Put::Stored)
    }

    /// Deletes both documents, even if one of them fails to go.
    pub async fn delete(&self, entry: &Entry) -> Result<()> {
        match self.get(&entry.rpc.key).await? {
            Some(theirs) if *theirs != entry.rpc.text[..] => return Ok(()),
            _ => {}
        }
        let rpc = self.erase(&entry.rpc.key).await;
        let ram = self.erase(&entry.ram.key).await;
        rpc.and(ram)
    }

    async fn write(&self, document: &Document) -> Result<Put> {
        let Document { key, text } = document;
        match self.send(Method::PUT, key, text.clone().into()).await? {
            (StatusCode::OK, _) => Ok(Put::Stored),
            // How each server words it differs; they deny nothing else about such a key.
            (StatusCode::BAD_REQUEST, _) if key.contains("rpc_meta") => Ok(Put::Taken),
            (status, body) => Err(self.unexpected("PUT", key, status, &body)),
        }
    }

    async fn erase(&self, key: &str) -> Result<()> {
        match self.send(Method::DELETE, key, Bytes::new()).await? {
            (StatusCode::OK | StatusCode::NOT_FOUND, _) => Ok(()),
            (status, body) => Err(self.unexpected("DELETE", key, status, &body)),
        }
    }

    async fn send(&self, method: Method, key: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let uri = format!("{}?key={}", self.url, utf8_percent_encode(key, ESCAPED));
        let mut request = Request::builder().method(&method).uri(uri);
        if method == Method::PUT {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| {
            Error::refused(format!("the key {key:?} makes no URL")).with_source(error)
        })?;
        let answer = in_time(self.timeout, self.exchange(request)).await;
        answer.map_err(|error| error.with_peer(&*self.url))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
        let response = self.client.request(request).await.map_err(|error| {
            Error::lost("the metadata server cannot be reached: is it running?").with_source(error)
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), CONTROL_FRAME_MAX_BYTES).collect().await;
        let body = body.map_err(|error| {
            Error::lost("the metadata server's answer broke off or exceeds 1 MiB")
                .with_source(error)
        })?;
        Ok((status, body.to_bytes()))
    }

    fn unexpected(&self, method: &str, key: &str, status: StatusCode, body: &[u8]) -> Error {
        let text: String = String::from_utf8_lossy(body).chars().take(QUOTED_MAX_CHARS).collect();
        Error::refused(format!(
            "the metadata server answered {method} {key:?} with {status}: {text}"
        ))
        .with_peer(&*self.url)
    }
}

/// Host and port of a metadata server's URL, which must be `http://host[:port]/path`.
pub(super) fn server_of(url: &str) -> Result<Address> {
    let shown: String = url.chars().take(100).collect();
    let refused = |why: &str| Error::refused(format!("the metadata URL {shown:?} {why}"));
    let uri: Uri = url.parse().map_err(|error| {
        refused("is malformed: expected http://host:port/metadata").with_source(error)
    })?;
    match (uri.scheme_str(), uri.authority(), uri.query()) {
        (Some("http"), Some(authority), None) if !authority.host().is_empty() => {
            let host = authority.host().trim_start_matches('[').trim_end_matches(']');
            Ok(Address::new(host, authority.port_u16().unwrap_or(HTTP_PORT)))
        }
        (Some("http"), Some(_), Some(_)) => {
            Err(refused("must not have a query: the key goes there"))
        }
        (Some("https"), ..) => Err(refused("asks for TLS, which this build lacks: use http")),
        _ => Err(refused("is of no known kind: expected http://host:port/metadata")),
    }
}
