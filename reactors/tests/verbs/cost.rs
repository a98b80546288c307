//! What posting costs: doorbells, completions, receives and allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kvrail_reactors::verbs::Counters;

use super::*;

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all of it is the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A list of small writes, of which the last is signalled, or all.
fn list(a: &Side, b: &Side, len: u64, all: bool) -> Vec<WorkRequest> {
    let small = |id| WorkRequest {
        local: Some(a.slice(id as usize * 64, 64)),
        is_signalled: all || id + 1 == len,
        ..request(id, Operation::Write, a, b)
    };
    (0..len).map(small).collect()
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn posting_and_polling_allocate_nothing() {
    let (mut a, b) = pair();
    let mut done = Vec::with_capacity(DEPTHS.completions as usize);
    let mut counted = None;
    for round in 0..8 {
        let post = Post { qp: a.qp.number, requests: list(&a, &b, 64, false) };
        done.clear();
        let before = ALLOCATIONS.with(Cell::get);
        a.nic.submit(post).unwrap();
        let since = Instant::now();
        while a.nic.poll(32, &mut done) == 0 {
            assert!(since.elapsed() < PATIENCE);
        }
        counted = (round > 0).then(|| ALLOCATIONS.with(Cell::get) - before);
        assert_ne!(before, 0, "it counts");
        assert_eq!(counted.unwrap_or(0), 0, "round {round}");
    }
    assert_eq!(counted, Some(0));
}

#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn one_doorbell_a_list_and_one_completion_where_one_is_signalled() {
    let (mut a, b) = pair();
    a.post(list(&a, &b, 64, false));
    a.ends(1);
    let few = a.nic.counters();
    let expected =
        Counters { work_requests: 64, signalled: 1, doorbells: 1, completions: 1, receives: 0 };
    assert_eq!(few, expected);
    a.post(list(&a, &b, 64, true));
    a.ends(64);
    let all = a.nic.counters();
    assert_eq!((all.completions - few.completions, all.doorbells - few.doorbells), (64, 1));
}

/// A peer whose word finds no receive tries again without end: this would not come to its own.
#[test]
#[ignore = "needs rxe0 and rxe1: cargo xtask vm"]
fn receives_never_run_out() {
    let (mut a, mut b) = pair();
    let rounds = u64::from(DEPTHS.receives) * 5 / 32;
    for round in 0..rounds {
        let word = |k: u64| {
            let id = round * 32 + k;
            let operation = Operation::WriteWithImmediate(id as u32);
            WorkRequest { local: None, ..request(id, operation, &a, &b) }
        };
        let words = (0..32).map(word).collect();
        a.post(words);
        let came: Vec<_> = b.take(32).into_iter().map(|completion| completion.what).collect();
        assert!((0..32).map(|k| Completed::Received((round * 32 + k) as u32)).eq(came));
        a.ends(32);
    }
    assert_eq!(b.nic.counters().receives, rounds * 32);
}
