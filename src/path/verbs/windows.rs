//! Windows that peers' endpoints have to grants of ours: keys of a NIC, and the use that each
//! makes of its grant as long as the NIC lets its peer in.

use std::collections::HashMap;

use kvrail_reactors::verbs::{RemoteAccess, RemoteKey};

use super::endpoints::Endpoints;
use super::hub::Rdma;
use crate::auth::Visitor;
use crate::memory::grant::{Denied, Key, Use};
use crate::path::rdma::{EndpointName, Granted, Strike};

/// The windows of one shard.
#[derive(Default)]
pub(super) struct Windows {
    open: HashMap<(EndpointName, u128), Window>,
}

struct Window {
    nic: u8,
    keys: Vec<RemoteKey>,
    _use: Use,
}

impl Windows {
    /// What to open for a visitor that brings a grant's key.
    pub(super) fn open(
        &mut self,
        name: EndpointName,
        grant: u128,
        visitor: &Visitor,
        rdma: &Rdma,
        endpoints: &mut Endpoints,
    ) -> Result<Granted, Strike> {
        let regions = rdma.regions.current();
        let found = rdma.grants.window_for(visitor, &regions, Key::from_raw(grant));
        let (memory, access, using) = found.map_err(|denied| match denied {
            Denied::Stale => Strike::Gone,
            Denied::Refused => Strike::Refused,
        })?;
        let (nic, queues) = endpoints.of(name).ok_or(Strike::Gone)?;
        // One that lies across a cut of its region has no key for all of it.
        let region = endpoints.key_of(nic, &memory).ok_or(Strike::Refused)?;
        let keys: Vec<_> = (0..queues).map_while(|_| endpoints.window(nic)).collect();
        if keys.len() < queues {
            keys.into_iter().for_each(|key| endpoints.close_window(nic, key));
            return Err(Strike::Full);
        }
        let access = RemoteAccess { read: access.read, write: access.write };
        let granted = Granted { addr: memory.addr(), memory, region, access, keys: keys.clone() };
        self.open.insert((name, grant), Window { nic, keys, _use: using });
        Ok(granted)
    }

    /// It came to nothing.
    pub(super) fn unopened(&mut self, name: EndpointName, grant: u128, endpoints: &mut Endpoints) {
        self.remove(|of| *of == (name, grant), endpoints);
    }

    /// No window to a grant is open any more.
    pub(super) fn closed(&mut self, grant: u128, endpoints: &mut Endpoints) {
        self.remove(|(_, of)| *of == grant, endpoints);
    }

    /// An endpoint is gone, and its windows with it.
    pub(super) fn gone(&mut self, name: EndpointName, endpoints: &mut Endpoints) {
        self.remove(|(of, _)| *of == name, endpoints);
    }

    fn remove(
        &mut self,
        is_meant: impl Fn(&(EndpointName, u128)) -> bool,
        endpoints: &mut Endpoints,
    ) {
        for (_, window) in self.open.extract_if(|of, _| is_meant(of)) {
            window.keys.into_iter().for_each(|key| endpoints.close_window(window.nic, key));
        }
    }
}
