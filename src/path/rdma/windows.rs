//! Windows of a target: what a grant covers is opened to one endpoint's queue pairs, and closed
//! before the grant counts as taken back.

use std::collections::BTreeSet;

use kvrail_reactors::region::Slice;
use kvrail_reactors::verbs::{Operation, RemoteAccess, RemoteKey, WorkRequest};

use super::action::Action;
use super::message::{EndpointName, Message, Strike};
use super::target::{Accepted, State, Target, marker};
use crate::limits::RDMA_WINDOWS_MAX;

/// A window on each queue of an endpoint.
#[derive(Debug)]
pub(super) struct Window {
    stage: Stage,
    keys: Vec<RemoteKey>,
    access: RemoteAccess,
    /// Work requests that have not completed.
    pending: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The owner is asked what the grant covers.
    Asked,
    /// The grant was taken back before the owner's answer.
    Unwanted,
    /// It opens, or is open where nothing is pending.
    Open,
    Closing,
}

/// What a grant opens, for a window of it.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) memory: Slice,
    pub(crate) addr: u64,
    /// The key of the region around it, on the endpoint's NIC.
    pub(crate) region: RemoteKey,
    pub(crate) access: RemoteAccess,
    /// Fresh keys, one a queue.
    pub(crate) keys: Vec<RemoteKey>,
}

impl Window {
    /// Whether this work request is one of its own.
    pub(super) fn awaits(&self, id: u64) -> bool {
        self.pending.contains(&id)
    }
}

impl Target {
    /// A peer asks for a window on an endpoint of its own.
    pub(super) fn bind(&mut self, peer: u64, name: EndpointName, grant: u128) {
        let is_revoked = self.revoking.contains(&grant);
        let Some(known) = self.accepted.get_mut(&name) else { return };
        if known.state != State::Open {
            return;
        }
        match known.windows.get(&grant) {
            Some(window) if window.stage == Stage::Open && window.pending.is_empty() => {
                self.tell_bound(name, grant);
            }
            Some(window) if window.stage == Stage::Closing => {
                self.strike(peer, name, grant, Strike::Gone);
            }
            Some(_) => {}
            None if is_revoked => self.strike(peer, name, grant, Strike::Gone),
            None if known.windows.len() >= RDMA_WINDOWS_MAX => {
                self.strike(peer, name, grant, Strike::Full);
            }
            None => {
                let (keys, pending) = (Vec::new(), BTreeSet::new());
                let (stage, access) = (Stage::Asked, RemoteAccess { read: false, write: false });
                known.windows.insert(grant, Window { stage, keys, access, pending });
                self.actions.push(Action::Granted { name, grant });
            }
        }
    }

    fn strike(&mut self, peer: u64, name: EndpointName, grant: u128, why: Strike) {
        self.actions.push(Action::Tell { peer, message: Message::Struck { name, grant, why } });
    }

    /// The answer to [`Action::Granted`]: what to open, if the grant is good. `false` where nothing
    /// is opened: the keys are free again.
    pub(crate) fn granted(
        &mut self,
        name: EndpointName,
        grant: u128,
        granted: Result<Granted, Strike>,
    ) -> bool {
        let Some(known) = self.accepted.get_mut(&name) else { return false };
        let (peer, queues) = (known.peer, known.queues.len());
        let Some(window) = known.windows.get_mut(&grant) else { return false };
        let is_asked = matches!(window.stage, Stage::Asked | Stage::Unwanted);
        if known.state != State::Open || !is_asked {
            return false;
        }
        let is_wanted = window.stage == Stage::Asked;
        let granted = match granted {
            Ok(granted) if is_wanted && granted.keys.len() == queues => granted,
            refused => {
                known.windows.remove(&grant);
                self.strike(peer, name, grant, refused.err().unwrap_or(Strike::Gone));
                self.check_revoked();
                return false;
            }
        };
        window.stage = Stage::Open;
        window.keys.clone_from(&granted.keys);
        window.access = granted.access;
        let requests = granted.keys.iter().map(|&window| granted.bind(window)).collect();
        self.post_each(name, grant, requests);
        true
    }

