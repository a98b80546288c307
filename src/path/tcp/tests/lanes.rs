//! What happens to requests whose lane died: resent where the peer provably doesn't work on them
//! any more, failed otherwise, and never for ever.

use std::io;
use std::sync::Arc;

use kvrail_reactors::region::{Region, Slice};

use crate::limits::{ATTEMPTS_MAX, LANE_SPREAD_BYTES, LANES_MAX};
use crate::path::tcp::client::{Action, Broken, Request};
use crate::path::tcp::connection::End;
use crate::path::tcp::peers::{Lanes, Loss};
use crate::path::tcp::wire::{LaneName, Version};
use crate::peer::{Route, RouteKind, TcpRoute};
use crate::receipt::{Fenced, Proof};
use crate::{Error, ErrorKind, Landed};

fn lanes(speaks_v2: bool) -> Lanes {
    let tcp = TcpRoute {
        host: "peer".into(),
        port: 1,
        speaks_v2,
        incarnation: Some(1),
        names_lanes: false,
    };
    Lanes::new(Arc::new(Route { key: 1, name: "peer:1".into(), kind: RouteKind::Tcp(tcp) }))
}

fn request(index: usize, action: Action) -> Request {
    Request {
        part: 0,
        index,
        action,
        addr: 0,
        key: None,
        attempts: 0,
        landed: Landed::No,
        fenced: Fenced::Unposted,
        name: None,
    }
}

fn writes(count: usize) -> Vec<Request> {
    let region = Arc::new(Region::allocate(4_096, None).unwrap());
    let slice = || Slice::new(region.clone(), 0, 10).unwrap();
    (0..count).map(|index| request(index, Action::Write(slice()))).collect()
}

fn loss(end: End) -> Loss {
    Loss { end, was_careful: false, was_rejected: false, name: None, was_ready: true, round: 0 }
}

/// A lane with one request at a time, closed by the peer.
const CAREFUL: Loss = Loss {
    end: End::PeerClosed,
    was_careful: true,
    was_rejected: false,
    name: None,
    was_ready: true,
    round: 0,
};

fn lose(lanes: &mut Lanes, loss: &Loss, requests: Vec<Request>) -> Vec<(Request, Error)> {
    lanes.settle(loss, requests, Fenced::Nobody)
}

fn indexes<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Vec<usize> {
    requests.into_iter().map(|request| request.index).collect()
}

#[test]
fn a_peer_that_closed_is_sent_to_again_in_order_and_one_by_one() {
    let mut lanes = lanes(true);
    lanes.waiting.extend(writes(5).split_off(3));
    assert!(lose(&mut lanes, &loss(End::PeerClosed), writes(3)).is_empty());
    assert_eq!(indexes(&lanes.waiting), [0, 1, 2, 3, 4], "ahead of what waited");
    assert_eq!(lanes.framing(), (Version::V2, true), "the refusal may be lost: find the culprit");
    assert!(lanes.waiting.iter().all(|request| request.attempts == 0), "nobody is to blame yet");
}

#[test]
fn a_peer_that_closes_on_a_lonely_request_again_and_again_is_lost() {
    let mut lanes = lanes(true);
    lanes.waiting.extend(writes(3));
    for attempt in 1..ATTEMPTS_MAX {
        let first = lanes.waiting.pop_front().unwrap();
        assert!(lose(&mut lanes, &CAREFUL, vec![first]).is_empty());
        assert_eq!(lanes.waiting[0].attempts, attempt);
    }
    let first = lanes.waiting.pop_front().unwrap();
    let failed = lose(&mut lanes, &CAREFUL, vec![first]);
    assert_eq!(indexes(failed.iter().map(|(request, _)| request)), [0, 1, 2], "it is the peer");
    assert!(failed.iter().all(|(_, error)| error.kind() == ErrorKind::Lost));
    let landed: Vec<_> = failed.iter().map(|(_, error)| error.landed()).collect();
    assert_eq!(landed, [Landed::Maybe, Landed::No, Landed::No]);
    assert_eq!(failed[0].1.peer(), Some("peer:1"));
    assert!(lanes.waiting.is_empty());
}

#[test]
fn a_refusal_is_not_held_against_those_behind_it() {
    let mut lanes = lanes(true);
    let rejected = Loss {
        end: End::PeerClosed,
        was_careful: false,
        was_rejected: true,
        name: None,
        was_ready: true,
        round: 0,
    };
    for _ in 0..10 * ATTEMPTS_MAX {
        assert!(lose(&mut lanes, &rejected, writes(2)).is_empty());
        assert!(lanes.waiting.drain(..).all(|request| request.attempts == 0));
    }
}

