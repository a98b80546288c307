//! Windows: opened when asked for, closed before a grant counts as taken back.

use kvrail_reactors::verbs::{Operation, RemoteAccess, Status};

use super::message::Strike;
use super::*;
use crate::ErrorKind;
use crate::limits::RDMA_WINDOWS_MAX;

const GRANT: u128 = 12;

fn granted() -> Result<Granted, Strike> {
    Ok(Granted {
        memory: memory(SLICE_BYTES),
        addr: 0x1_0000,
        region: RemoteKey(1),
        access: RemoteAccess { read: true, write: false },
        keys: vec![RemoteKey(31), RemoteKey(32)],
    })
}

/// A target whose peer has asked for a window.
fn asked() -> Theirs {
    let mut theirs = Theirs::new();
    theirs.open(name(0, 1));
    theirs.tell(Message::Bind { name: name(0, 1), grant: GRANT });
    theirs.tell(Message::Bind { name: name(0, 1), grant: GRANT });
    theirs.take_told();
    let done = theirs.take_done();
    assert!(matches!(done[..], [Action::Granted { grant: GRANT, .. }]), "once: {done:?}");
    theirs
}

fn bound() -> Theirs {
    let mut theirs = asked();
    assert!(theirs.machine.granted(name(0, 1), GRANT, granted()));
    theirs.act();
    theirs
}

/// A window that is open to everything.
fn told(name: EndpointName, grant: u128, keys: Vec<RemoteKey>) -> Message {
    Message::Bound { name, grant, keys, access: RemoteAccess { read: true, write: true } }
}

fn struck(why: Strike) -> Message {
    Message::Struck { name: name(0, 1), grant: GRANT, why }
}

fn is_revoked(theirs: &mut Theirs) -> bool {
    let done = theirs.take_done();
    done.iter().any(|action| matches!(action, Action::Revoked { grant: GRANT }))
}

#[test]
fn a_window_is_told_of_when_every_queue_has_it() {
    let mut theirs = bound();
    let (rail, qp, request) = theirs.posted.remove(0);
    assert!(matches!(request.operation, Operation::Bind { window: RemoteKey(31), .. }));
    theirs.machine.completed(rail, (qp, request.id, Status::Success));
    theirs.act();
    assert!(theirs.take_told().is_empty());
    theirs.complete(Status::Success);
    let keys = vec![RemoteKey(31), RemoteKey(32)];
    let access = RemoteAccess { read: true, write: false };
    let told = Message::Bound { name: name(0, 1), grant: GRANT, keys, access };
    theirs.tell(Message::Bind { name: name(0, 1), grant: GRANT });
    assert_eq!(theirs.take_told(), [told.clone(), told], "asked again, told again");
}

#[test]
fn a_grant_is_revoked_when_its_last_window_is_closed() {
    let mut theirs = bound();
    theirs.complete(Status::Success);
    theirs.take_told();
    theirs.machine.revoke(GRANT);
    theirs.act();
    assert_eq!(theirs.take_told(), [struck(Strike::Gone)]);
    assert!(!is_revoked(&mut theirs));
    theirs.tell(Message::Bind { name: name(0, 1), grant: GRANT });
    assert_eq!(theirs.take_told(), [struck(Strike::Gone)]);
    let (rail, qp, request) = theirs.posted.remove(0);
    assert_eq!(request.operation, Operation::Invalidate(RemoteKey(31)));
    theirs.machine.completed(rail, (qp, request.id, Status::Success));
    theirs.act();
    assert!(!is_revoked(&mut theirs), "one is open");
    theirs.complete(Status::Success);
    assert!(is_revoked(&mut theirs));
}

#[test]
fn a_grant_that_is_revoked_while_it_opens_closes_again() {
    let mut theirs = bound();
    theirs.machine.revoke(GRANT);
    theirs.act();
    theirs.take_told();
    theirs.complete(Status::Success);
    assert!(is_revoked(&mut theirs));
    assert!(theirs.take_told().is_empty(), "it was never open to anybody");
}

#[test]
fn an_answer_that_comes_after_the_revocation_opens_nothing() {
    let mut theirs = asked();
    theirs.machine.revoke(GRANT);
    theirs.act();
    assert!(!is_revoked(&mut theirs), "the owner's answer may be good, and is under way");
    assert!(!theirs.machine.granted(name(0, 1), GRANT, granted()));
    theirs.act();
    assert!(is_revoked(&mut theirs) && theirs.posted.is_empty());
    assert!(!theirs.machine.granted(name(0, 1), GRANT, granted()), "nobody asked again");
}

#[test]
fn a_window_that_does_not_close_ends_its_endpoint() {
    let mut theirs = bound();
    theirs.complete(Status::Success);
    theirs.machine.revoke(GRANT);
    theirs.act();
    theirs.take_told();
    theirs.machine.hurry(GRANT);
    theirs.act();
    assert_eq!(theirs.take_told(), [Message::Broken { name: name(0, 1), is_rail_well: true }]);
    assert!(!is_revoked(&mut theirs));
    theirs.complete(Status::Flushed);
    assert!(is_revoked(&mut theirs));
}

