//! Registrations: cut into pieces, shared by all who ask, and gone when all of them say so.

use std::sync::Mutex;

use super::*;

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn a_region_in_pieces_is_as_good_as_one() {
    const PIECE: usize = 24 << 10;
    let (mut a, b) = pair();
    let region = Arc::new(Region::allocate(LEN, None).unwrap());
    let told = Mutex::new(Vec::new());
    let progress = |done, all| told.lock().unwrap().push((done, all));
    let registered = a.adapter.register_in_pieces(&region, BOTH, PIECE, &progress).unwrap();
    let keys: Vec<_> = registered.keys().collect();
    let ends = keys.iter().map(|(offset, len, _)| offset + len);
    assert!(keys.iter().map(|(offset, ..)| *offset).eq(std::iter::once(0).chain(ends).take(11)));
    assert_eq!(keys.last().map(|(offset, len, _)| offset + len), Some(LEN));
    let told = told.into_inner().unwrap();
    assert!(told.is_sorted() && told.len() == 11, "{told:?}");
    assert_eq!(told.last(), Some(&(LEN, LEN)));
    let slice = Slice::new(region.clone(), PIECE - 100, 4096).unwrap();
    slice.write(0, &[9; 4096]).unwrap();
    let across = WorkRequest { local: Some(slice), ..request(1, Operation::Write, &a, &b) };
    a.post(vec![across]);
    assert_eq!(a.ends(1), [(1, Status::Success)]);
    assert!(b.bytes()[..4096].iter().all(|&byte| byte == 9) && b.bytes()[4096] == 2);
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn who_asks_for_the_same_shares_it_until_all_take_it_back() {
    let (mut a, b) = pair();
    let region = Arc::new(Region::allocate(4096, None).unwrap());
    let register = |access| a.adapter.register(&region, access).unwrap();
    let first = register(BOTH);
    assert!(Arc::ptr_eq(&first, &register(BOTH)));
    let private = register(RemoteAccess { read: false, write: false });
    assert!(!Arc::ptr_eq(&first, &private), "other access, other keys");
    a.adapter.deregister(&region, RemoteAccess { read: false, write: false });
    a.adapter.deregister(&region, BOTH);
    let write = |id| WorkRequest {
        local: Some(Slice::new(region.clone(), 0, 4096).unwrap()),
        ..request(id, Operation::Write, &a, &b)
    };
    let (early, late) = (write(1), write(2));
    a.post(vec![early]);
    assert_eq!(a.ends(1), [(1, Status::Success)]);
    let held = Arc::downgrade(&first);
    drop((first, private));
    assert!(held.upgrade().is_some(), "one holder is left");
    a.adapter.deregister(&region, BOTH);
    a.nic.refresh();
    assert!(held.upgrade().is_none(), "no shard keeps it");
    assert!(a.adapter.find(&region).is_none());
    a.post(vec![late]);
    assert_eq!(a.ends(1), [(2, Status::LocalProtection)]);
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn many_who_ask_at_once_get_the_same() {
    let a = Side::new("rxe0");
    let region = Arc::new(Region::allocate(1 << 20, None).unwrap());
    let made: Vec<_> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| a.adapter.register(&region, BOTH).unwrap());
        let asking: Vec<_> = (0..4).map(|_| ask()).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    assert!(made.iter().all(|one| Arc::ptr_eq(one, &made[0])));
    for left in (0..4).rev() {
        assert!(a.adapter.find(&region).is_some());
        a.adapter.deregister(&region, BOTH);
        assert_eq!(a.adapter.find(&region).is_some(), left > 0);
    }
}
