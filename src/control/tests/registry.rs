//! Control planes that find each other through a metadata server.

use std::collections::HashMap;
use std::net::TcpListener;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::routing::get;

use super::metadata::server::{MetadataServer, ServerLimits};
use super::*;

fn server() -> MetadataServer {
    MetadataServer::start("127.0.0.1:0", ServerLimits::default()).unwrap()
}

fn named(name: &str, server: &MetadataServer) -> ControlConfig {
    ControlConfig::new(name, MetadataKind::Http(server.url()))
}

/// One HTTP/1.1 request by hand; status and body.
pub(super) fn http(
    server: &MetadataServer,
    method: &str,
    target: &str,
    body: &str,
) -> (u16, String) {
    let length = body.len();
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    let raw = Raw::to(server.address());
    let answer = String::from_utf8(raw.send(request.as_bytes()).receive()).unwrap();
    let status = answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    (status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}

#[test]
fn an_engine_appears_changes_and_goes() {
    let server = server();
    let (near, _) = start(named("near", &server));
    let (far, engine) = start(named("far:1", &server));
    assert_eq!(far.name(), "far:1");
    assert_eq!(wait(near.resolve("far:1", false)).unwrap_err().kind(), ErrorKind::Lost);

    wait(far.publish()).unwrap();
    let resolved = wait(near.resolve("far:1", false)).unwrap();
    assert_eq!(resolved.descriptor.name, "far:1");
    assert_eq!(resolved.control, far.identity().control);
    wait(near.notify("/far:1", "hello")).unwrap();
    assert_eq!(engine.notes.lock().unwrap()[0], ("near".to_owned(), b"hello".to_vec()));

    engine.buffers.lock().unwrap().clear();
    wait(far.publish()).unwrap();
    assert_eq!(wait(near.resolve("far:1", true)).unwrap().descriptor.buffers, []);

    let key = "/metadata?key=mooncake%2Frpc_meta%2Ffar%3A1";
    let port = far.identity().control.port;
    let text = format!("{{\"ip_or_host_name\":\"127.0.0.1\",\"rpc_port\":{port}}}");
    assert_eq!(http(&server, "GET", key, ""), (200, text));
    wait(far.stop());
    assert_eq!(http(&server, "GET", key, "").0, 404);
    assert_eq!(http(&server, "GET", "/metadata?key=mooncake%2Fram%2Ffar%3A1", "").0, 404);
}

#[test]
fn a_taken_name_is_refused_and_the_owner_named() {
    let server = server();
    let theirs = "{\"ip_or_host_name\":\"10.9.9.9\",\"rpc_port\":1}";
    http(&server, "PUT", "/metadata?key=mooncake/rpc_meta/twin", theirs);
    let (twin, _) = start(named("twin", &server));
    let error = wait(twin.publish()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("10.9.9.9:1"), "{error}");
    wait(twin.stop());
    let kept = http(&server, "GET", "/metadata?key=mooncake/rpc_meta/twin", "");
    assert_eq!(kept, (200, theirs.to_owned()), "what is not ours is not withdrawn");
}

#[test]
fn a_twin_does_not_steal_a_living_engines_name() {
    let server = server();
    let (first, _) = start(named("twin", &server));
    let (second, _) = start(named("twin", &server));
    wait(first.publish()).unwrap();
    assert_eq!(wait(second.publish()).unwrap_err().kind(), ErrorKind::Refused);
    wait(second.stop());
    let (near, _) = start(named("near", &server));
    let resolved = wait(near.resolve("twin", false)).unwrap();
    assert_eq!(resolved.control, first.identity().control);
}

#[test]
fn a_moved_peer_is_found_again() {
    let server = server();
    let (near, _) = start(named("near", &server));
    let (far, _) = start(named("far", &server));
    wait(far.publish()).unwrap();
    wait(near.resolve("far", false)).unwrap();
    wait(far.stop());
    let (far, engine) = start(named("far", &server));
    wait(far.publish()).unwrap();
    wait(near.notify("far", "welcome back")).unwrap();
    assert_eq!(engine.notes.lock().unwrap().len(), 1);
}

#[test]
fn clusters_share_a_server_unseen() {
    let server = server();
    let blue = ControlConfig { cluster: "blue".to_owned(), ..named("engine", &server) };
    let (blue, _) = start(blue);
    let (other, _) = start(named("other", &server));
    wait(blue.publish()).unwrap();
    assert_eq!(wait(other.resolve("engine", false)).unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(http(&server, "GET", "/metadata?key=mooncake/blue/ram/engine", "").0, 200);
}

#[test]
fn a_missing_server_is_an_error_in_time() {
    let server = server();
    let config = named("engine", &server);
    server.stop();
    let (control, _) = start(config);
    let error = wait(control.publish()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    wait(control.stop());
}

#[test]
fn an_abandoned_name_on_our_host_is_taken_over() {
    // As strict as Mooncake's own server: what is there stays, whoever asks.
    let server = StrictServer::start();
    let config = ControlConfig::new("engine", MetadataKind::Http(server.url.clone()));
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let left = format!("{{\"ip_or_host_name\":\"127.0.0.1\",\"rpc_port\":{dead}}}");
    server.documents.lock().unwrap().insert(KEY.to_owned(), left);
    let (heir, _) = start(config.clone());
    wait(heir.publish()).unwrap();
    let (twin, _) = start(config);
    let error = wait(twin.publish()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "the heir lives: {error}");
}

#[test]
fn a_server_that_forgot_is_told_again() {
    let server = server();
    let address = server.address();
    let mut config = named("engine", &server);
    config.limits.metadata_lease = Duration::from_secs(1);
    let (control, _) = start(config);
    wait(control.publish()).unwrap();
    server.stop();
    let server = MetadataServer::start(address, ServerLimits::default()).unwrap();
    for key in ["/metadata?key=mooncake/ram/engine", "/metadata?key=mooncake/rpc_meta/engine"] {
        while http(&server, "GET", key, "").0 != 200 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    wait(control.stop());
    assert_eq!(http(&server, "GET", "/metadata?key=mooncake/ram/engine", "").0, 404);
}

#[test]
fn a_name_elsewhere_is_taken_over_when_nobody_keeps_it() {
    let server = server();
    // TEST-NET-1 (RFC 5737): nobody is there.
    let theirs = "{\"ip_or_host_name\":\"192.0.2.1\",\"rpc_port\":1}";
    http(&server, "PUT", "/metadata?key=mooncake/rpc_meta/engine", theirs);
    let mut config = named("engine", &server);
    config.limits.metadata_connect = Duration::from_millis(200);
    let (control, _) = start(config);
    let publish_beside = |kept: &str| {
        let descriptor = format!(
            "{{\"name\":\"engine\",\"protocol\":\"tcp\",\"tcp_data_port\":1,\"buffers\":[],\
             \"kvrail\":{{\"version\":3{kept}}}}}"
        );
        http(&server, "PUT", "/metadata?key=mooncake/ram/engine", &descriptor);
        wait(control.publish())
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let fresh = format!(",\"kept\":{{\"at_ms\":{},\"for_ms\":15000}}", now.as_millis());
    for kept in ["", &fresh] {
        let error = publish_beside(kept).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{kept}: {error}");
    }
    publish_beside(",\"kept\":{\"at_ms\":1,\"for_ms\":15000}").unwrap();
    let (_, ours) = http(&server, "GET", "/metadata?key=mooncake/ram/engine", "");
    assert!(ours.contains("\"kept\":{\"at_ms\":"), "{ours}");
}

#[test]
fn a_lease_out_of_range_is_refused_with_the_range() {
    let server = server();
    for lease in [Duration::ZERO, Duration::from_secs(48 * 3600)] {
        let mut config = named("engine", &server);
        config.limits.metadata_lease = lease;
        let error = Metadata::new(&config.metadata, "", &config.limits).err().unwrap();
        assert!(error.to_string().contains("from 1s to 86400s"), "{error}");
    }
}

#[test]
#[cfg(not(feature = "etcd"))]
fn a_service_that_this_build_lacks_is_refused_with_its_feature() {
    let kind: MetadataKind = "etcd://a".parse().unwrap();
    let error = Metadata::new(&kind, "", &ControlLimits::default()).err().unwrap();
    assert!(error.to_string().contains("feature `etcd`"), "{error}");
}

const KEY: &str = "key=mooncake%2Frpc_meta%2Fengine";

type Documents = Arc<Mutex<HashMap<String, String>>>;

/// A metadata server that never replaces an rpc_meta entry.
struct StrictServer {
    url: String,
    documents: Documents,
}

impl StrictServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}/metadata", listener.local_addr().unwrap());
        let documents = Documents::default();
        let methods = get(Self::read).put(Self::write).delete(Self::erase);
        let router = Router::new().route("/metadata", methods).with_state(Arc::clone(&documents));
        // Ends with the test's process.
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { url, documents }
    }

    async fn read(State(kept): State<Documents>, RawQuery(key): RawQuery) -> (StatusCode, String) {
        match kept.lock().unwrap().get(&key.unwrap()) {
            Some(document) => (StatusCode::OK, document.clone()),
            None => (StatusCode::NOT_FOUND, String::new()),
        }
    }

    async fn write(
        State(kept): State<Documents>,
        RawQuery(key): RawQuery,
        document: String,
    ) -> StatusCode {
        let (key, mut kept) = (key.unwrap(), kept.lock().unwrap());
        if key.contains("rpc_meta") && kept.contains_key(&key) {
            return StatusCode::BAD_REQUEST;
        }
        kept.insert(key, document);
        StatusCode::OK
    }

    async fn erase(State(kept): State<Documents>, RawQuery(key): RawQuery) -> StatusCode {
        match kept.lock().unwrap().remove(&key.unwrap()) {
            Some(_) => StatusCode::OK,
            None => StatusCode::NOT_FOUND,
        }
    }
}
