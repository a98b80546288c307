//! Both roles in one process, on one engine that is its own peer: `--path local`.

use futures_lite::future::block_on;
use kvrail::{Engine, Notification};

use crate::decode::Decode;
use crate::llama::Failure;
use crate::messages::{FirstToken, Order, Report};
use crate::options::Options;
use crate::prefill::Prefill;
use crate::wait::wait;
use crate::weights::Model;

pub fn run(
    model: &Model,
    options: &Options,
    orders: &flume::Receiver<Order>,
    report: &dyn Fn(Report) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let engine = Engine::builder().start()?;
    let mut prefill = Prefill::new(model, options, &engine)?;
    let mut decode = Decode::new(model, options, &engine, engine.local())?;
    report(Report::Ready(engine.name().to_owned()))?;
    for order in orders {
        match order {
            Order::Open(_) => return Err("there is no other engine here".into()),
            Order::Ask(ask) => {
                let asked = decode.ask(ask)?;
                report(prefill.serve(&next(&engine)?)?)?;
                decode.answer(asked, report)?;
            }
            Order::Abort(ask, layers) => {
                let asked = decode.ask(ask)?;
                let request = next(&engine)?;
                let (aborted, ended) = std::thread::scope(|scope| {
                    let serving = scope.spawn(|| prefill.serve(&request));
                    let aborted = decode.abort(asked, layers);
                    (aborted, serving.join().unwrap_or_else(|_| Err("it panicked".into())))
                });
                report(Report::Aborted(aborted?))?;
                report(ended?)?;
            }
        }
    }
    block_on(engine.stop());
    Ok(())
}

/// What decode has asked for. First tokens of requests that were aborted are nobody's.
fn next(engine: &Engine) -> Result<Notification, Failure> {
    loop {
        let notification = wait("our own request", engine.notification())?;
        if serde_json::from_slice::<FirstToken>(&notification.bytes).is_err() {
            return Ok(notification);
        }
    }
}
