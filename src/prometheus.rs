//! The process's metrics in Prometheus' text format, and an engine's health, over HTTP: for
//! scrapers and for whoever restarts processes. Nothing here is on the data path.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Weak;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::control::metadata::server::{ServerLimits, close_after, listener::Bounded};
use crate::engine::{Engine, Inner};
use crate::limits::{EXPORTER_CONNECTIONS_MAX, EXPORTER_UPKEEP_MS, SECONDS_BUCKETS};
use crate::{Error, Result, metrics};

/// The recorder that all metrics of this process go to.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
}

/// A running server of `/metrics` and `/healthz`; dropping it stops it.
#[derive(Debug)]
pub struct Served {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Installs the recorder; what happened before is not counted, so do it before the first
    /// engine starts.
    ///
    /// # Errors
    /// Refused: another recorder of the `metrics` facade is installed; describe kvrail's metrics
    /// to that one by [`crate::metrics::describe`].
    pub fn install() -> Result<Self> {
        let seconds = Matcher::Suffix("_seconds".to_owned());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(seconds, &SECONDS_BUCKETS);
        let failed = |error| Error::refused("no metrics for Prometheus").with_source(error);
        let recorder = builder.map_err(failed)?.build_recorder();
        let handle = recorder.handle();
        ::metrics::set_global_recorder(recorder).map_err(|error| {
            let what = "another metrics recorder is installed: export by that one";
            Error::refused(what).with_source(error.to_string())
        })?;
        metrics::describe();
        Ok(Self { handle })
    }

    /// All metrics as of now, for a server of the caller's own, which answers with them as
    /// `text/plain; version=0.0.4`. Samples of histograms are kept until somebody asks.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Serves `GET /metrics` and `GET /healthz` at `address`, such as `127.0.0.1:9400` (port 0
    /// takes a free one), on a thread of its own. Health is 200 while the engine serves, else 503,
    /// with a body such as `{"status":"draining","engine":"10.0.0.7:16001","version":"0.1.0"}`.
    /// Whoever reaches the port reads them: there is no password.
    ///
    /// # Errors
    /// Refused: nobody can listen at the address.
    pub fn serve(&self, address: impl ToSocketAddrs, engine: &Engine) -> Result<Served> {
        let refused = |error: std::io::Error| {
            Error::refused("metrics can't be served: choose another address").with_source(error)
        };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let (stop, stopped) = oneshot::channel();
        let site = Site::new(self.handle.clone(), engine);
        let thread = std::thread::Builder::new()
            .name("kvrail-metrics".to_owned())
            .spawn(move || run(listener, site, stopped))
            .map_err(refused)?;
        Ok(Served { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Served {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It reports nothing, and a panic in it has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(listener: TcpListener, site: Site, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no tokio runtime for metrics"),
    };
    let handle = site.handle.clone();
    runtime.block_on(async {
        tokio::select! {
            served = serve(listener, site) => {
                if let Err(error) = served {
                    tracing::error!(%error, "metrics are served no more");
                }
            }
            () = keep_up(&handle) => {}
            _ = stopped => {}
        }
    });
}

async fn serve(listener: TcpListener, site: Site) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let limits = ServerLimits { connections: EXPORTER_CONNECTIONS_MAX, ..ServerLimits::default() };
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(health))
        .layer(map_response(close_after))
        .with_state(site);
    axum::serve(Bounded::new(listener, &limits), router).await
}

/// Sorts samples into their buckets though nobody scrapes, so that they don't pile up.
async fn keep_up(handle: &PrometheusHandle) {
    loop {
        tokio::time::sleep(Duration::from_millis(EXPORTER_UPKEEP_MS)).await;
        handle.run_upkeep();
    }
}

/// What is served. It does not keep the engine.
#[derive(Clone)]
struct Site {
    handle: PrometheusHandle,
    name: String,
    engine: Weak<Inner>,
}

impl Site {
    fn new(handle: PrometheusHandle, engine: &Engine) -> Self {
        Self { handle, name: engine.name().to_owned(), engine: engine.downgrade() }
    }

    fn status(&self) -> &'static str {
        match self.engine.upgrade() {
            None => "stopped",
            Some(engine) if engine.is_draining() => "draining",
            Some(_) => "serving",
        }
    }
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    engine: String,
    version: &'static str,
}

async fn scrape(State(site): State<Site>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], site.handle.render()).into_response()
}

async fn health(State(site): State<Site>) -> Response {
    let status = site.status();
    let code = if status == "serving" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let health = Health { status, engine: site.name, version: env!("CARGO_PKG_VERSION") };
    let body = serde_json::to_string(&health).unwrap_or_default();
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
