//! Calls and casts, order, full mailboxes, panics and supervision.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kvrail::ErrorKind;
use kvrail::runtime::{ActorError, ActorPanic, CastError, Exit, RestartPolicy};

use super::*;

#[test]
fn a_call_from_a_plain_thread_is_answered() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    assert_eq!(block_on(adder.call(Ask::Add(2))), Ok(vec![2]));
    assert_eq!(block_on(adder.call(Ask::Add(3))), Ok(vec![5]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_from_many_tokio_tasks_are_answered() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(1, Adder::default()).unwrap();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let adder = adder.clone();
            tokio::spawn(async move { adder.call(Ask::Add(1)).await.unwrap()[0] })
        })
        .collect();
    let mut sums = Vec::new();
    for call in calls {
        sums.push(call.await.unwrap());
    }
    sums.sort_unstable();
    assert_eq!(sums, (1..=100).collect::<Vec<_>>());
    tokio::task::spawn_blocking(move || assert!(runtime.stop())).await.unwrap();
}

/// Passes a number on, to another shard.
struct Relay(kvrail::runtime::Address<Adder>);

impl Actor for Relay {
    type Message = u64;
    type Reply = Result<Vec<u64>, ActorError>;

    async fn handle(&mut self, number: u64, context: &Context<Self>) -> Self::Reply {
        assert_eq!(context.shard(), 0);
        self.0.call(Ask::Add(number)).await
    }
}

#[test]
fn shards_call_each_other() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(1, Adder::default()).unwrap();
    let relay = runtime.spawn_actor(0, Relay(adder)).unwrap();
    for turn in 1..=1000 {
        assert_eq!(block_on(relay.call(1)), Ok(Ok(vec![turn])));
    }
}

#[test]
fn messages_of_one_sender_stay_in_order() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    for number in 0..500 {
        adder.cast(Ask::Add(number)).ok().unwrap();
    }
    assert_eq!(block_on(adder.call(Ask::Seen)), Ok((0..500).collect()));
}

#[test]
fn a_full_mailbox_gives_the_message_back() {
    let runtime = builder().mailbox(2).build().unwrap();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    let (gate, gated) = tokio::sync::oneshot::channel();
    let held = adder.ask(Ask::Gate(gated)).ok().unwrap();
    // The gate's message leaves the mailbox at some time; then two more fit and a third does not.
    let mut queued = 0;
    eventually("the mailbox is full behind a handler that waits", || {
        match adder.cast(Ask::Add(1)) {
            Ok(()) => queued += 1,
            Err(CastError::Full(Ask::Add(1))) => return queued >= 2,
            Err(_) => panic!("only full was expected"),
        }
        false
    });
    assert_eq!(block_on(adder.call(Ask::Seen)), Err(ActorError::Busy));
    gate.send(()).unwrap();
    assert_eq!(soon(held), Ok(vec![]));
    eventually("room again", || adder.cast(Ask::Add(0)).is_ok());
}

#[test]
fn a_panic_reaches_its_caller_and_the_supervisor_and_nobody_else() {
    let panics = Arc::new(Mutex::new(Vec::<ActorPanic>::new()));
    let heard = panics.clone();
    let runtime =
        builder().on_panic(move |panic| heard.lock().unwrap().push(panic)).build().unwrap();
    let victim = runtime.spawn_actor(0, Adder::default()).unwrap();
    let neighbour = runtime.spawn_actor(0, Adder::default()).unwrap();
    block_on(victim.call(Ask::Add(4))).unwrap();
    let error = block_on(victim.call(Ask::PanicInFuture)).unwrap_err();
    assert_eq!(error, ActorError::Panicked("told to, after 4".into()));
    assert_eq!(
        soon(async move { victim.closed().await }),
        Exit::Panicked("told to, after 4".into())
    );
    assert_eq!(block_on(neighbour.call(Ask::Add(1))), Ok(vec![1]));
    let panics = panics.lock().unwrap();
    assert_eq!(panics.len(), 1);
    assert_eq!((panics[0].shard, &*panics[0].message), (0, "told to, after 4"));
    assert!(panics[0].actor.ends_with("Adder"));
}

#[test]
fn after_a_panic_calls_find_it_closed_also_those_that_waited() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    let (gate, gated) = tokio::sync::oneshot::channel();
    drop(adder.ask(Ask::Gate(gated)).ok().unwrap());
    let panicking = adder.ask(Ask::PanicInFuture).ok().unwrap();
    let waiting = adder.ask(Ask::Add(1)).ok().unwrap();
    gate.send(()).unwrap();
    assert!(matches!(soon(panicking), Err(ActorError::Panicked(_))));
    assert_eq!(soon(waiting), Err(ActorError::Closed));
    assert_eq!(block_on(adder.call(Ask::Seen)), Err(ActorError::Closed));
    assert!(matches!(adder.cast(Ask::Add(7)), Err(CastError::Closed(Ask::Add(7)))));
}