#[test]
fn a_peer_that_may_still_store_is_not_sent_to_again() {
    let io = || End::Io(Arc::new(io::ErrorKind::TimedOut.into()));
    let ends = [
        (End::Ours, ErrorKind::Closed),
        (End::Stalled, ErrorKind::Lost),
        (io(), ErrorKind::Lost),
        (End::Broken(Broken::NotAStatus), ErrorKind::Lost),
        (End::Broken(Broken::Unasked), ErrorKind::Lost),
    ];
    for speaks_v2 in [true, false] {
        for (end, kind) in &ends {
            let mut lanes = lanes(speaks_v2);
            let failed = lose(&mut lanes, &loss(end.clone()), writes(2));
            assert_eq!(failed.len(), 2, "{end:?}");
            assert!(failed.iter().all(|(_, error)| error.kind() == *kind), "{end:?}");
            assert!(lanes.waiting.is_empty() && !lanes.framing().1);
        }
    }
}

/// A transfer that was cancelled takes its lane down; who shares the lane is not to blame.
#[test]
fn reads_beside_a_transfer_that_was_given_up_are_sent_again() {
    let mut lanes = lanes(true);
    let mut unanswered = writes(2);
    let region = Arc::new(Region::allocate(4_096, None).unwrap());
    unanswered.push(request(2, Action::Read(Slice::new(region, 0, 10).unwrap())));
    let failed = lose(&mut lanes, &loss(End::GivenUp), unanswered);
    assert_eq!(indexes(failed.iter().map(|(request, _)| request)), [1, 0]);
    assert_eq!(indexes(&lanes.waiting), [2]);
    assert_eq!(lanes.framing(), (Version::V2, false), "nobody is in doubt");
    let error = lanes.unsent(&lanes.waiting[0], ErrorKind::Expired);
    assert_eq!((error.kind(), error.landed()), (ErrorKind::Expired, Landed::Maybe));
    assert_eq!(lanes.unsent(&writes(1)[0], ErrorKind::Expired).landed(), Landed::No);
}

#[test]
fn a_version_1_peer_that_closed_is_asked_one_by_one_who_it_was() {
    let mut lanes = lanes(false);
    assert_eq!(lanes.framing(), (Version::V1, false));
    assert!(lose(&mut lanes, &loss(End::PeerClosed), writes(3)).is_empty());
    assert_eq!(lanes.framing(), (Version::V1, true));
    assert_eq!(lanes.missing(), 1, "one lane while in doubt");
    for culprit in 0..3 {
        let first = lanes.waiting.pop_front().unwrap();
        let failed = lose(&mut lanes, &CAREFUL, vec![first]);
        assert_eq!(indexes(failed.iter().map(|(request, _)| request)), [culprit]);
        assert_eq!(failed[0].1.kind(), ErrorKind::Refused);
        assert_eq!(failed[0].1.landed(), Landed::Maybe);
    }
    assert!(lanes.waiting.is_empty());
    lanes.relax();
    assert_eq!(lanes.framing(), (Version::V1, false));
}

/// Counted twice is worse than lost: nobody knows whether the peer had counted it when it closed.
#[test]
fn an_event_is_sent_again_only_behind_a_refusal() {
    let event = || vec![request(0, Action::Event(Arc::from(&b"event"[..])))];
    let mut lanes = lanes(true);
    let failed = lose(&mut lanes, &loss(End::PeerClosed), event());
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].1.kind(), failed[0].1.landed()), (ErrorKind::Lost, Landed::Maybe));
    let rejected = Loss {
        end: End::PeerClosed,
        was_careful: false,
        was_rejected: true,
        name: None,
        was_ready: true,
        round: 0,
    };
    assert!(lose(&mut lanes, &rejected, event()).is_empty());
    assert_eq!(lanes.waiting.len(), 1);
}

fn named(end: End) -> Loss {
    Loss { name: Some(LaneName::new()), ..loss(end) }
}

