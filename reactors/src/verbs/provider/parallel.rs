//! Equal pieces of work on several threads, all of it or nothing.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What `work` makes of the numbers below `count`, in their order, on at most so many threads, this
/// one among them. Behind a failure nothing more is begun, and what was made is dropped.
///
/// # Errors
/// The first failure.
pub(super) fn all<T: Send, E: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let made = Mutex::new(Ok(Vec::with_capacity(count)));
    let one = |index| {
        let result = work(index);
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *made, result) {
            (Ok(made), Ok(one)) => made.push((index, one)),
            (Ok(_), Err(error)) => *made = Err(error),
            (Err(_), _) => {}
        }
        made.is_ok()
    };
    let some = || {
        while Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < count).is_some_and(one) {}
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            // Without a thread more, those that are there do it all.
            let _ = thread::Builder::new().spawn_scoped(scope, some);
        }
        some();
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    made.sort_unstable_by_key(|(index, _)| *index);
    Ok(made.into_iter().map(|(_, one)| one).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn results_come_in_their_order_from_every_number_of_threads() {
        for (count, threads) in [(0, 4), (1, 4), (7, 1), (100, 3), (3, 0)] {
            let squares = all(count, threads, |index| Ok::<_, ()>(index * index)).unwrap();
            assert!(squares.into_iter().eq((0..count).map(|index| index * index)));
        }
    }

    #[test]
    fn a_failure_takes_all_the_others_back_and_begins_no_more() {
        let (token, begun) = (Arc::new(()), AtomicUsize::new(0));
        let result = all(1_000, 3, |index| {
            begun.fetch_add(1, Ordering::Relaxed);
            if index == 5 { Err("no room") } else { Ok(token.clone()) }
        });
        assert_eq!(result.err(), Some("no room"));
        assert_eq!(Arc::strong_count(&token), 1, "nothing is kept");
        assert!(begun.into_inner() <= 1_000);
        let alone = AtomicUsize::new(0);
        let result: Result<Vec<()>, _> = all(1_000, 1, |_| {
            alone.fetch_add(1, Ordering::Relaxed);
            Err(())
        });
        assert!(result.is_err());
        assert_eq!(alone.into_inner(), 1);
    }
}