    /// Closes every window to a grant; [`Action::Revoked`] follows when none is open any more.
    pub(crate) fn revoke(&mut self, grant: u128) {
        self.revoking.insert(grant);
        let holds =
            |known: &Accepted| known.state == State::Open && known.windows.contains_key(&grant);
        let holders = self.accepted.iter().filter(|(_, known)| holds(known));
        let holders: Vec<_> = holders.map(|(name, known)| (*name, known.peer)).collect();
        for (name, peer) in holders {
            self.close_window(name, grant);
            self.strike(peer, name, grant, Strike::Gone);
        }
        self.check_revoked();
    }

    fn close_window(&mut self, name: EndpointName, grant: u128) {
        let known = self.accepted.get_mut(&name);
        let Some(window) = known.and_then(|known| known.windows.get_mut(&grant)) else { return };
        match window.stage {
            Stage::Asked => window.stage = Stage::Unwanted,
            Stage::Open => {
                window.stage = Stage::Closing;
                let invalidate = |key: &RemoteKey| {
                    let operation = Operation::Invalidate(*key);
                    WorkRequest { operation, ..marker(0) }
                };
                let requests = window.keys.iter().map(invalidate).collect();
                self.post_each(name, grant, requests);
            }
            Stage::Unwanted | Stage::Closing => {}
        }
    }

    /// Posts one work request of a window's on each queue.
    fn post_each(&mut self, name: EndpointName, grant: u128, requests: Vec<WorkRequest>) {
        let Some(known) = self.accepted.get_mut(&name) else { return };
        let Some(window) = known.windows.get_mut(&grant) else { return };
        for (queue, request) in known.queues.iter().zip(requests) {
            let id = self.next_id;
            self.next_id += 1;
            window.pending.insert(id);
            let (nic, qp, requests) =
                (known.nic, queue.number, vec![WorkRequest { id, ..request }]);
            self.actions.push(Action::Post { nic, qp, requests });
        }
    }

    /// Gives up on windows that are not closed in time: their endpoints end, which closes them.
    pub(crate) fn hurry(&mut self, grant: u128) {
        let holds = |known: &Accepted| known.windows.contains_key(&grant);
        let holders = self.accepted.iter().filter(|(_, known)| holds(known));
        let names: Vec<_> = holders.map(|(name, _)| *name).collect();
        names.into_iter().for_each(|name| self.broke(name, true));
    }

    /// A work request of ours is done: a window is open, or closed.
    pub(super) fn window_moved(&mut self, name: EndpointName, id: u64) {
        let Some(known) = self.accepted.get_mut(&name) else { return };
        let owns = |(_, window): &(&u128, &mut Window)| window.awaits(id);
        let Some((&grant, window)) = known.windows.iter_mut().find(owns) else { return };
        window.pending.remove(&id);
        if !window.pending.is_empty() {
            return;
        }
        if window.stage == Stage::Closing {
            known.windows.remove(&grant);
            self.check_revoked();
        } else {
            self.tell_bound(name, grant);
        }
    }

    fn tell_bound(&mut self, name: EndpointName, grant: u128) {
        let Some(known) = self.accepted.get(&name) else { return };
        let Some(window) = known.windows.get(&grant) else { return };
        let message =
            Message::Bound { name, grant, keys: window.keys.clone(), access: window.access };
        self.actions.push(Action::Tell { peer: known.peer, message });
    }

    pub(super) fn check_revoked(&mut self) {
        let is_open = |grant: &u128| self.accepted.values().any(|a| a.windows.contains_key(grant));
        let revoked: Vec<u128> =
            self.revoking.iter().copied().filter(|grant| !is_open(grant)).collect();
        for grant in revoked {
            self.revoking.remove(&grant);
            self.actions.push(Action::Revoked { grant });
        }
    }
}

impl Granted {
    fn bind(&self, window: RemoteKey) -> WorkRequest {
        WorkRequest {
            id: 0,
            operation: Operation::Bind { window, access: self.access },
            local: Some(self.memory.clone()),
            remote_addr: self.addr,
            key: self.region,
            is_signalled: true,
        }
    }
}
