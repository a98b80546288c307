//! Pages from one GPU to another, layer by layer: every layer's pages are posted at once, and leave
//! when the layer's kernel has ended, without the host in between.
//!
//! `cargo run --release --features cuda --example vram_pages`; with `-- fake` on GPUs that aren't
//! there, which shows the order and no speed. Where there is no GPU it says why, and ends with 2.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail::{Access, Batch, Engine, Location, Pages, Region, Transfer};
use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::outside::{EternalVram, Work};
use kvrail_reactors::cuda::{Driver, Gpus};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const LAYERS: usize = 8;
/// A long prompt's pages of one layer: 15,360 tokens, 16 a page.
const PAGES: usize = 960;
const PAGE_BYTES: usize = 12 << 10;
const LAYER_BYTES: usize = PAGES * PAGE_BYTES;

fn main() -> ExitCode {
    let gpus = match std::env::args().nth(1).as_deref() {
        Some("fake") => Gpus::given(Arc::new(Fake::new(2, 1 << 30))),
        _ => Gpus::default(),
    };
    let driver = match gpus.driver() {
        Ok(driver) => driver,
        Err(why) => {
            eprintln!("no VRAM: {why}");
            return ExitCode::from(2);
        }
    };
    match push(&driver) {
        Ok(arrived) if arrived.iter().all(|is_whole| *is_whole) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Pushes all layers; whether each arrived as it was sent.
fn push(driver: &Arc<dyn Driver>) -> Result<Vec<bool>> {
    let engine = Engine::builder().gpus(Gpus::given(driver.clone())).start()?;
    let target = u32::from(driver.devices().len() > 1);
    println!("{LAYERS} layers of {PAGES} pages of {PAGE_BYTES} bytes, cuda:0 to cuda:{target}");
    // As PyTorch's: allocated by somebody else, registered by its device pointer.
    let cache = EternalVram::new(driver.clone(), 0, LAYERS * LAYER_BYTES, true)?;
    let near = engine.register_vram(cache.foreign(), Access::LOCAL)?;
    let far = engine.allocate(near.len(), Location::Cuda(target), Access::READ_WRITE)?;
    let computed: Vec<_> =
        (0..LAYERS).map(|layer| computed(&engine, driver, layer)).collect::<Result<_>>()?;
    let mut model = Work::new(driver, 0)?;
    let began = Instant::now();
    let transfers = post(&engine, &mut model, (&computed, &cache), (&near, &far))?;
    // The model's own thread would wait for it; this one for the pages.
    let model = std::thread::spawn(move || model.finish());
    let mut ends = Vec::new();
    for transfer in transfers {
        futures_lite::future::block_on(transfer)?;
        ends.push(began.elapsed());
    }
    model.join().map_err(|_| "the model's thread ended")??;
    table(&ends, &near, &far)
}

/// Has every layer computed, and its pages leave behind that.
fn post(
    engine: &Engine,
    model: &mut Work,
    (computed, cache): (&[EternalVram], &EternalVram),
    (near, far): (&Region, &Region),
) -> Result<Vec<Transfer>> {
    let layers = computed.iter().enumerate();
    let transfers = layers.map(|(layer, computed)| {
        let event = cache.driver().outside().event(0)?;
        model.compute(computed, cache, layer * LAYER_BYTES)?;
        model.record(&event)?;
        let lease = near.share(layer * LAYER_BYTES..(layer + 1) * LAYER_BYTES)?;
        let mut batch = Batch::new(&engine.local());
        batch.write_pages(&lease, pages(far, layer)).wait_event(event);
        Ok(engine.transfer(batch))
    });
    transfers.collect()
}

fn table(ends: &[Duration], near: &Region, far: &Region) -> Result<Vec<bool>> {
    println!("layer       bytes  done at us     GB/s  hash");
    let mut arrived = Vec::new();
    let mut before = Duration::ZERO;
    for (layer, at) in ends.iter().enumerate() {
        let (sent, hash) = (hash(near, layer, false)?, hash(far, layer, true)?);
        let (is_whole, at_us) = (sent == hash, at.as_micros());
        // Since the layer before: its kernel's time and the pages'.
        let rate = LAYER_BYTES as f64 / (*at - before).as_nanos().max(1) as f64;
        let verdict = if is_whole { "as sent" } else { "NOT AS SENT" };
        println!("{layer:>5}  {LAYER_BYTES:>10}  {at_us:>10}  {rate:>7.1}  {hash:016x}  {verdict}");
        arrived.push(is_whole);
        before = *at;
    }
    Ok(arrived)
}

/// What a layer's kernel is going to put into the cache.
fn computed(engine: &Engine, driver: &Arc<dyn Driver>, layer: usize) -> Result<EternalVram> {
    let memory = EternalVram::new(driver.clone(), 0, LAYER_BYTES, true)?;
    let region = engine.register_vram(memory.foreign(), Access::LOCAL)?;
    let mut bytes = vec![0; LAYER_BYTES];
    fastrand::Rng::with_seed(layer as u64).fill(&mut bytes);
    region.lease(0..LAYER_BYTES)?.copy_in(0, &bytes)?;
    futures_lite::future::block_on(engine.unregister(region))?;
    Ok(memory)
}

/// Where the pages of a layer go: another order than they come in, as a pool's free blocks are.
fn place(page: usize) -> usize {
    // 7 and the number of pages have no common divisor, so that each place is taken once.
    page * 7 % PAGES * PAGE_BYTES
}

fn pages(far: &Region, layer: usize) -> Pages {
    let start = far.addr() + (layer * LAYER_BYTES) as u64;
    Pages {
        page_bytes: PAGE_BYTES,
        local: (0..PAGES).map(|page| (page * PAGE_BYTES) as u64).collect(),
        remote: (0..PAGES).map(|page| start + place(page) as u64).collect(),
    }
}

/// FNV-1a of a layer's pages in their order.
fn hash(region: &Region, layer: usize, is_far: bool) -> Result<u64> {
    let mut bytes = vec![0; LAYER_BYTES];
    let start = layer * LAYER_BYTES;
    region.share(start..start + LAYER_BYTES)?.copy_out(0, &mut bytes)?;
    let at = |page: usize| if is_far { place(page) } else { page * PAGE_BYTES };
    let bytes = (0..PAGES).flat_map(|page| &bytes[at(page)..at(page) + PAGE_BYTES]);
    Ok(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    }))
}

#[test]
fn layers_arrive_whole_on_gpus_that_are_not_there() {
    let driver: Arc<dyn Driver> = Arc::new(Fake::new(2, 1 << 30));
    assert_eq!(push(&driver).expect("a push"), [true; LAYERS]);
}
