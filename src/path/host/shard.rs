//! The same-host actor of one shard: it answers peers' lanes with copies into this process's
//! memory, and looks after the lanes by which this process asks.

use std::sync::Arc;

use kvrail_reactors::region::Region;

use super::lane::Lane;
use super::server::LaneServer;
use crate::limits::{ENDING_MAX_NS, TICK_NS};
use crate::path::served::Service;
use crate::path::tcp::Guard;
use crate::{Error, ErrorKind};

/// What a shard's same-host actor is told.
pub(crate) enum Message {
    /// A peer's lane, to be answered from now on.
    Serve { session: u64, server: Box<LaneServer> },
    /// The session is over: answer its lanes no more, then drop the guard.
    Close { session: u64, guard: Guard },
    /// A lane of ours, to be looked after.
    Ask(Arc<Lane>),
    /// Store nothing into this region any more, then drop the guard.
    Fence { region: Arc<Region>, guard: Guard },
}

/// One shard's side of all same-host sessions.
pub(crate) struct HostShard {
    served: Service,
    servers: Vec<(u64, LaneServer)>,
    lanes: Vec<Arc<Lane>>,
    progress_limit_ns: u64,
    next_tick_ns: u64,
    stop_asked_ns: Option<u64>,
}

impl HostShard {
    pub(crate) fn new(served: Service, progress_limit_ns: u64) -> Self {
        let (servers, lanes) = (Vec::new(), Vec::new());
        Self { served, servers, lanes, progress_limit_ns, next_tick_ns: 0, stop_asked_ns: None }
    }

    pub(crate) fn handle(&mut self, message: Message) {
        match message {
            Message::Serve { session, server } if self.stop_asked_ns.is_none() => {
                self.servers.push((session, *server));
            }
            Message::Serve { server, .. } => server.close(),
            Message::Close { session, guard } => {
                self.end_servers(|id, _| *id == session);
                drop(guard);
            }
            Message::Ask(lane) => self.lanes.push(lane),
            Message::Fence { region, guard } => {
                self.served.refresh();
                self.servers.iter_mut().for_each(|(_, server)| server.fence(&region));
                drop(region);
                drop(guard);
            }
        }
    }

    pub(crate) fn poll(&mut self, now_ns: u64) -> usize {
        let mut moved = 0;
        let served = &mut self.served;
        self.servers.retain_mut(|(session, server)| match server.poll(served) {
            Ok(done) => {
                moved += done;
                true
            }
            Err(_) => {
                tracing::debug!(session, "a lane is over");
                server.close();
                moved += 1;
                false
            }
        });
        moved += self.lanes.iter().map(|lane| lane.progress()).sum::<usize>();
        if now_ns >= self.next_tick_ns {
            self.tick(now_ns);
        }
        moved
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.served.record();
        self.servers.iter_mut().all(|(_, server)| server.arm())
            && self.lanes.iter().all(|lane| lane.arm())
    }

    /// When to look again though nothing rings.
    pub(crate) fn wake_at_ns(&self) -> Option<u64> {
        let has_clocks = self.lanes.iter().any(|lane| !lane.is_idle() || lane.is_lost())
            || self.servers.iter().any(|(_, server)| server.is_stuck());
        has_clocks.then_some(self.next_tick_ns)
    }

    /// Ends everything: what was asked is cancelled, and gets its time to come back.
    pub(crate) fn stopping(&mut self, now_ns: u64) -> bool {
        let since_ns = *self.stop_asked_ns.get_or_insert_with(|| {
            self.lanes.iter().for_each(|lane| lane.stop(now_ns));
            now_ns
        });
        self.end_servers(|_, _| true);
        let is_late = now_ns.saturating_sub(since_ns) > ENDING_MAX_NS;
        if !is_late && self.lanes.iter().any(|lane| !lane.is_idle()) {
            return false;
        }
        self.lose_lanes();
        true
    }

    fn tick(&mut self, now_ns: u64) {
        self.served.record();
        self.next_tick_ns = now_ns + TICK_NS;
        for lane in &self.lanes {
            lane.tick(now_ns, self.progress_limit_ns);
        }
        self.lanes.retain(|lane| !lane.is_lost());
    }

    fn end_servers(&mut self, is_over: impl Fn(&u64, &LaneServer) -> bool) {
        self.servers.retain(|(session, server)| {
            let over = is_over(session, server);
            if over {
                server.close();
            }
            !over
        });
    }

    fn lose_lanes(&mut self) {
        let error = Error::new(ErrorKind::Closed, "the engine stopped");
        self.lanes.drain(..).for_each(|lane| lane.lose(&error));
    }
}

impl Drop for HostShard {
    /// No caller waits for a lane that nobody looks after.
    fn drop(&mut self) {
        self.end_servers(|_, _| true);
        self.lose_lanes();
    }
}
