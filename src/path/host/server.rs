//! One lane of a peer's, from the side that answers: copies that the peer asks for are made by
//! this process, into memory of its own. Any words change nothing outside the ranges that
//! [`Served::find`] permits.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::copy::{Copy, CopyDone, CopyWork};
use kvrail_reactors::doorbell::Bell;
use kvrail_reactors::host::lane::{Corrupt, Responder};
use kvrail_reactors::region::{Region, Slice};
use tracing::field::display;

use super::entry::{CopyEntry, Entry, ListEntry, Reply, Verdict};
use super::list::{Listing, Span};
use super::pages::LanePages;
use super::sources::Offered;
use crate::auth::Visitor;
use crate::limits::{HOST_COPIES_MAX, HOST_EVENT_MAX_BYTES, HOST_PAGES_MAX, HOST_REPLIES_MAX};
use crate::memory::Operation;
use crate::memory::grant::{Denied, Use};
use crate::path::asking::{Asking, RequestName};
use crate::path::served::Served;
use crate::path::tcp::{Event, Status};

/// A lane of a peer's.
pub(crate) struct LaneServer {
    ring: Responder,
    bell: Arc<Bell>,
    offered: Arc<Offered>,
    visitor: Visitor,
    /// What both sides' logs call it.
    label: u64,
    copy: Copy,
    pages: LanePages,
    done: Vec<CopyDone>,
    /// Parts that are not over, oldest first; copies may still be added to the last one.
    parts: VecDeque<Part>,
    /// Copies by the CPU in the order of their submission, which is that of their completion.
    flying: VecDeque<Flying>,
    replies: VecDeque<Reply>,
    /// What the next entries belong to, if to something that was begun.
    open: Option<Open>,
    /// A list whose copies are begun one by one.
    listing: Option<Listing>,
    next_serial: u64,
    is_armed: bool,
}

struct Part {
    /// Ours: the peer's numbers needn't differ.
    serial: u64,
    /// The peer's number for it.
    id: u64,
    /// Copies looked at so far.
    asked: u64,
    flying: usize,
    /// No more copies come.
    is_closed: bool,
}

pub(super) struct Flying {
    serial: u64,
    part: u64,
    name: u64,
    /// Its position in the part, and how many copies it is.
    index: u64,
    count: u32,
    bytes: usize,
    target: Arc<Region>,
    /// Of the grant that it is asked for under, if any.
    used: Option<Use>,
    /// Its target was taken back meanwhile.
    is_taken: bool,
}

impl Flying {
    fn new(
        (serial, part): (u64, u64),
        (index, count): (u64, u32),
        bytes: usize,
        target: Arc<Region>,
        used: Option<Use>,
    ) -> Self {
        let (name, is_taken) = (0, false);
        Self { serial, part, name, index, count, bytes, target, used, is_taken }
    }

    pub(super) fn is_struck(&self) -> bool {
        self.used.as_ref().is_some_and(Use::is_struck)
    }

    /// Its target's owner takes back `region`.
    pub(super) fn take_back(&mut self, region: &Arc<Region>) {
        self.is_taken |= Arc::ptr_eq(&self.target, region);
    }

    pub(super) fn is_taken(&self) -> bool {
        self.is_taken
    }

    pub(super) fn count(&self) -> usize {
        self.count as usize
    }
}

/// What several entries make.
enum Open {
    Event(Assembly),
    List(Listing),
}

/// An event whose body is arriving.
struct Assembly {
    part: u64,
    body: Vec<u8>,
    missing: usize,
}

impl LaneServer {
    pub(super) fn new(
        ring: Responder,
        bell: Arc<Bell>,
        offered: Arc<Offered>,
        (visitor, label): (Visitor, u64),
        pages: LanePages,
    ) -> Self {
        Self {
            ring,
            bell,
            offered,
            visitor,
            label,
            copy: Copy::new(HOST_COPIES_MAX),
            pages,
            done: Vec::new(),
            parts: VecDeque::new(),
            flying: VecDeque::new(),
            replies: VecDeque::new(),
            open: None,
            listing: None,
            next_serial: 0,
            is_armed: false,
        }
    }

