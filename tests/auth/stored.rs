//! What is stored at a metadata server, where whoever reaches it reads it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvrail::metadata::server::{MetadataServer, ServerLimits};
use kvrail::{Access, Engine, EngineBuilder, Metadata};

use crate::{Keys, Way, read, region, run};

fn server() -> MetadataServer {
    MetadataServer::start("127.0.0.1:0", ServerLimits::default()).unwrap()
}

fn named(name: &str, server: &MetadataServer) -> EngineBuilder {
    let builder = Way::Tcp.builder().name(name).advertise("127.0.0.1");
    builder.metadata(Metadata::Http(server.url()))
}

/// The document of an engine, as anyone may get it.
fn stored(server: &MetadataServer, name: &str) -> serde_json::Value {
    find(server, name).expect("it is there")
}

/// The same, if there is one.
fn find(server: &MetadataServer, name: &str) -> Option<serde_json::Value> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let request = format!("GET /metadata?key=mooncake%2Fram%2F{name} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).unwrap())
}

async fn publish(engine: &Engine) -> kvrail::Region {
    let memory = region(engine, Access::READ_WRITE, 7);
    engine.publish().await.unwrap();
    memory
}

#[test]
fn a_stored_descriptor_tells_no_address_and_peers_ask_for_it() {
    run(async {
        let (keys, server) = (Keys::new(), server());
        let authentication = keys.of(&[("owner", 1), ("peer", 2)]);
        let owner = named("owner", &server).authentication(authentication).start().unwrap();
        let memory = publish(&owner).await;
        let document = stored(&server, "owner");
        assert_eq!(document["buffers"], serde_json::json!([]));
        assert_eq!(document.get("devices"), None);
        let address = memory.addr().to_string();
        assert!(!document.to_string().contains(&address), "{document}");
        let peer = named("peer", &server).authentication(keys.of(&[("peer", 2)])).start().unwrap();
        let opened = peer.open("owner").await.unwrap();
        assert_eq!(opened.buffers().len(), 1);
        assert_eq!(read(&peer, &opened, memory.addr()).await.unwrap(), 7);
    });
}

#[test]
fn what_is_published_again_tells_no_address_either() {
    run(async {
        let (keys, server) = (Keys::new(), server());
        let owner = named("owner", &server).metadata_lease(Duration::from_secs(1));
        let owner = owner.authentication(keys.of(&[("owner", 1)])).start().unwrap();
        let _memory = publish(&owner).await;
        let address = server.address();
        server.stop();
        let server = MetadataServer::start(address, ServerLimits::default()).unwrap();
        let document = loop {
            match find(&server, "owner") {
                Some(document) => break document,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert_eq!(document["buffers"], serde_json::json!([]));
    });
}

#[test]
fn without_authentication_it_tells_all_as_mooncake_needs_it() {
    run(async {
        let server = server();
        let owner = named("owner", &server).start().unwrap();
        let memory = publish(&owner).await;
        assert_eq!(stored(&server, "owner")["buffers"][0]["addr"], memory.addr());
    });
}

/// Whoever writes there can send us to another engine, but not make us take it for the one meant.
#[test]
fn a_descriptor_that_was_written_by_somebody_else_downgrades_nothing() {
    run(async {
        let (keys, server) = (Keys::new(), server());
        let liar = named("owner", &server).start().unwrap();
        publish(&liar).await;
        let peer = named("peer", &server).authentication(keys.of(&[("peer", 2)])).start().unwrap();
        assert!(peer.open("owner").await.is_err());
    });
}
