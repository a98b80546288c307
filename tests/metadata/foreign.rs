//! What Mooncake writes, put there by hand: its wheels know no Redis.

use crate::{Kind, Service, engine, keys, reads, region};

/// A descriptor without our own key, in Mooncake's order of fields, with its own of 0.3.13.
#[test]
fn an_entry_of_mooncakes_is_opened_and_read() {
    let service = Service::start(Kind::Redis);
    let (near, far) = (engine("near", &service), engine("far", &service));
    let _memory = region(&far, 8);
    let [rpc, ram] = keys("far").map(|key| service.get(&key).expect("published"));
    let mut descriptor: serde_json::Value = serde_json::from_str(&ram).expect("JSON");
    let fields = descriptor.as_object_mut().expect("an object");
    fields.remove("kvrail").expect("ours");
    fields.insert("name".to_owned(), "mooncake:4711".into());
    fields.insert("rdma_server_name".to_owned(), "".into());
    let [their_rpc, their_ram] = keys("mooncake:4711");
    service.put(&their_ram, &format!("{descriptor}\n"));
    service.put(&their_rpc, &rpc);
    reads(&near, "mooncake:4711", 8);
    // Readers take a text without the line feed, too.
    service.put(&their_ram, &descriptor.to_string());
    service.put(&their_rpc, rpc.trim_end());
    reads(&near, "mooncake:4711", 8);
}

/// An engine of Mooncake's that lives, and has neither lease nor age: its name is not taken over.
#[test]
fn a_name_of_mooncakes_is_not_taken_over() {
    let service = Service::start(Kind::Redis);
    let [rpc, _] = keys("mooncake");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let theirs = format!("{{\"ip_or_host_name\":\"127.0.0.1\",\"rpc_port\":{port}}}\n");
    service.put(&rpc, &theirs);
    let error = crate::named("mooncake", &service.url()).start().expect_err("it lives");
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    assert_eq!(service.get(&rpc), Some(theirs));
}
