//! VRAM by TCP, through blocks of host memory: batches on several GPUs, and GPUs that fail there.

use kvrail::{Batch, Engine, ErrorKind, Landed, Lease, Location, PathKind, Region};

use super::{
    buffer, contents, engine, fake, fill, open, pages, pattern, read, region, run, shared, write,
};

const LEN: usize = 1 << 20;
const PAGE: usize = 4096;

fn gpus(engine: &Engine) -> [Region; 2] {
    [0, 1].map(|gpu| region(engine, LEN, Location::Cuda(gpu)))
}

/// One that goes by TCP to its own host.
fn tcp(fake: &std::sync::Arc<kvrail_reactors::cuda::fake::Fake>) -> Engine {
    let gpus = kvrail_reactors::cuda::Gpus::given(fake.clone());
    Engine::builder().gpus(gpus).same_host(false).start().expect("an engine")
}

#[test]
fn a_batch_takes_turns_between_two_gpus() {
    run(async {
        let tcp = |builder: kvrail::EngineBuilder| builder.same_host(false);
        let (a, b) = (engine(tcp), engine(tcp));
        let peer = open(&a, &b, PathKind::Tcp).await;
        let (near, far) = (gpus(&a), gpus(&b));
        let sent = [pattern(1, LEN), pattern(2, LEN)];
        near.iter().zip(&sent).for_each(|(region, bytes)| fill(region, bytes));
        let mut batch = Batch::new(&peer);
        for at in (0..LEN).step_by(PAGE) {
            // From one GPU to the other, so that both sides change.
            for (near, far) in near.iter().zip(far.iter().rev()) {
                let lease = near.share(at..at + PAGE).expect("a lease");
                batch.write(&lease, far.addr() + at as u64);
            }
        }
        a.transfer(batch).await.expect("a write");
        assert!(contents(&far[1]) == sent[0] && contents(&far[0]) == sent[1]);
        near.iter().for_each(|region| fill(region, &[0; LEN]));
        let mut batch = Batch::new(&peer);
        for at in (0..LEN).step_by(PAGE) {
            for (near, far) in near.iter().zip(far.iter().rev()) {
                let lease = near.lease(at..at + PAGE).expect("a lease");
                batch.read(lease, far.addr() + at as u64);
            }
        }
        a.transfer(batch).await.expect("a read");
        assert!(contents(&near[0]) == sent[0] && contents(&near[1]) == sent[1]);
    });
}

#[test]
fn a_launch_that_fails_fails_the_write_at_once_and_nothing_landed() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (tcp(&ours), tcp(&theirs));
        let peer = open(&a, &b, PathKind::Tcp).await;
        let (near, far) = (region(&a, LEN, Location::Cuda(0)), region(&b, LEN, Location::Cuda(0)));
        let (bytes, pages) = (pattern(5, LEN), pages(256, PAGE));
        fill(&near, &bytes);
        a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect("a write");
        fill(&far, &vec![0; LEN]);
        ours.break_with(|faults| faults.no_launch = true);
        let batch = write(&peer, &near, &buffer(&far), &pages);
        let failed = a.transfer(batch).await.expect_err("no launch");
        let error = failed.error();
        assert_eq!((error.kind(), error.landed()), (ErrorKind::Refused, Landed::No), "{error}");
        assert!(failed.into_outcome().into_leases().into_iter().all(shared));
        assert!(contents(&far) == vec![0; LEN]);
        ours.break_with(|faults| faults.no_launch = false);
        a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect("it works again");
        a.transfer(read(&peer, &near, &buffer(&far), &pages)).await.expect("a read");
        assert!(contents(&near) == bytes);
    });
}

#[test]
fn a_launch_that_fails_fails_the_read_and_its_leases_are_undefined() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (tcp(&ours), tcp(&theirs));
        let peer = open(&a, &b, PathKind::Tcp).await;
        let (near, far) = (region(&a, LEN, Location::Cuda(0)), region(&b, LEN, Location::Cuda(0)));
        let pages = pages(64, 16 << 10);
        ours.break_with(|faults| faults.no_launch = true);
        let batch = read(&peer, &near, &buffer(&far), &pages);
        let failed = a.transfer(batch).await.expect_err("no launch");
        assert_eq!(failed.error().kind(), ErrorKind::Refused, "{}", failed.error());
        let leases = failed.into_outcome().into_leases();
        assert!(leases.iter().any(|lease| matches!(lease, Lease::Undefined(_))));
        drop(leases);
        ours.break_with(|faults| faults.no_launch = false);
        a.transfer(read(&peer, &near, &buffer(&far), &pages)).await.expect("it works again");
    });
}

#[test]
fn a_gpu_that_is_lost_is_not_blamed_on_the_peer_and_host_memory_goes_on() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (tcp(&ours), tcp(&theirs));
        let peer = open(&a, &b, PathKind::Tcp).await;
        let (near, far) = (region(&a, LEN, Location::Cuda(0)), region(&b, LEN, Location::Cuda(0)));
        let host = region(&a, LEN, Location::Cpu(None));
        let bytes = pattern(6, LEN);
        fill(&host, &bytes);
        ours.break_with(|faults| faults.is_lost = true);
        let failed = a.transfer(write(&peer, &near, &buffer(&far), &pages(256, PAGE))).await;
        let text = failed.expect_err("it is lost").error().to_string();
        assert!(text.contains("GPU is lost"), "{text}");
        let whole = [super::Page { near: 0, far: 0 }];
        a.transfer(write(&peer, &host, &buffer(&far), &whole)).await.expect("a write");
        assert!(contents(&far) == bytes);
    });
}
