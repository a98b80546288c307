//! The reactor on GPUs that aren't there.

use super::super::driver::FailureKind;
use super::super::fake::Fake;
use super::super::memory::DeviceMemory;
use super::*;
use crate::copy::{CopyWork, Source};
use crate::region::Slice;

const LEN: usize = 1 << 20;

struct Rig {
    fake: Arc<Fake>,
    cuda: Cuda,
    doorbell: Arc<Doorbell>,
}

fn rig() -> Rig {
    let doorbell = Arc::new(Doorbell::new().unwrap());
    let cuda = Cuda::new(8, doorbell.clone());
    Rig { fake: Arc::new(Fake::new(2, 1 << 30)), cuda, doorbell }
}

impl Rig {
    fn vram(&self, device: u32) -> Slice {
        let driver: Arc<dyn Driver> = self.fake.clone();
        let memory = DeviceMemory::allocate(driver, device, LEN).unwrap();
        let region = Region::on_device(memory, LEN).unwrap();
        Slice::new(Arc::new(region), 0, LEN).unwrap()
    }

    /// Waits as a shard does, asleep where it may.
    fn finish(&mut self) -> Vec<GroupDone> {
        let mut done = Vec::new();
        while !self.cuda.is_idle() {
            self.doorbell.sleep();
            match self.cuda.arm() {
                true => self.doorbell.wait(None).unwrap(),
                false => self.doorbell.wake(),
            }
            self.doorbell.drain();
            self.cuda.poll(usize::MAX, &mut done);
        }
        done
    }
}

fn host() -> Slice {
    Slice::new(Arc::new(Region::allocate(LEN, None).unwrap()), 0, LEN).unwrap()
}

fn group(tag: u64, pairs: &[(&Slice, &Slice)]) -> Group {
    let work = |(source, target): &(&Slice, &Slice)| CopyWork {
        tag: 0,
        source: (*source).clone().into(),
        target: (*target).clone(),
    };
    let works: Vec<_> = pairs.iter().map(work).collect();
    Group { tag, pages: Arc::new(Pages::of(works.iter()).unwrap()) }
}

fn bytes(slice: &Slice) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn pages_go_from_gpu_to_gpu_to_the_host_and_back() {
    let mut rig = rig();
    let (a, b, c) = (rig.vram(0), rig.vram(1), host());
    let content: Vec<u8> = (0..LEN).map(|k| (k / 7) as u8).collect();
    a.write(0, &content).unwrap();
    let page = |slice: &Slice, k: usize| slice.part(k * 4096, 4096).unwrap();
    // In another order each time.
    let shuffled: Vec<_> = (0..256).map(|k| (page(&a, k), page(&b, (k * 77) % 256))).collect();
    let back: Vec<_> = (0..256).map(|k| (page(&b, (k * 77) % 256), page(&c, k))).collect();
    for pairs in [shuffled, back] {
        let pairs: Vec<_> = pairs.iter().map(|(source, target)| (source, target)).collect();
        rig.cuda.submit(group(7, &pairs)).unwrap();
        let done = rig.finish();
        assert!(done.len() == 1 && done[0].tag == 7 && done[0].error.is_none());
    }
    assert!(bytes(&c) == content);
}

#[test]
fn a_group_is_over_once_and_full_gives_it_back() {
    let mut rig = rig();
    let (a, b) = (rig.vram(0), rig.vram(0));
    for tag in 0..8 {
        rig.cuda.submit(group(tag, &[(&a, &b)])).unwrap();
    }
    assert_eq!(rig.cuda.submit(group(8, &[(&a, &b)])).unwrap_err().tag, 8);
    let tags: Vec<_> = rig.finish().iter().map(|done| done.tag).collect();
    assert_eq!(tags, (0..8).collect::<Vec<_>>());
}

#[test]
fn what_goes_wrong_is_said_and_the_memory_comes_back() {
    let mut rig = rig();
    let (a, b) = (rig.vram(0), rig.vram(1));
    rig.fake.break_with(|faults| faults.no_launch = true);
    rig.cuda.submit(group(1, &[(&a, &b)])).unwrap();
    let done = rig.finish();
    assert_eq!(done[0].error.as_ref().unwrap().call, "cuLaunchKernel");
    drop(done);
    rig.fake.break_with(|faults| (faults.no_launch, faults.is_stalled) = (false, true));
    rig.cuda.submit(group(2, &[(&a, &b)])).unwrap();
    let mut done = Vec::new();
    for _ in 0..10 {
        rig.cuda.poll(8, &mut done);
    }
    assert!(done.is_empty() && !rig.cuda.is_idle());
    rig.fake.break_with(|faults| faults.is_lost = true);
    rig.cuda.poll(8, &mut done);
    assert_eq!(done[0].error.as_ref().unwrap().kind, FailureKind::Lost);
    assert!(a.read(0, &mut [0]).is_err());
    // It stays lost, whatever the driver says later: nothing more is added to it.
    rig.fake.break_with(|faults| (faults.is_lost, faults.is_stalled) = (false, false));
    rig.cuda.submit(group(3, &[(&a, &b)])).unwrap();
    assert_eq!(rig.finish()[0].error.as_ref().unwrap().kind, FailureKind::Lost);
    drop((a, b, done, rig.cuda));
    assert_eq!(rig.fake.allocations(), 0);
}