    /// Takes requests, copies a turn's worth, and replies; returns how much there was to do.
    ///
    /// # Errors
    /// The lane is over: the peer ended or broke it.
    pub(crate) fn poll(&mut self, served: &mut impl Served) -> Result<usize, Corrupt> {
        if std::mem::take(&mut self.is_armed) {
            self.ring.wake();
        }
        if self.ring.is_closed() {
            return Err(Corrupt);
        }
        let mut moved = 0;
        while self.has_room() {
            if let Some(asked) = self.listing.as_mut().and_then(Listing::next) {
                self.ask(asked, served)?;
                self.listing.take_if(|listing| listing.is_begun());
            } else if let Some(Open::List(listing)) = &mut self.open {
                if !listing.fill(&mut self.ring)? {
                    break;
                }
                self.ask_all_if_whole(served)?;
            } else {
                let Some(words) = self.ring.receive()? else { break };
                self.take(Entry::decode(&words).ok_or(Corrupt)?, served)?;
            }
            moved += 1;
        }
        Ok(moved + self.make_copies() + self.make_pages() + self.reply()?)
    }

    /// Before the shard parks: `false` where something is to be done.
    pub(crate) fn arm(&mut self) -> bool {
        if !self.flying.is_empty() || !self.pages.arm() {
            return false;
        }
        if self.listing.is_some() && self.has_room() {
            return false;
        }
        self.is_armed = true;
        // Requests of a peer that takes no replies wait for it to take some: see `is_stuck`.
        self.ring.sleep() || !self.has_room()
    }

