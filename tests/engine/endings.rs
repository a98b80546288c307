//! Transfers that don't end well: peers that vanish or stall, futures that are dropped, engines
//! that stop. Nothing hangs and leases always come back.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use kvrail::{Access, Batch, ErrorKind, Landed};

use super::{engine, pair, region, run};

/// A peer made by hand: a control daemon that answers any request with a descriptor whose data
/// port is the returned listener.
fn fake_peer() -> (String, TcpListener) {
    let (control, data) = (listener(), listener());
    let (name, port) = (control.local_addr().unwrap(), data.local_addr().unwrap().port());
    let descriptor = format!(
        r#"{{"buffers":[],"name":"{name}","protocol":"tcp",
            "tcp_data_port":{port},"tcp_proto_version":2}}"#
    );
    std::thread::spawn(move || {
        for stream in control.incoming() {
            let mut stream = stream.unwrap();
            let mut header = [0; 9];
            stream.read_exact(&mut header).unwrap();
            let len = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize - 1;
            stream.read_exact(&mut vec![0; len]).unwrap();
            stream.write_all(&(descriptor.len() as u64 + 1).to_le_bytes()).unwrap();
            stream.write_all(&[header[8]]).unwrap();
            stream.write_all(descriptor.as_bytes()).unwrap();
        }
    });
    (name.to_string(), data)
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

async fn leases_are_back(region: &kvrail::Region) {
    let start = Instant::now();
    while region.is_leased(0..region.len()) {
        assert!(start.elapsed() < Duration::from_secs(20), "a lease does not come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_silent_peer_ends_in_expired_and_gives_the_leases_back() {
    run(async {
        let ours = engine();
        let (name, _data) = fake_peer();
        let peer = ours.open(&name).await.unwrap();
        let memory = region(&ours, 64 << 20, Access::LOCAL);
        for is_write in [true, false] {
            let mut batch = Batch::new(&peer);
            batch.deadline(Duration::from_millis(50));
            if is_write {
                batch.write(&memory.share(0..memory.len()).unwrap(), 4096);
            } else {
                batch.read(memory.lease(0..memory.len()).unwrap(), 4096);
            }
            let failed = ours.transfer(batch).await.unwrap_err();
            assert_eq!(failed.error().kind(), ErrorKind::Expired, "{failed}");
            drop(failed);
            assert!(!memory.is_leased(0..memory.len()));
        }
    });
}

#[test]
fn a_dropped_future_keeps_the_memory_only_while_it_is_touched() {
    run(async {
        let ours = engine();
        let (name, _data) = fake_peer();
        let peer = ours.open(&name).await.unwrap();
        let memory = region(&ours, 64 << 20, Access::LOCAL);
        let mut batch = Batch::new(&peer);
        batch.write(&memory.share(0..memory.len()).unwrap(), 4096);
        let transfer = ours.transfer(batch);
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(transfer);
        leases_are_back(&memory).await;
    });
}

#[test]
fn a_peer_that_closes_in_mid_request_is_lost_after_some_tries() {
    run(async {
        let ours = engine();
        let (name, data) = fake_peer();
        std::thread::spawn(move || {
            for stream in data.incoming() {
                let mut bytes = [0; 100];
                let _ = stream.unwrap().read(&mut bytes);
            }
        });
        let peer = ours.open(&name).await.unwrap();
        let memory = region(&ours, 4 << 20, Access::LOCAL);
        let mut batch = Batch::new(&peer);
        batch.write(&memory.share(0..memory.len()).unwrap(), 4096);
        let failed = ours.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Lost, "{failed}");
        assert_eq!(failed.error().landed(), Landed::Maybe);
        assert_eq!(failed.error().peer(), Some(name.as_str()));
    });
}

#[test]
fn nobody_at_the_port_is_lost_at_once() {
    run(async {
        let ours = engine();
        let (name, data) = fake_peer();
        drop(data);
        let peer = ours.open(&name).await.unwrap();
        let memory = region(&ours, 4096, Access::LOCAL);
        let mut batch = Batch::new(&peer);
        batch.write(&memory.share(0..4096).unwrap(), 4096);
        let failed = ours.transfer(batch).await.unwrap_err();
        assert_eq!((failed.error().kind(), failed.error().landed()), (ErrorKind::Lost, Landed::No));
        assert!(ours.open("127.0.0.1:1").await.is_err());
    });
}

#[test]
fn answers_that_make_no_sense_end_the_connection_and_not_the_engine() {
    run(async {
        let ours = engine();
        for answer in [&b"GARBAGE! and more of it"[..], &[9, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d]] {
            let (name, data) = fake_peer();
            let answer = answer.to_vec();
            std::thread::spawn(move || {
                for stream in data.incoming() {
                    let mut stream = stream.unwrap();
                    let _ = stream.read(&mut [0; 24]);
                    let _ = stream.write_all(&answer);
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            let peer = ours.open(&name).await.unwrap();
            let memory = region(&ours, 4096, Access::LOCAL);
            let mut batch = Batch::new(&peer);
            batch.read(memory.lease(0..4096).unwrap(), 4096);
            assert!(ours.transfer(batch).await.is_err());
        }
    });
}

#[test]
fn stopping_ends_what_is_under_way_as_closed() {
    run(async {
        let ours = engine();
        let (name, _data) = fake_peer();
        let peer = ours.open(&name).await.unwrap();
        let memory = region(&ours, 64 << 20, Access::LOCAL);
        let mut batch = Batch::new(&peer);
        batch.write(&memory.share(0..memory.len()).unwrap(), 4096);
        let transfer = ours.transfer(batch);
        ours.stop().await;
        assert_eq!(transfer.await.unwrap_err().error().kind(), ErrorKind::Closed);
        let mut batch = Batch::new(&peer);
        batch.write(&memory.share(0..4096).unwrap(), 4096);
        assert_eq!(ours.transfer(batch).await.unwrap_err().error().kind(), ErrorKind::Closed);
    });
}

#[test]
fn a_peer_that_stopped_is_lost_and_its_successor_is_another() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let target = region(&theirs, 4096, Access::READ_WRITE);
        let memory = region(&ours, 4096, Access::LOCAL);
        let write = || {
            let mut batch = Batch::new(&peer);
            batch.write(&memory.share(0..4096).unwrap(), target.addr());
            ours.transfer(batch)
        };
        write().await.unwrap();
        theirs.stop().await;
        assert_eq!(write().await.unwrap_err().error().kind(), ErrorKind::Lost);
        assert!(ours.probe(&peer).await.is_err());
    });
}
