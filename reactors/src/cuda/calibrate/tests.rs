//! Measuring, on GPUs that aren't there.

use std::sync::Mutex;

use super::super::fake::Fake;
use super::*;

const LEN: usize = BENCH_BYTES;

fn fake(count: u32) -> (Arc<Fake>, Arc<dyn Driver>) {
    let fake = Arc::new(Fake::new(count, 1 << 30).measured());
    let driver: Arc<dyn Driver> = fake.clone();
    (fake, driver)
}

fn ways(measured: &[Measured]) -> Vec<(u32, Way)> {
    assert!(measured.iter().all(|measured| measured.found.is_ok()), "{measured:?}");
    measured.iter().map(|measured| (measured.device, measured.way)).collect()
}

fn region(driver: &Arc<dyn Driver>, device: u32, len: usize) -> Arc<Region> {
    let memory = DeviceMemory::allocate(driver.clone(), device, len).unwrap();
    Arc::new(Region::on_device(memory, len).unwrap())
}

#[test]
fn every_way_is_measured_when_it_opens_and_once() {
    let (fake, driver) = fake(2);
    let near = |device| vec![(device, Way::SameGpu), (device, Way::Host)];
    assert_eq!(ways(&use_vram(&driver, 1)), near(1));
    assert!(use_vram(&driver, 1).is_empty() && use_vram(&driver, 7).is_empty());
    let both = [near(0), vec![(0, Way::OtherGpu), (1, Way::OtherGpu)]].concat();
    assert_eq!(ways(&use_vram(&driver, 0)), both);
    assert_eq!((fake.allocations(), fake.pins()), (0, 0), "all of it was given back");
    assert!(reach_vram(&region(&driver, 0, LEN)).is_empty(), "it is known");
}

#[test]
fn what_was_found_is_what_is_used() {
    let (_, driver) = fake(1);
    let measured = use_vram(&driver, 0);
    for Measured { device, way, found } in measured {
        assert_eq!(driver.crossovers().of(device, way), found.unwrap());
    }
}

#[test]
fn gpus_apart_have_no_way_to_each_other() {
    let fake = Arc::new(Fake::new(2, 1 << 30).apart().measured());
    let driver: Arc<dyn Driver> = fake.clone();
    assert_eq!((use_vram(&driver, 0).len(), use_vram(&driver, 1).len()), (2, 2));
    assert!(reach_vram(&region(&driver, 0, LEN)).is_empty());
}

#[test]
fn a_peer_s_memory_is_read_from_and_left_as_it_was() {
    let (fake, driver) = fake(2);
    let peers = region(&driver, 1, LEN);
    assert!(reach_vram(&peers).is_empty(), "there is nothing here that would copy");
    use_vram(&driver, 0);
    assert!(reach_vram(&region(&driver, 1, LEN / 2)).is_empty(), "it is too short");
    let slice = crate::region::Slice::new(peers.clone(), 0, LEN).unwrap();
    slice.write(0, &vec![7; LEN]).unwrap();
    assert_eq!(ways(&reach_vram(&peers)), [(0, Way::OtherGpu)]);
    let mut bytes = vec![0; LEN];
    slice.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    assert_eq!(fake.allocations(), 1);
}

#[test]
fn what_fails_leaves_the_default_and_gives_all_back() {
    type Break = fn(&mut super::super::fake::Faults);
    let faults: [Break; 4] = [
        |faults| faults.no_memory = true,
        |faults| faults.no_launch = true,
        |faults| faults.is_lost = true,
        |faults| faults.is_stalled = true,
    ];
    for fault in faults {
        let (fake, driver) = fake(1);
        fake.break_with(fault);
        let measured = use_vram(&driver, 0);
        assert!(measured.len() == 2 && measured.iter().all(|measured| measured.found.is_err()));
        for way in [Way::SameGpu, Way::Host] {
            assert_eq!(driver.crossovers().of(0, way), Crossover::default());
        }
        // What is stalled is waited for by a thread of its own.
        let start = Instant::now();
        while (fake.allocations(), fake.pins()) != (0, 0) {
            assert!(start.elapsed() < Duration::from_secs(10), "memory is held");
            std::thread::yield_now();
        }
    }
}

#[test]
fn memory_is_held_until_the_gpu_says_that_it_is_done() {
    let (fake, driver) = fake(1);
    fake.break_with(|faults| faults.no_answer = true);
    assert!(use_vram(&driver, 0).iter().all(|measured| measured.found.is_err()));
    // Two ends of one way, one of the other and host memory.
    assert_eq!((fake.allocations(), fake.pins()), (3, 1));
    fake.break_with(|faults| faults.no_answer = false);
    let start = Instant::now();
    while (fake.allocations(), fake.pins()) != (0, 0) {
        assert!(start.elapsed() < Duration::from_secs(10), "memory is held");
        std::thread::yield_now();
    }
}

#[test]
fn a_gpu_that_is_nearly_full_is_left_alone() {
    let fake = Arc::new(Fake::new(1, FREE_MIN_BYTES - 1).measured());
    let driver: Arc<dyn Driver> = fake.clone();
    assert!(use_vram(&driver, 0).iter().all(|measured| measured.found.is_err()));
    assert_eq!(fake.launches(), 0);
}

#[test]
fn devices_that_are_used_at_once_are_measured_once() {
    let (_, driver) = fake(2);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for device in [0, 1, 0, 1] {
            let (driver, all) = (&driver, &all);
            scope.spawn(move || all.lock().unwrap().extend(use_vram(driver, device)));
        }
    });
    let mut found = ways(&all.into_inner().unwrap());
    found.sort_unstable_by_key(|(device, way)| (*device, *way as u8));
    let each = |device| [Way::SameGpu, Way::OtherGpu, Way::Host].map(|way| (device, way));
    assert_eq!(found, [each(0), each(1)].concat());
}

#[test]
fn either_makes_the_same_copies_and_neighbours_stay_apart() {
    use super::super::plan::Launch;
    let (_, driver) = fake(1);
    let bench = Bench::new(&driver, 0, region(&driver, 0, LEN), region(&driver, 0, LEN)).unwrap();
    for (len, count) in LENGTHS.into_iter().chain(COUNTS.map(|count| (COUNTED_BYTES, count))) {
        let copies = bench.copies(len, len, count);
        let is_copy = |launch: &Launch| matches!(launch, Launch::Copy(range) if range.len == len);
        assert_eq!(copies.engine.launches.len(), count);
        assert!(copies.engine.launches.iter().all(is_copy));
        let kernel = &copies.kernel.launches[..];
        assert!(matches!(kernel, [Launch::Even(even)] if even.ranges().count() == count));
    }
}
