//! When a shard brings to GPUs what has come for them: at the end of a turn in which the socket had
//! no more of it. A launch and its end take as long as a socket brings 64 KiB, so what comes
//! without a pause shares one.

use kvrail_reactors::ticket::Ticket;

use super::connection::Connection;
use super::shard::TcpShard;
use crate::path::served::Served;

impl TcpShard {
    /// The turn is over.
    pub(super) fn land(&mut self, now_ns: u64) {
        for (ticket, has_more) in std::mem::take(&mut self.landing) {
            let Some(connection) = self.connections.get_mut(ticket) else { continue };
            if has_more && connection.is_landing() {
                self.landing.push((ticket, false));
                continue;
            }
            connection.land(self.served.landing());
            self.start(ticket, now_ns);
        }
    }

    /// Something came on this connection.
    pub(super) fn note_landing(&mut self, ticket: Ticket<Connection>) {
        if !self.connections.get(ticket).is_some_and(Connection::is_landing) {
            return;
        }
        match self.landing.iter_mut().find(|(known, _)| *known == ticket) {
            Some((_, has_more)) => *has_more = true,
            None => self.landing.push((ticket, true)),
        }
    }
}
