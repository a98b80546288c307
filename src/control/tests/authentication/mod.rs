//! Control planes that have to prove who they are: by keys, by certificates, and what whoever
//! can't do so is told.

mod hostile;
mod keys;
#[cfg(feature = "tls")]
pub(in crate::control) mod tls;
mod visits;

use super::*;
use crate::auth::Authentication;

/// A control plane on the loopback under this authentication.
fn start_as(authentication: Authentication) -> (Control, Arc<Engine>) {
    start(config_as(authentication))
}

fn config_as(authentication: Authentication) -> ControlConfig {
    ControlConfig { authentication, ..config("127.0.0.1") }
}

/// Who has asked for the engine's descriptor.
fn seen(engine: &Engine) -> Vec<PeerId> {
    engine.peers.lock().unwrap().clone()
}

fn named(name: &str) -> PeerId {
    PeerId::named([name.to_owned()])
}

/// A refusal, told by one of the words that say what to do, and never by waiting in vain.
fn refused(control: &Control, name: &str) -> Error {
    let error = wait(control.resolve(name, true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    error
}
