//! Hostile servers for our client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kvrail::{Access, Batch, Engine, EngineBuilder, ErrorKind, Failed, Landed, Outcome, Region};

use crate::{LIMIT, OK, REFUSED, Victim, fake_peer, region, run};

const LEN: usize = 64 << 10;

/// A client, its memory, and a server that treats each connection as told.
struct Stage {
    ours: Engine,
    memory: Region,
    name: String,
}

impl Stage {
    fn new(version: u32, serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> Self {
        Self::with(Engine::builder(), version, serve)
    }

    fn with(
        builder: EngineBuilder,
        version: u32,
        serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
    ) -> Self {
        let (name, data) = fake_peer(version);
        std::thread::spawn(move || {
            for stream in data.incoming().flatten() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        let ours = builder.start().unwrap();
        let memory = region(&ours, LEN, Access::LOCAL);
        Self { ours, memory, name }
    }

    async fn carry(&self, is_write: bool, deadline: Duration) -> Result<Outcome, Failed> {
        let peer = self.ours.open(&self.name).await.unwrap();
        let mut batch = Batch::new(&peer);
        batch.deadline(deadline);
        if is_write {
            batch.write(&self.memory.share(0..LEN).unwrap(), 4_096);
        } else {
            batch.read(self.memory.lease(0..LEN).unwrap(), 4_096);
        }
        self.ours.transfer(batch).await
    }

    /// Fails in time with one of these, gives the lease back, and the engine goes on.
    async fn fails(&self, is_write: bool, kinds: &[ErrorKind]) {
        let failed = self.carry(is_write, LIMIT).await.unwrap_err();
        assert!(kinds.contains(&failed.error().kind()), "{failed}");
        assert_eq!(failed.error().peer(), Some(self.name.as_str()), "{failed}");
        drop(failed);
        assert!(!self.memory.is_leased(0..LEN));
    }

    /// The same engine still reaches an honest peer.
    async fn lives(&self) {
        let honest = Victim::new().await;
        let peer = self.ours.open(honest.engine.name()).await.unwrap();
        let mut batch = Batch::new(&peer);
        batch.write(&self.memory.share(0..LEN).unwrap(), honest.region.addr());
        batch.deadline(LIMIT);
        self.ours.transfer(batch).await.unwrap();
    }
}

fn header(stream: &mut TcpStream) -> bool {
    stream.read_exact(&mut [0; 24]).is_ok()
}

#[test]
fn answers_that_are_garbage_are_lost() {
    run(async {
        for answer in [&b"GARBAGE!"[..], &[0; 8], &[0xff; 4_096]] {
            let stage = Stage::new(2, move |mut stream| {
                header(&mut stream);
                let _ = stream.write_all(answer);
                std::thread::sleep(LIMIT);
            });
            for is_write in [true, false] {
                stage.fails(is_write, &[ErrorKind::Lost]).await;
            }
            stage.lives().await;
        }
    });
}

#[test]
fn statuses_that_no_version_defines_are_refused() {
    run(async {
        for code in [2u8, 3, 255] {
            let stage = Stage::new(2, move |mut stream| {
                header(&mut stream);
                let _ = stream.write_all(&[code, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d]);
            });
            stage.fails(false, &[ErrorKind::Refused]).await;
            stage.lives().await;
        }
    });
}

#[test]
fn an_answer_that_is_too_long_ends_its_connection_and_stays_in_its_bounds() {
    run(async {
        let stage = Stage::new(2, |mut stream| {
            if header(&mut stream) {
                let _ = stream.write_all(&OK);
                let _ = stream.write_all(&vec![7; 4 * LEN]);
                std::thread::sleep(LIMIT);
            }
        });
        let guard = region(&stage.ours, 4 * LEN, Access::LOCAL);
        for _ in 0..5 {
            // It may be done before what is too much has arrived.
            let leases = match stage.carry(false, LIMIT).await {
                Ok(outcome) => outcome.into_leases(),
                Err(failed) => failed.into_outcome().into_leases(),
            };
            assert_eq!(leases.len(), 1);
        }
        assert!(crate::contents(&guard, 0..4 * LEN).iter().all(|&byte| byte == 0));
        stage.lives().await;
    });
}

#[test]
fn bytes_that_nobody_asked_for_harm_only_their_connection() {
    run(async {
        let stage = Stage::new(2, |mut stream| {
            let _ = stream.write_all(&OK.repeat(1_000));
            std::thread::sleep(Duration::from_millis(20));
        });
        stage.fails(false, &[ErrorKind::Lost]).await;
        stage.lives().await;
    });
}

#[test]
fn a_server_that_never_answers_is_given_up_at_the_deadline_or_when_patience_ends() {
    run(async {
        let silent = |stream: TcpStream| {
            std::thread::sleep(2 * LIMIT);
            drop(stream);
        };
        for version in [1, 2] {
            let stage = Stage::new(version, silent);
            for is_write in [true, false] {
                let failed = stage.carry(is_write, Duration::from_millis(50)).await.unwrap_err();
                assert_eq!(failed.error().kind(), ErrorKind::Expired);
            }
            let impatient = Engine::builder().progress_deadline(Duration::from_millis(500));
            let stage = Stage::with(impatient, version, silent);
            stage.fails(true, &[ErrorKind::Lost]).await;
            stage.fails(false, &[ErrorKind::Lost]).await;
            stage.lives().await;
        }
    });
}

#[test]
fn a_server_that_closes_in_mid_answer_is_lost() {
    run(async {
        for version in [1, 2] {
            let stage = Stage::new(version, move |mut stream| {
                header(&mut stream);
                let status = if version == 2 { &OK[..] } else { &[] };
                let _ = stream.write_all(&[status, &[7; LEN / 2]].concat());
            });
            stage.fails(false, &[ErrorKind::Lost, ErrorKind::Refused]).await;
            stage.lives().await;
        }
    });
}

#[test]
fn a_status_that_drips_in_is_still_a_status() {
    run(async {
        let stage = Stage::new(2, |mut stream| {
            stream.set_nodelay(true).unwrap();
            while header(&mut stream) {
                stream.read_exact(&mut vec![0; LEN]).unwrap();
                for byte in OK {
                    stream.write_all(&[byte]).unwrap();
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        for _ in 0..3 {
            stage.carry(true, LIMIT).await.unwrap();
        }
        stage.lives().await;
    });
}

/// One byte now and then is progress, but no reason to overrun a deadline.
#[test]
fn an_answer_that_drips_for_ever_ends_with_its_deadline() {
    run(async {
        for version in [1, 2] {
            let stage = Stage::new(version, move |mut stream| {
                stream.set_nodelay(true).unwrap();
                header(&mut stream);
                let _ = stream.write_all(if version == 2 { &OK } else { &[] });
                while stream.write_all(&[7]).is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let start = Instant::now();
            let failed = stage.carry(false, Duration::from_millis(100)).await.unwrap_err();
            assert_eq!(failed.error().kind(), ErrorKind::Expired);
            assert!(start.elapsed() < LIMIT);
            drop(failed);
            stage.lives().await;
        }
    });
}

#[test]
fn a_server_that_refuses_everything_is_believed() {
    run(async {
        let stage = Stage::new(2, |mut stream| {
            if header(&mut stream) {
                let _ = stream.write_all(&REFUSED);
            }
        });
        let failed = stage.carry(false, LIMIT).await.unwrap_err();
        assert_eq!(
            (failed.error().kind(), failed.error().landed()),
            (ErrorKind::Refused, Landed::No)
        );
        drop(failed);
        stage.fails(true, &[ErrorKind::Refused]).await;
        // Version 1 has no word for it.
        let stage = Stage::new(1, |mut stream| {
            header(&mut stream);
        });
        stage.fails(true, &[ErrorKind::Refused]).await;
        stage.fails(false, &[ErrorKind::Refused]).await;
        stage.lives().await;
    });
}

/// Events need version 2, so a client that speaks version 1 only says it the other way.
#[test]
fn a_version_1_client_notifies_and_is_told_that_it_can_not_count() {
    run(async {
        let theirs = Engine::builder().start().unwrap();
        let ours = Engine::builder().tcp_version_1(true).start().unwrap();
        let peer = ours.open(theirs.name()).await.unwrap();
        ours.notify(&peer, "hello").await.unwrap();
        assert_eq!(theirs.notification().await.bytes, b"hello");
        let mut batch = Batch::new(&peer);
        batch.count(7, 1);
        let failed = ours.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Refused, "{failed}");
        assert!(failed.to_string().contains("version 1"), "{failed}");
    });
}

/// A refusal closes the connection, and what was answered before it must not get lost with it.
#[test]
fn a_refusal_in_the_middle_harms_nobody_else() {
    run(async {
        let honest = Victim::new().await;
        let ours = Engine::builder().start().unwrap();
        let memory = region(&ours, 16 << 20, Access::LOCAL);
        let peer = ours.open(honest.engine.name()).await.unwrap();
        for round in 0..30 {
            let mut batch = Batch::new(&peer);
            for at in 0..64 {
                let lease = memory.lease(at << 18..(at + 1) << 18).unwrap();
                let addr = if at == 5 + round { 1 } else { honest.region.addr() };
                batch.read(lease, addr);
            }
            batch.deadline(LIMIT);
            let outcome = ours.transfer(batch).await.unwrap_err().into_outcome();
            for (at, status) in outcome.statuses().iter().enumerate() {
                match status {
                    Err(error) if at == 5 + round => {
                        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
                    }
                    status => assert!(status.is_ok(), "round {round}, request {at}: {status:?}"),
                }
            }
        }
    });
}