#[test]
fn a_named_lane_is_fenced_wherever_something_may_be_stored_from_it() {
    let region = Arc::new(Region::allocate(4_096, None).unwrap());
    let read = || vec![request(0, Action::Read(Slice::new(region.clone(), 0, 10).unwrap()))];
    let event = || vec![request(0, Action::Event(Arc::from(&b"event"[..])))];
    let must = |loss: &Loss, requests: Vec<Request>| Lanes::must_fence(loss, &requests).is_some();
    assert!(must(&named(End::PeerClosed), writes(1)), "its last store may be under way");
    assert!(must(&named(End::GivenUp), event()));
    assert!(!must(&named(End::GivenUp), read()) && !must(&named(End::GivenUp), Vec::new()));
    assert!(!must(&loss(End::GivenUp), writes(1)), "nobody knows its name");
    let rejected = Loss { was_rejected: true, ..named(End::PeerClosed) };
    assert!(!must(&rejected, writes(1)), "behind a refusal nothing is carried out");
}

#[test]
fn only_behind_a_fence_is_a_write_sent_again() {
    for end in [End::PeerClosed, End::GivenUp, End::Stalled] {
        let (mut fenced, mut unproven) = (lanes(true), lanes(true));
        let loss = named(end.clone());
        assert!(fenced.settle(&loss, writes(2), Fenced::Lane).is_empty(), "{end:?}");
        assert_eq!(indexes(&fenced.waiting), [0, 1]);
        let error = fenced.unsent(&fenced.waiting[0], ErrorKind::Cancelled);
        assert_eq!((error.landed(), error.fenced()), (Landed::Maybe, Fenced::Lane));
        let failed = unproven.settle(&loss, writes(2), Fenced::Nobody);
        assert!(failed.iter().all(|(_, error)| error.remote() == Proof::Unproven), "{end:?}");
        assert_eq!((failed.len(), unproven.waiting.len()), (2, 0));
    }
}

#[test]
fn reads_of_a_named_lane_go_out_again_but_not_for_ever() {
    let mut lanes = lanes(true);
    let region = Arc::new(Region::allocate(4_096, None).unwrap());
    let read = request(0, Action::Read(Slice::new(region, 0, 10).unwrap()));
    assert!(lanes.settle(&named(End::PeerClosed), vec![read], Fenced::Nobody).is_empty());
    assert!(lanes.framing().1, "it may be the request");
    let careful = || Loss { was_careful: true, ..named(End::PeerClosed) };
    let attempts = (0..=ATTEMPTS_MAX).find(|_| {
        let again: Vec<_> = lanes.waiting.drain(..).collect();
        !lanes.settle(&careful(), again, Fenced::Nobody).is_empty()
    });
    assert_eq!(attempts, Some(ATTEMPTS_MAX - 1));
}

#[test]
fn a_peer_that_takes_no_name_is_not_dialled_for_ever() {
    let unnamed = |round| Loss { was_ready: false, round, ..loss(End::PeerClosed) };
    let mut lanes = lanes(true);
    for _ in 1..ATTEMPTS_MAX {
        assert!(lanes.may_retry(&unnamed(lanes.round)));
    }
    assert!(!lanes.may_retry(&unnamed(lanes.round)));
    assert!(lanes.may_retry(&unnamed(lanes.round)), "it begins anew");
    assert!(lanes.may_retry(&named(End::Stalled)), "it has carried requests");
    assert!(!lanes.may_retry(&Loss { was_ready: false, ..loss(End::Stalled) }), "30 s are enough");
}

/// Lanes beside the first are often still being named when the network cuts all of them.
#[test]
fn lanes_that_one_event_cuts_are_one_failure() {
    let mut lanes = lanes(true);
    for _ in 0..10 * ATTEMPTS_MAX {
        assert!(lanes.may_retry(&Loss { was_ready: false, ..loss(End::PeerClosed) }));
    }
}

#[test]
fn lanes_are_made_for_what_waits() {
    let mut lanes = lanes(true);
    assert_eq!(lanes.missing(), 0);
    lanes.waiting.extend(writes(1));
    assert_eq!(lanes.missing(), 1);
    lanes.dialing = 1;
    assert_eq!(lanes.missing(), 0);
    let region = Arc::new(Region::allocate(LANE_SPREAD_BYTES, None).unwrap());
    for _ in 0..2 * LANES_MAX {
        let slice = Slice::new(region.clone(), 0, region.len()).unwrap();
        lanes.waiting.push_back(request(0, Action::Write(slice)));
    }
    assert_eq!(lanes.missing(), LANES_MAX - 1);
}