#[test]
fn a_region_that_is_settled_is_quiet() {
    let mut rig = rig();
    let (a, b, c) = (rig.vram(0), rig.vram(0), rig.vram(0));
    a.write(0, &[1; LEN]).unwrap();
    rig.cuda.submit(group(1, &[(&a, &b)])).unwrap();
    let mut done = Vec::new();
    rig.fake.break_with(|faults| faults.is_stalled = true);
    rig.cuda.poll(8, &mut done);
    // This one was not begun.
    rig.cuda.submit(group(2, &[(&a, &c)])).unwrap();
    rig.cuda.settle(b.region());
    assert_eq!(bytes(&b)[..2], [1, 1]);
    rig.fake.break_with(|faults| faults.is_stalled = false);
    a.write(0, &[2; LEN]).unwrap();
    assert_eq!(rig.finish().len(), 2);
    assert_eq!((bytes(&b)[0], bytes(&c)[0]), (1, 2));
}

#[test]
fn what_is_not_begun_goes_on_without_the_region_that_is_settled() {
    let mut rig = rig();
    let (a, b, c) = (rig.vram(0), rig.vram(0), rig.vram(0));
    a.write(0, &[1; LEN]).unwrap();
    rig.cuda.submit(group(1, &[(&a, &b), (&a, &c)])).unwrap();
    rig.cuda.settle(b.region());
    let done = rig.finish();
    assert_eq!(done[0].error.as_ref().unwrap().kind, FailureKind::Fenced);
    assert_eq!((bytes(&b)[LEN - 1], bytes(&c)[LEN - 1]), (0, 1));
}

#[test]
fn a_driver_that_can_not_say_keeps_the_memory_held() {
    let mut rig = rig();
    let (a, b) = (rig.vram(0), rig.vram(1));
    a.write(0, &[1; LEN]).unwrap();
    type Break = fn(&mut super::super::fake::Faults, bool);
    let faults: [Break; 2] =
        [|faults, is_so| faults.no_answer = is_so, |faults, is_so| faults.no_mark = is_so];
    for (tag, fault) in (0..).zip(faults) {
        rig.fake.break_with(|faults| fault(faults, true));
        rig.cuda.submit(group(tag, &[(&a, &b)])).unwrap();
        let mut done = Vec::new();
        for _ in 0..10 {
            rig.cuda.poll(8, &mut done);
            rig.cuda.arm();
        }
        assert!(done.is_empty(), "nobody knows that it is over");
        rig.fake.break_with(|faults| fault(faults, false));
        let done = rig.finish();
        assert_eq!((done[0].tag, done[0].error.as_ref()), (tag, None));
    }
    assert_eq!(bytes(&b)[LEN - 1], 1);
}

#[test]
fn settling_waits_for_a_driver_that_can_not_say() {
    let mut rig = rig();
    let (a, b) = (rig.vram(0), rig.vram(1));
    a.write(0, &[1; LEN]).unwrap();
    rig.fake.break_with(|faults| faults.is_stalled = true);
    rig.cuda.submit(group(1, &[(&a, &b)])).unwrap();
    rig.cuda.poll(8, &mut Vec::new());
    rig.fake.break_with(|faults| faults.no_answer = true);
    let fake = rig.fake.clone();
    let answers = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        fake.break_with(|faults| faults.no_answer = false);
    });
    rig.cuda.settle(b.region());
    assert_eq!(bytes(&b)[LEN - 1], 1, "it had ended when settle returned");
    answers.join().unwrap();
}

#[test]
fn another_process_s_memory_is_no_gpu_s_work() {
    use crate::host::process::{Process, ProcessSlice, Token};
    let rig = rig();
    let ourselves = Process::new(std::process::id() as i32, Token::new().place()).unwrap();
    let source = Source::Process(ProcessSlice::new(Arc::new(ourselves), 8, 8));
    let work = CopyWork { tag: 0, source, target: rig.vram(0) };
    assert!(!work.is_on_gpu());
    assert_eq!(Pages::of([&work].into_iter()).unwrap_err().kind, FailureKind::Refused);
}
