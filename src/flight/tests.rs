//! The life of a batch, and how it is judged.

use super::*;

fn failed(request: usize) -> Vec<(usize, Error)> {
    vec![(request, Error::lost("test"))]
}

#[test]
fn the_event_follows_the_last_part_and_only_a_success() {
    let mut life = Life::new(2, true);
    assert_eq!(life.part_back(Vec::new()), Next::Wait);
    assert_eq!(life.part_back(Vec::new()), Next::Announce);
    assert!(!life.is_done());
    assert_eq!(life.part_back(Vec::new()), Next::Finish);
    let landing = life.landing(2, Fenced::Answered, || vec![1; 2]);
    assert!(landing.first_error.is_none() && landing.statuses.iter().all(Result::is_ok));

    let mut life = Life::new(2, true);
    assert_eq!(life.part_back(failed(1)), Next::Wait);
    assert_eq!(life.part_back(Vec::new()), Next::Finish, "no event behind a failure");
    let landing = life.landing(2, Fenced::Answered, || vec![1; 2]);
    assert!(landing.statuses[0].is_ok() && landing.statuses[1].is_err());
    assert!(landing.first_error.is_some());
}

#[test]
fn a_request_of_which_some_slices_failed_may_have_landed() {
    let mut life = Life::new(1, false);
    let unsent = Error::new(ErrorKind::Cancelled, "test");
    let doubtful = Error::lost("test").with_landed(Landed::Maybe);
    life.part_back(vec![(0, unsent.clone()), (1, unsent.clone()), (1, doubtful), (2, unsent)]);
    let slices = || vec![1, 2, 5];
    let statuses = life.landing(3, Fenced::Answered, slices).statuses;
    let ends = statuses.iter().map(|status| {
        let error = status.as_ref().unwrap_err();
        (error.kind(), error.landed(), error.fenced())
    });
    let wanted = [
        (ErrorKind::Cancelled, Landed::No, Fenced::Unposted),
        (ErrorKind::Cancelled, Landed::Maybe, Fenced::Nobody),
        (ErrorKind::Cancelled, Landed::Maybe, Fenced::Answered),
    ];
    assert!(ends.eq(wanted));
}

#[test]
fn a_failed_event_fails_the_batch_and_no_request() {
    let mut life = Life::new(1, true);
    life.part_back(Vec::new());
    assert_eq!(life.part_back(failed(EVENT)), Next::Finish);
    let landing = life.landing(3, Fenced::Answered, || vec![1; 3]);
    assert!(landing.first_error.is_some() && landing.statuses.iter().all(Result::is_ok));
}

#[test]
fn the_event_of_a_gpu_is_recorded_behind_all_else_however_that_ended() {
    for failures in [Vec::new(), failed(0)] {
        let mut life = Life::new(1, false);
        life.records = true;
        assert_eq!(life.part_back(failures), Next::Record);
        assert!(!life.is_done());
        assert_eq!(life.part_back(Vec::new()), Next::Finish);
    }
}
