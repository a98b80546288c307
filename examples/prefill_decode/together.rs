//! Both roles in one process, on one engine that is its own peer: `--path local`.

use futures_lite::future::block_on;
use kvrail::Engine;

use crate::decode::Decode;
use crate::llama::Failure;
use crate::messages::{Order, Report};
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
        let Order::Ask(ask) = order else { return Err("there is no other engine here".into()) };
        let asked = decode.ask(ask)?;
        let request = wait("our own request", engine.notification())?;
        report(Report::Shipped(prefill.serve(&request)?))?;
        decode.answer(asked, report)?;
    }
    block_on(engine.stop());
    Ok(())
}