    /// Whether only a look now and then can see what it waits for: a peer that takes replies, or a
    /// GPU that is lost.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.replies.is_empty() || self.pages.len() > 0
    }

    /// Nothing is stored into `region` any more when this returns.
    pub(crate) fn fence(&mut self, region: &Arc<Region>) {
        for flying in self.flying.iter().filter(|flying| Arc::ptr_eq(&flying.target, region)) {
            self.copy.fence(flying.name);
        }
        self.pages.settle(region);
    }

    /// Parts, copies and replies that wait, for tests of their bounds.
    #[cfg(any(fuzzing, test))]
    pub(super) fn waiting(&self) -> (usize, usize, usize) {
        (self.parts.len(), self.flying.len(), self.replies.len())
    }

    /// Ends the lane for the peer.
    pub(crate) fn close(&self) {
        self.ring.close();
        self.bell.ring();
    }

    fn asking(&self, part: u64) -> Asking<'_> {
        asking((&self.visitor, self.label), part)
    }

    fn has_room(&self) -> bool {
        // Parts that are refused wait behind the copies of those before them.
        self.flying.len() < HOST_COPIES_MAX
            && self.pages.len() < HOST_PAGES_MAX
            && self.parts.len() < HOST_COPIES_MAX
            && self.replies.len() < HOST_REPLIES_MAX
    }

    fn take(&mut self, entry: Entry, served: &mut impl Served) -> Result<(), Corrupt> {
        match (entry, self.open.take()) {
            (Entry::Body(bytes), Some(Open::Event(mut event))) => {
                let used = event.missing.min(bytes.len());
                event.body.extend_from_slice(&bytes[..used]);
                event.missing -= used;
                self.deliver_whole(event, served);
            }
            (Entry::Event { part, len }, None) if len <= HOST_EVENT_MAX_BYTES as u64 => {
                let event = Assembly { part, body: Vec::new(), missing: len as usize };
                self.deliver_whole(event, served);
            }
            (Entry::List(asked), None) => {
                self.open = Some(Open::List(Listing::new(asked).ok_or(Corrupt)?));
            }
            (Entry::Copy(asked), None) => return self.ask(asked, served),
            (Entry::Cancel { part }, None) => self.cancel(part),
            _ => return Err(Corrupt),
        }
        Ok(())
    }

    /// Opens or goes on with a part, whose next copies these are; returns its serial and the first
    /// one's position.
    fn count_in(&mut self, id: u64, count: u32, last: bool) -> Result<(u64, u64), Corrupt> {
        if self.parts.back().is_none_or(|part| part.is_closed) {
            let serial = self.next_serial;
            self.next_serial += 1;
            self.parts.push_back(Part { serial, id, asked: 0, flying: 0, is_closed: false });
        }
        let part = self.parts.back_mut().filter(|part| part.id == id).ok_or(Corrupt)?;
        let (serial, index) = (part.serial, part.asked);
        part.asked += u64::from(count);
        part.is_closed = last;
        Ok((serial, index))
    }

    fn ask(&mut self, asked: CopyEntry, served: &mut impl Served) -> Result<(), Corrupt> {
        let CopyEntry { part: id, last, source, offset, len, .. } = asked;
        let (serial, index) = self.count_in(id, 1, last)?;
        let (target, used) = match self.target(&asked, served) {
            Ok(found) => found,
            Err(verdict) => return self.failed(id, index, verdict),
        };
        let Some(source) = self.offered.slice(source, offset, len) else {
            note(&self.asking(id), Verdict::Unreadable);
            return self.failed(id, index, Verdict::Unreadable);
        };
        let (bytes, region) = (target.len(), target.region().clone());
        let work = CopyWork { tag: 0, source, target };
        let mut flying = Flying::new((serial, id), (index, 1), bytes, region, used);
        if let Some(device) = work.reach_gpu() {
            self.pages.add(device, &work, flying);
        } else {
            // There is room, or `poll` would not have taken the request.
            flying.name = self.copy.submit(work).map_err(|_| Corrupt)?;
            self.flying.push_back(flying);
        }
        self.took_off();
        Ok(())
    }

    fn ask_all_if_whole(&mut self, served: &mut impl Served) -> Result<(), Corrupt> {
        match self.open.take_if(|open| matches!(open, Open::List(listing) if listing.is_whole())) {
            Some(Open::List(listing)) => self.ask_all(listing, served),
            _ => Ok(()),
        }
    }

    /// A list is whole. A GPU makes all of it at once, if both ends are found in one look;
    /// otherwise its copies are begun one by one.
    fn ask_all(&mut self, listing: Listing, served: &mut impl Served) -> Result<(), Corrupt> {
        let Some((work, spans, used)) = self.find_all(&listing, served) else {
            self.listing = Some(listing);
            return Ok(());
        };
        let Some(device) = work.reach_gpu() else {
            self.listing = Some(listing);
            return Ok(());
        };
        let ListEntry { part: id, last, count, len, .. } = listing.asked;
        let (serial, index) = self.count_in(id, count, last)?;
        served.took_all(&self.asking(id), listing.bytes(), Operation::Write);
        let (bytes, target) = (listing.bytes() as usize, work.target.region().clone());
        let flying = Flying::new((serial, id), (index, count), bytes, target, used);
        self.pages.add_list(device, &work, listing.places(spans), len as usize, flying);
        self.took_off();
        Ok(())
    }

    /// The ends of all copies of a list, as one piece each.
    fn find_all(
        &self,
        listing: &Listing,
        served: &mut impl Served,
    ) -> Option<(CopyWork, (Span, Span), Option<Use>)> {
        let (from, to) = listing.spans()?;
        let source = self.offered.slice(listing.asked.source, from.start, from.len)?;
        let (key, write) = (listing.asked.key, Operation::Write);
        let asking = self.asking(listing.asked.part);
        let (target, used) = served.find_all(&asking, key, to.start, to.len, write)?;
        Some((CopyWork { tag: 0, source, target }, (from, to), used))
    }

    fn took_off(&mut self) {
        if let Some(part) = self.parts.back_mut() {
            part.flying += 1;
        }
    }

    /// Where a copy goes, if it may.
    fn target(
        &self,
        asked: &CopyEntry,
        served: &mut impl Served,
    ) -> Result<(Slice, Option<Use>), Verdict> {
        let CopyEntry { part, addr, len, key, .. } = *asked;
        let asking = self.asking(part);
        let Some(key) = key else {
            let found =
                served.find(&asking, addr, len, Operation::Write).ok_or(Verdict::Refused)?;
            return Ok((found, None));
        };
        let found = served.find_granted(&asking, key, addr, len, Operation::Write);
        match found {
            Ok((target, used)) => Ok((target, Some(used))),
            Err(Denied::Stale) => Err(Verdict::Stale),
            Err(Denied::Refused) => Err(Verdict::Refused),
        }
    }

    fn failed(&mut self, part: u64, index: u64, verdict: Verdict) -> Result<(), Corrupt> {
        self.replies.push_back(Reply::Failed { part, index, count: 1, verdict });
        self.end_parts();
        Ok(())
    }

    fn cancel(&mut self, id: u64) {
        // The latest of that number: an honest peer has no two.
        let Some(part) = self.parts.iter_mut().rev().find(|part| part.id == id) else { return };
        part.is_closed = true;
        let (peer, request) = (&self.visitor, RequestName { lane: self.label, number: id });
        tracing::debug!(%request, %peer, "a peer takes its request back");
        let serial = part.serial;
        for flying in self.flying.iter().filter(|flying| flying.serial == serial) {
            self.copy.fence(flying.name);
        }
        self.end_parts();
    }

    /// Copies a turn's worth, of whose grants all hold at its beginning.
    fn make_copies(&mut self) -> usize {
        for flying in self.flying.iter().filter(|flying| flying.is_struck()) {
            self.copy.fence(flying.name);
        }
        let mut done = std::mem::take(&mut self.done);
        let moved = self.copy.poll(HOST_COPIES_MAX, &mut done);
        for done in done.drain(..) {
            self.copied(&done);
        }
        self.done = done;
        moved
    }

    fn copied(&mut self, done: &CopyDone) {
        let Some(flying) = self.flying.pop_front() else { return };
        let verdict = match &done.error {
            _ if flying.is_struck() => Verdict::Stale,
            _ if done.copied_bytes == flying.bytes => Verdict::Ok,
            None => Verdict::Ended,
            Some(_) => Verdict::Unreadable,
        };
        let asker = (&self.visitor, self.label);
        landed(&mut self.parts, &mut self.replies, asker, &flying, verdict);
        self.end_parts();
    }

    /// Starts the turn's pages on their GPUs, and takes back what has ended there.
    fn make_pages(&mut self) -> usize {
        let Self { pages, parts, replies, visitor, label, .. } = self;
        let asker = (&*visitor, *label);
        let moved = pages.poll(|flying, verdict| landed(parts, replies, asker, flying, verdict));
        if moved > 0 {
            self.end_parts();
        }
        moved
    }

    /// Replies for parts that are over, in their order.
    fn end_parts(&mut self) {
        while let Some(part) = self.parts.front().filter(|part| part.is_closed && part.flying == 0)
        {
            let (part, ended) = (part.id, part.asked);
            self.replies.push_back(Reply::Done { part, ended, verdict: Verdict::Ok });
            self.parts.pop_front();
        }
    }

    fn deliver_whole(&mut self, event: Assembly, served: &mut impl Served) {
        if event.missing > 0 {
            self.open = Some(Open::Event(event));
            return;
        }
        let Assembly { part, body, .. } = event;
        let event = Event::decode(&body);
        let status = event.map_or(Status::Refused, |event| served.event(&self.asking(part), event));
        let verdict = match status {
            Status::Ok => Verdict::Ok,
            Status::Busy => Verdict::Busy,
            Status::Refused | Status::Stale | Status::Other(_) => Verdict::Refused,
        };
        self.replies.push_back(Reply::Done { part, ended: 0, verdict });
    }

    fn reply(&mut self) -> Result<usize, Corrupt> {
        if self.replies.is_empty() {
            return Ok(0);
        }
        let count = self.ring.room()?.min(self.replies.len());
        let mut must_ring = false;
        for reply in self.replies.drain(..count) {
            must_ring |= self.ring.send(&reply.encode());
        }
        if must_ring {
            self.bell.ring();
        }
        Ok(count)
    }
}

fn asking((visitor, lane): (&Visitor, u64), number: u64) -> Asking<'_> {
    Asking { visitor, request: Some(RequestName { lane, number }) }
}

/// Logs a copy that was permitted and failed.
fn note(asking: &Asking<'_>, verdict: Verdict) {
    let Asking { visitor, request } = *asking;
    let request = request.map(display);
    tracing::debug!(request, peer = %visitor, ?verdict, "a copy for a peer has failed");
}

/// A copy is over.
fn landed(
    parts: &mut VecDeque<Part>,
    replies: &mut VecDeque<Reply>,
    asker: (&Visitor, u64),
    flying: &Flying,
    verdict: Verdict,
) {
    if let Some(part) = parts.iter_mut().find(|part| part.serial == flying.serial) {
        part.flying -= 1;
    }
    if verdict != Verdict::Ok {
        let Flying { part, index, count, .. } = *flying;
        note(&asking(asker, part), verdict);
        replies.push_back(Reply::Failed { part, index, count, verdict });
    }
}
