//! The target: serves its memory until it is told to end, then drains.

use std::time::Duration;

use futures_lite::future::block_on;
use kvrail::{Engine, Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Options, buffers};

/// Serves until SIGTERM or SIGINT, and drains then; a second one stops at once.
pub(super) fn run(engine: &Engine, options: &Options) -> Result<()> {
    let failed = |error| Error::refused("signals can't be waited for").with_source(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.map_err(failed)?.block_on(async {
        // Before anybody knows of the target: whoever does may end it.
        let mut ends = Ends::new().map_err(failed)?;
        let _buffers = buffers(engine, options)?;
        block_on(engine.publish())?;
        println!("segment {}", engine.name());
        ends.next().await;
        tokio::select! {
            drained = engine.drain(Duration::from_secs_f64(options.drain)) => {
                if drained.is_complete() {
                    return Ok(());
                }
                let who = match drained.stayed() {
                    [] => "requests of others were under way".to_owned(),
                    stayed => format!("peers that stayed: {}", stayed.join(", ")),
                };
                Err(Error::busy(format!("not everything ended within {} s: {who}", options.drain)))
            }
            () = ends.next() => Err(Error::closed("ended before it was drained")),
        }
    })
}

/// The two signals that end a service.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
