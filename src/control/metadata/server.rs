//! A metadata server: Mooncake's HTTP metadata API in memory, for clusters that run no other.
//!
//! `GET`, `PUT` and `DELETE` of `/metadata?key=<key>`, and `GET /health`. All is bounded: keys,
//! documents, connections and their lives. A connection carries one request, so that a slow client
//! holds its place for ten seconds at most and never against a newcomer.

pub(crate) mod listener;
mod store;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve::Listener as _};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::limits::{
    CONTROL_FRAME_MAX_BYTES, METADATA_BUFFERED_MAX_BYTES, METADATA_CONNECTION_MS,
    METADATA_CONNECTIONS_MAX, METADATA_KEYS_MAX, METADATA_TOTAL_MAX_BYTES,
};
use listener::Bounded;
use store::{Denied, Store};

/// Bounds of a server; the defaults and their reasons are in [`crate::limits`].
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Keys.
    pub keys: usize,
    /// Bytes of one document.
    pub document_bytes: usize,
    /// Bytes of all keys and documents.
    pub total_bytes: usize,
    /// Connections at once; the longest-waiting one makes room for a newcomer.
    pub connections: usize,
    /// Bytes of requests that all connections hold.
    pub buffered_bytes: usize,
    /// Life of a connection.
    pub connection: std::time::Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            keys: METADATA_KEYS_MAX,
            document_bytes: CONTROL_FRAME_MAX_BYTES,
            total_bytes: METADATA_TOTAL_MAX_BYTES,
            connections: METADATA_CONNECTIONS_MAX,
            buffered_bytes: METADATA_BUFFERED_MAX_BYTES,
            connection: std::time::Duration::from_millis(METADATA_CONNECTION_MS),
        }
    }
}

/// A running server on a thread of its own. Dropping it stops it and forgets what it kept.
#[derive(Debug)]
pub struct MetadataServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetadataServer {
    /// Listens on `address`, as in `("0.0.0.0", 8080)` or `"[::]:8080"`; port 0 takes a free one.
    pub fn start(address: impl ToSocketAddrs, limits: ServerLimits) -> Result<Self> {
        let refused = |error: io::Error| {
            Error::refused("the metadata server cannot listen: choose another host or port")
                .with_source(error)
        };
        let listener = TcpListener::bind(address).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("kvrail-metadata".to_owned())
            .spawn(move || run(listener, limits, stopped))
            .map_err(refused)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What an engine on this host is given to find it.
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{address}/metadata")
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        // Our end of `stop` stays alive in `self`, so the thread has no reason to end.
        let _ = self.thread.take().map(JoinHandle::join);
    }

    /// Stops and waits until the port is free.
    pub fn stop(self) {}
}

impl Drop for MetadataServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It reports nothing, and a panic in it has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(listener: TcpListener, limits: ServerLimits, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no tokio runtime for the metadata server"),
    };
    runtime.block_on(async {
        tokio::select! {
            served = serve(listener, limits) => {
                if let Err(error) = served {
                    tracing::error!(%error, "the metadata server ended");
                }
            }
            _ = stopped => {}
        }
    });
}

/// Serves on the calling tokio runtime until dropped.
pub async fn serve(listener: TcpListener, limits: ServerLimits) -> Result<()> {
    let failed = |error| Error::refused("the metadata server cannot serve").with_source(error);
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let listener = Bounded::new(listener, &limits);
    tracing::info!(address = ?listener.local_addr(), "metadata server listens");
    axum::serve(listener, router(limits)).await.map_err(failed)
}

type Shared = Arc<Mutex<Store>>;

fn router(limits: ServerLimits) -> Router {
    let document_bytes = limits.document_bytes;
    Router::new()
        .route("/metadata", get(read).put(write).delete(erase))
        .route("/health", get(async || "OK"))
        .layer(DefaultBodyLimit::max(document_bytes))
        .layer(map_response(close_after))
        .with_state(Arc::new(Mutex::new(Store::new(limits))))
}

/// One request for each connection: see the top of this file.
pub(crate) async fn close_after(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(default)]
    key: String,
}

async fn read(
    State(store): State<Shared>,
    Query(Parameters { key }): Query<Parameters>,
) -> Response {
    match lock(&store).get(&key) {
        Ok(Some(document)) => {
            ([(header::CONTENT_TYPE, "application/json")], document).into_response()
        }
        Ok(None) => (StatusCode::NOT_FOUND, "metadata not found").into_response(),
        Err(denied) => denied.into_response(),
    }
}

async fn write(
    State(store): State<Shared>,
    Query(Parameters { key }): Query<Parameters>,
    document: Bytes,
) -> Response {
    match lock(&store).put(&key, &document) {
        Ok(done) => done.into_response(),
        Err(denied) => denied.into_response(),
    }
}

async fn erase(
    State(store): State<Shared>,
    Query(Parameters { key }): Query<Parameters>,
) -> Response {
    match lock(&store).delete(&key) {
        Ok(true) => "metadata deleted".into_response(),
        Ok(false) => (StatusCode::NOT_FOUND, "metadata not found").into_response(),
        Err(denied) => denied.into_response(),
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::BAD_REQUEST,
        };
        (status, self.to_string()).into_response()
    }
}

/// The store is consistent between any two of its statements, so a panic does not spoil it.
fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}