/// Panics before it gives a future, in drop, or in `stopped`.
struct Rude(&'static str);

impl Actor for Rude {
    type Message = ();
    type Reply = ();

    fn handle(&mut self, _: (), _: &Context<Self>) -> impl Future<Output = ()> {
        assert!(self.0 != "handle", "rude in handle");
        async {}
    }

    fn stopped(&mut self) {
        assert!(self.0 != "stopped", "rude in stopped");
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        assert!(self.0 != "drop", "rude in drop");
    }
}

#[test]
fn a_panic_anywhere_in_an_actor_is_its_exit() {
    let runtime = runtime();
    let early = runtime.spawn_actor(0, Rude("handle")).unwrap();
    assert_eq!(block_on(early.call(())), Err(ActorError::Panicked("rude in handle".into())));
    for place in ["stopped", "drop"] {
        let rude = runtime.spawn_actor(0, Rude(place)).unwrap();
        assert_eq!(block_on(rude.call(())), Ok(()));
        rude.stop();
        let exit = soon(async move { rude.closed().await });
        assert_eq!(exit, Exit::Panicked(format!("rude in {place}")));
    }
    let unborn = runtime.spawn_actor_with(0, || -> Adder { panic!("unborn") }).unwrap();
    assert_eq!(soon(async move { unborn.closed().await }), Exit::Panicked("unborn".into()));
    assert_eq!(soon(runtime.spawn_on(0, || async { 1 }).unwrap()), Ok(1), "the shard lives");
}

#[test]
fn a_supervised_actor_comes_back_until_its_limit() {
    let runtime = runtime();
    let made = Arc::new(AtomicUsize::new(0));
    let counter = made.clone();
    let factory = move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Adder::default()
    };
    let policy = RestartPolicy { max_restarts: 2, within: Duration::from_secs(3600) };
    let adder = runtime.spawn_supervised(0, factory, policy).unwrap();
    for life in 1..=3 {
        assert_eq!(block_on(adder.call(Ask::Add(9))), Ok(vec![9]), "a fresh state");
        assert_eq!(made.load(Ordering::Relaxed), life);
        assert!(matches!(block_on(adder.call(Ask::PanicInFuture)), Err(ActorError::Panicked(_))));
    }
    assert_eq!(block_on(adder.call(Ask::Add(9))), Err(ActorError::Closed));
    assert!(matches!(soon(async move { adder.closed().await }), Exit::Panicked(_)));
}

#[test]
fn messages_behind_a_panic_reach_the_restarted_actor() {
    let runtime = runtime();
    let policy = RestartPolicy { max_restarts: 1, within: Duration::from_secs(3600) };
    let adder = runtime.spawn_supervised(0, Adder::default, policy).unwrap();
    let (gate, gated) = tokio::sync::oneshot::channel();
    drop(adder.ask(Ask::Gate(gated)).ok().unwrap());
    let panicking = adder.ask(Ask::PanicInFuture).ok().unwrap();
    let waiting = adder.ask(Ask::Add(1)).ok().unwrap();
    gate.send(()).unwrap();
    assert!(matches!(soon(panicking), Err(ActorError::Panicked(_))));
    assert_eq!(soon(waiting), Ok(vec![1]));
}

#[test]
fn an_actor_need_not_be_send_and_may_know_its_address() {
    struct Local(std::rc::Rc<u64>);
    impl Actor for Local {
        type Message = bool;
        type Reply = u64;
        async fn handle(&mut self, again: bool, context: &Context<Self>) -> u64 {
            if again {
                context.address().unwrap().cast(false).unwrap();
            }
            *self.0
        }
    }
    let runtime = runtime();
    let local = runtime.spawn_actor_with(1, || Local(std::rc::Rc::new(3))).unwrap();
    assert_eq!(block_on(local.call(true)), Ok(3));
}

#[test]
fn an_actor_ends_with_its_last_address() {
    struct Tell(Option<tokio::sync::oneshot::Sender<()>>);
    impl Actor for Tell {
        type Message = ();
        type Reply = ();
        async fn handle(&mut self, _: (), _: &Context<Self>) {}
        fn stopped(&mut self) {
            let _ = self.0.take().unwrap().send(());
        }
    }
    let runtime = runtime();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let tell = runtime.spawn_actor(0, Tell(Some(sender))).unwrap();
    block_on(tell.call(())).unwrap();
    drop(tell);
    assert_eq!(soon(receiver), Ok(()));
}

#[test]
fn futures_run_on_their_shard_and_give_a_result_or_a_panic() {
    let runtime = runtime();
    let name = || std::thread::current().name().map(str::to_owned);
    let join = runtime.spawn_on(1, move || async move { name() }).unwrap();
    assert_eq!(soon(join).unwrap().as_deref(), Some("test-1"));
    let join = runtime.spawn_on(0, || async { panic!("in the future") }).unwrap();
    let result: Result<(), _> = soon(join);
    assert_eq!(result, Err(ActorError::Panicked("in the future".into())));
    let made: kvrail::runtime::Join<()> =
        runtime.spawn_on(0, || -> std::future::Ready<()> { panic!("in the factory") }).unwrap();
    assert_eq!(soon(made), Err(ActorError::Panicked("in the factory".into())));
}

#[test]
fn a_panicking_panic_handler_hurts_nobody() {
    let runtime = builder().on_panic(|_| panic!("me too")).build().unwrap();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    assert!(matches!(block_on(adder.call(Ask::PanicInFuture)), Err(ActorError::Panicked(_))));
    assert_eq!(soon(runtime.spawn_on(0, || async { 1 }).unwrap()), Ok(1));
}

#[test]
fn what_cannot_be_is_refused() {
    let runtime = runtime();
    let error = runtime.spawn_actor(2, Adder::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("shard 2"), "{error}");
    assert_eq!(builder().mailbox(0).build().unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(builder().shards(Shards::Count(0)).build().unwrap_err().kind(), ErrorKind::Refused);
}
