//! What every service does for us: names with one owner, documents that come, change and go.

use std::sync::Barrier;

use kvrail::{Engine, ErrorKind, Result};

use crate::{
    Kind, Service, engine, eventually, keys, named, on_every_service, on_services_with_leases,
    reads, region, wait,
};

on_every_service!(
    engines_meet,
    a_name_has_one_owner,
    a_name_that_was_usurped_is_taken_back_when_it_is_free,
    clusters_share_a_service_unseen,
);
on_services_with_leases!(of_many_writers_one_wins);

fn engines_meet(kind: Kind) {
    let service = Service::start(kind);
    let (near, far) = (engine("near", &service), engine("far/one:7", &service));
    let memory = region(&far, 7);
    reads(&near, "far/one:7", 7);
    let [rpc, _] = keys("far/one:7");
    let ends_a_line = service.get(&rpc).expect("published").ends_with("}\n");
    assert_eq!(ends_a_line, kind != Kind::Http, "as Mooncake writes it there");
    // A name with a slash stands under the prefix itself.
    let ram = "mooncake/far/one:7";
    assert!(service.get(ram).expect("published").contains(&memory.addr().to_string()));

    wait(far.unregister(memory)).expect("it was registered");
    wait(far.publish()).expect("published");
    assert!(wait(near.open("far/one:7")).expect("the peer").buffers().is_empty());
    wait(far.stop());
    assert_eq!((service.get(&rpc), service.get(ram)), (None, None));
    let gone = wait(near.open("far/one:7")).expect_err("it has left");
    assert_eq!(gone.kind(), ErrorKind::Lost, "{gone}");
}

fn a_name_has_one_owner(kind: Kind) {
    let service = Service::start(kind);
    let owner = engine("twin", &service);
    let memory = region(&owner, 1);
    for _ in 0..3 {
        wait(owner.publish()).expect("one's own is written over");
    }
    let [rpc, _] = keys("twin");
    let address = port(&service.get(&rpc).expect("published"));
    let error = named("twin", &service.url()).start().expect_err("the name is taken");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains(&address), "{error}: {address}");
    let reader = engine("reader", &service);
    reads(&reader, "twin", 1);
    drop(memory);
}

/// The port in a document `rpc_meta`.
fn port(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
    format!("127.0.0.1:{}", value["rpc_port"])
}

fn a_name_that_was_usurped_is_taken_back_when_it_is_free(kind: Kind) {
    let service = Service::start(kind);
    let owner = engine("owner", &service);
    let _memory = region(&owner, 2);
    let [rpc, ram] = keys("owner");
    let theirs = r#"{"ip_or_host_name":"10.9.9.9","rpc_port":1}"#;
    service.put(&rpc, theirs);
    let error = wait(owner.publish()).expect_err("the name is another's");
    assert!(error.to_string().contains("10.9.9.9:1"), "{error}");
    assert_eq!(service.get(&rpc).as_deref(), Some(theirs), "it is not written over");

    service.delete(&rpc);
    eventually("the name is the owner's again", || service.get(&rpc).is_some());
    reads(&engine("reader", &service), "owner", 2);

    // A descriptor that somebody else wrote there is replaced by the one that is true.
    service.put(&ram, r#"{"name":"owner","protocol":"tcp","tcp_data_port":1,"buffers":[]}"#);
    eventually("its descriptor is the owner's again", || {
        service.get(&ram).is_some_and(|text| text.contains("kvrail"))
    });

    service.put(&rpc, theirs);
    wait(owner.stop());
    assert_eq!(service.get(&rpc).as_deref(), Some(theirs), "what is another's stays");
}

fn clusters_share_a_service_unseen(kind: Kind) {
    let service = Service::start(kind);
    let blue = named("engine", &service.url()).cluster("blue").start().expect("an engine");
    let red = named("engine", &service.url()).cluster("red").start().expect("an engine");
    let _memory = (region(&blue, 1), region(&red, 2));
    let reader = named("reader", &service.url()).cluster("red").start().expect("an engine");
    reads(&reader, "engine", 2);
    assert!(service.get("mooncake/blue/ram/engine").is_some());
}

fn of_many_writers_one_wins(kind: Kind) {
    const WRITERS: usize = 4;
    let service = Service::start(kind);
    let (url, together) = (service.url(), Barrier::new(WRITERS));
    let start = || {
        let builder = named("one", &url);
        together.wait();
        builder.start()
    };
    let started: Vec<Result<Engine>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WRITERS).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let (winners, losers): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
    assert_eq!(winners.len(), 1, "{winners:?}");
    for loser in losers {
        assert_eq!(loser.expect_err("it lost").kind(), ErrorKind::Refused);
    }
    let winner = winners.into_iter().next().expect("one").expect("it won");
    let _memory = region(&winner, 9);
    reads(&engine("reader", &service), "one", 9);
}
