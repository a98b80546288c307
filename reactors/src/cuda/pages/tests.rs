//! Which way copies go, on GPUs that aren't there.

use super::super::crossover::Crossover;
use super::super::fake::Fake;
use super::*;
use crate::region::Slice;

const LEN: usize = 1 << 20;
const PAGE: usize = 4096;

fn vram(driver: &Arc<dyn Driver>, device: u32) -> Arc<Region> {
    let memory = DeviceMemory::allocate(driver.clone(), device, LEN).unwrap();
    Arc::new(Region::on_device(memory, LEN).unwrap())
}

fn host(driver: &Arc<dyn Driver>) -> Arc<Region> {
    let region = Arc::new(Region::allocate(LEN, None).unwrap());
    region.reach(driver).unwrap();
    region
}

fn copy(from: &Arc<Region>, to: &Arc<Region>, page: usize) -> CopyWork {
    // Twice as far apart on one side, so that none are neighbours.
    let part = |region: &Arc<Region>, at| Slice::new(region.clone(), at, PAGE).unwrap();
    CopyWork { tag: 0, source: part(from, 2 * page * PAGE).into(), target: part(to, page * PAGE) }
}

/// Two GPUs, of which the first has a crossover of its own for each way.
fn driver(lens: [(Way, usize); 3]) -> Arc<dyn Driver> {
    let fake = Fake::new(2, 1 << 30);
    for (way, engine_min_bytes) in lens {
        let crossover = Crossover { engine_min_bytes, engine_max_ranges: 1 };
        fake.crossovers().set(0, way, crossover);
    }
    Arc::new(fake)
}

/// Targets of the engine's copies, and pages of the kernel's.
fn planned(pages: &Pages) -> (Vec<u64>, usize) {
    let (mut copied, mut paged) = (Vec::new(), 0);
    for launch in &pages.launches {
        match launch {
            Launch::Copy(range) => copied.push(range.to),
            Launch::Pages(pages) => paged += pages.len(),
            Launch::Even(pages) => paged += pages.ranges().count(),
        }
    }
    (copied, paged)
}

#[test]
fn ways_are_told_apart_in_one_batch() {
    for engines in [Way::SameGpu, Way::OtherGpu, Way::Host] {
        let all = [Way::SameGpu, Way::OtherGpu, Way::Host];
        let driver = driver(all.map(|way| (way, if way == engines { PAGE } else { LEN })));
        let (near, beside, far) = (vram(&driver, 0), vram(&driver, 0), vram(&driver, 1));
        let host = host(&driver);
        // Page by page another way, so that each region is held already when its turn comes again.
        let ends = [(&beside, Way::SameGpu), (&far, Way::OtherGpu), (&host, Way::Host)];
        let works: Vec<_> =
            (0..30).map(|page| (copy(ends[page % 3].0, &near, page), ends[page % 3].1)).collect();
        let pages = Pages::of(works.iter().map(|(work, _)| work)).unwrap();
        let theirs = works.iter().filter(|(_, way)| *way == engines);
        let theirs: Vec<_> = theirs.map(|(work, _)| work.target.addr()).collect();
        assert_eq!(planned(&pages), (theirs, 20), "{engines}");
    }
}

#[test]
fn either_end_may_be_elsewhere() {
    let driver = driver([(Way::SameGpu, LEN), (Way::OtherGpu, PAGE), (Way::Host, LEN)]);
    let (near, other, host) = (vram(&driver, 0), vram(&driver, 0), host(&driver));
    let paged = |from: &Arc<Region>, to: &Arc<Region>| {
        let works: Vec<_> = (0..4).map(|page| copy(from, to, page)).collect();
        planned(&Pages::of(works.iter()).unwrap()).1
    };
    assert_eq!((paged(&near, &other), paged(&near, &host), paged(&host, &near)), (4, 4, 4));
    // The target's GPU copies, of which nothing is known here.
    let far = vram(&driver, 1);
    assert_eq!((paged(&far, &near), paged(&near, &far)), (0, 4));
    let apart: Arc<dyn Driver> = Arc::new(Fake::new(2, 1 << 30).apart());
    let works = [copy(&vram(&apart, 1), &vram(&apart, 0), 0)];
    assert!(Pages::of(works.iter()).is_err());
}

#[test]
fn a_list_as_it_came_goes_by_its_way_s_crossover_too() {
    let driver = driver([(Way::SameGpu, PAGE), (Way::OtherGpu, LEN), (Way::Host, 2 * PAGE)]);
    let (near, other, far) = (vram(&driver, 0), vram(&driver, 0), vram(&driver, 1));
    let whole = |region: &Arc<Region>| Slice::new(region.clone(), 0, LEN).unwrap();
    // Every second page to every third place.
    let words: Vec<_> = (0..10u64).map(|page| (2 * page) | ((3 * page) << 32)).collect();
    let places = Places { words: &words, unit_bytes: PAGE, starts: [0, 0] };
    let listed = |all: &[(&Arc<Region>, usize)]| {
        let mut list = PageList::default();
        for (from, len) in all {
            let source = Source::Region(whole(from));
            list.between(&CopyWork { tag: 0, source, target: whole(&near) }).unwrap();
            assert!(list.push_all(places, *len));
        }
        let (copied, paged) = planned(&list.finish().unwrap());
        (copied.len(), paged)
    };
    let host = host(&driver);
    assert_eq!((listed(&[(&other, PAGE)]), listed(&[(&other, 512)])), ((10, 0), (0, 10)));
    assert_eq!((listed(&[(&far, PAGE)]), listed(&[(&host, PAGE)])), ((0, 10), (0, 10)));
    let mixed = [(&far, PAGE), (&other, PAGE), (&host, PAGE), (&other, 512)];
    assert_eq!(listed(&mixed), (10, 30));
}