#[test]
fn a_bad_grant_is_struck_and_so_is_one_too_many() {
    let mut theirs = asked();
    assert!(!theirs.machine.granted(name(0, 1), GRANT, Err(Strike::Gone)));
    theirs.act();
    assert_eq!(theirs.take_told(), [struck(Strike::Gone)]);
    for grant in 0..RDMA_WINDOWS_MAX as u128 {
        theirs.tell(Message::Bind { name: name(0, 1), grant: 100 + grant });
    }
    theirs.tell(Message::Bind { name: name(0, 1), grant: GRANT });
    assert_eq!(theirs.take_told(), [struck(Strike::Full)]);
}

fn under_grant(id: u64, grant: u128) -> Order {
    order(id, vec![slice(true, Keys::Grant(grant))])
}

#[test]
fn what_is_granted_waits_for_its_window_and_uses_the_key_of_its_queue() {
    let mut ours = Ours::new(limits(), 1);
    ours.carry(order(1, vec![slice(true, Keys::Grant(GRANT)), slice(true, Keys::Grant(GRANT))]));
    let name = ours.opened[0];
    assert_eq!(ours.told, [Message::Bind { name, grant: GRANT }]);
    assert!(ours.posted.is_empty());
    ours.after(limits().open_retry_ns);
    assert_eq!(ours.told.len(), 2, "asked again");
    ours.tell(told(name, GRANT, vec![RemoteKey(1)]));
    assert!(ours.posted.is_empty(), "it needs a key for each queue");
    ours.tell(told(name, GRANT, vec![RemoteKey(1), RemoteKey(2)]));
    let used: Vec<_> = ours.posted.iter().map(|(_, qp, request)| (*qp, request.key)).collect();
    assert_eq!(used, [(QpNumber(1), RemoteKey(1)), (QpNumber(2), RemoteKey(2))]);
}

#[test]
fn what_is_struck_fails_with_its_reason() {
    for (why, expected) in [(Strike::Gone, ErrorKind::Stale), (Strike::Full, ErrorKind::Busy)] {
        let mut ours = Ours::new(limits(), 1);
        ours.carry(under_grant(1, GRANT));
        ours.tell(Message::Struck { name: ours.opened[0], grant: GRANT, why });
        assert_eq!(ours.ending(1).kind, Some(expected));
        let asked = ours.told.len();
        ours.carry(under_grant(2, GRANT));
        let is_asked_again = ours.told.len() > asked;
        assert_eq!(is_asked_again, why == Strike::Full, "a grant never comes back");
    }
}

#[test]
fn a_window_that_closes_under_a_write_makes_it_stale() {
    let mut ours = Ours::new(limits(), 1);
    ours.carry(under_grant(1, GRANT));
    let name = ours.opened[0];
    ours.tell(told(name, GRANT, vec![RemoteKey(1), RemoteKey(2)]));
    ours.complete(0, Status::RemoteAccess);
    assert!(ours.ended.is_empty());
    ours.fenced(name, &[]);
    assert_eq!(ours.ending(1).kind, Some(ErrorKind::Stale));
}

#[test]
fn more_grants_than_are_remembered_can_be_used_one_after_the_other() {
    let mut ours = Ours::new(limits(), 1);
    for grant in 0..RDMA_WINDOWS_MAX as u64 + 2 {
        ours.carry(under_grant(grant, u128::from(grant)));
        let (name, keys) = (ours.opened[0], vec![RemoteKey(1), RemoteKey(2)]);
        ours.tell(told(name, u128::from(grant), keys));
        ours.complete(0, Status::Success);
        assert_eq!(ours.ending(grant).kind, None);
    }
    let (_, endpoint) = ours.machine.endpoints.iter().next().unwrap();
    assert_eq!(endpoint.windows.len(), RDMA_WINDOWS_MAX);
}

#[test]
fn what_a_window_is_not_open_to_is_refused_before_a_nic_is_asked() {
    for (is_write, access) in [
        (true, RemoteAccess { read: true, write: false }),
        (false, RemoteAccess { read: false, write: true }),
    ] {
        let mut ours = Ours::new(limits(), 1);
        ours.carry(order(1, vec![slice(is_write, Keys::Grant(GRANT))]));
        let (name, keys) = (ours.opened[0], vec![RemoteKey(1), RemoteKey(2)]);
        ours.tell(Message::Bound { name, grant: GRANT, keys, access });
        assert_eq!(ours.ending(1).kind, Some(ErrorKind::Refused));
        ours.carry(order(2, vec![slice(!is_write, Keys::Grant(GRANT))]));
        ours.complete(0, Status::Success);
        assert_eq!(ours.ending(2).kind, None, "the rail is well");
    }
}
