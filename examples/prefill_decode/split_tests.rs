//! The whole split with a tiny model: roles, engines and messages as in the processes, but as
//! threads of the test.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::block_on;
use kvrail::{Batch, Engine, Notification, REFERENCE_BYTES, Reference};

use crate::cache::KvCache;
use crate::crew::{Crew, Role};
use crate::decode::Decode;
use crate::kv::{Arriving, Store};
use crate::llama::Failure;
use crate::messages::{Ask, FirstToken, Order, Request};
use crate::options::{Options, Path, Ship};
use crate::prefill::Prefill;
use crate::shape::Shape;
use crate::split::conduct;
use crate::weights::Model;

/// 27 tokens: six full blocks and a started one.
const PROMPT: &str = "seven blocks, one unfilled.";

fn tiny() -> Arc<Model> {
    Arc::new(Model::random(Shape::TINY, 7))
}

/// The verdict and all that was written.
fn split(options: &Options) -> Result<(bool, String), Failure> {
    let model = tiny();
    let roles: &[Role] = match options.path {
        Path::Local => &[Role::Together],
        Path::Auto | Path::Tcp | Path::Rdma => &[Role::Prefill, Role::Decode],
    };
    let crew = Crew::threads(&model, options, roles)?;
    let mut out = Vec::new();
    let verdict = conduct(crew, &model, options, &mut out)?;
    Ok((verdict, String::from_utf8(out)?))
}

/// Says yes, over the right path, having moved just the prompt's blocks.
fn assert_equal(options: &Options) {
    let (verdict, out) = split(options).unwrap();
    assert!(verdict, "{options:?}\n{out}");
    assert!(out.ends_with("\nKV caches equal: yes\nlogit hashes equal: yes\n"), "{out}");
    let path = match options.path {
        Path::Local => "local",
        // Both roles are on this host.
        Path::Auto => "host",
        Path::Tcp => "tcp",
        Path::Rdma => "rdma",
    };
    assert!(out.contains(&format!("\npath: {path} by ")), "{out}");
    let in_table = out.lines().filter(|line| line.contains(" MB "));
    let rows = in_table.filter(|line| line.contains(&format!(" {path} ")));
    assert_eq!(rows.count(), usize::from(options.requests), "{out}");
    let bytes = Shape::TINY.blocks(options.question(0).len()) * Shape::TINY.block_bytes();
    assert!(out.contains(&format!(" {:.2} MB ", bytes as f64 / 1e6)), "{out}");
}

#[test]
fn every_way_to_ship_gives_the_logits_of_a_single_process() {
    for path in [Path::Auto, Path::Tcp, Path::Local] {
        for ship in [Ship::Layer, Ship::Block] {
            for chunk_tokens in [512, 10, 1] {
                let tiny = Options::tiny(PROMPT, 9);
                assert_equal(&Options { path, ship, chunk_tokens, ..tiny });
            }
        }
    }
}

/// The pool has 32 blocks and each request takes 9: blocks are used again by the fourth.
#[test]
fn requests_take_their_blocks_from_one_pool() {
    for path in [Path::Auto, Path::Local] {
        assert_equal(&Options { path, requests: 9, ..Options::tiny(PROMPT, 9) });
    }
}

/// What the other paths are held to, between two NICs.
#[test]
#[cfg(feature = "rdma")]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only example"]
fn rdma_gives_the_logits_of_a_single_process() {
    let path = Path::Rdma;
    let device_name = vec!["rxe0".into(), "rxe1".into()];
    let rdma = Options { path, device_name, requests: 2, ..Options::tiny(PROMPT, 9) };
    for ship in [Ship::Layer, Ship::Block] {
        assert_equal(&Options { ship, ..rdma.clone() });
        let (verdict, out) = split(&Options { ship, flip_bit: true, ..rdma.clone() }).unwrap();
        assert!(!verdict, "{ship:?}\n{out}");
    }
    for layers in 0..Shape::TINY.layers {
        let (chunk_tokens, abort_after) = (3, Some(layers));
        assert_equal(&Options { chunk_tokens, abort_after, ..rdma.clone() });
    }
}

/// The answer needs nothing of the KV cache, but its blocks are not free before that has come.
#[test]
fn an_answer_of_one_token_waits_for_the_cache() {
    let (model, options) = (tiny(), Options::tiny("", 1));
    let engine = Engine::builder().start().unwrap();
    let mut decode = Decode::new(&model, &options, &engine, engine.local()).unwrap();
    let asked = decode.ask(Ask { tokens: vec![1; 5], max_tokens: 1 }).unwrap();
    let request = engine.try_notification().unwrap();
    let Request { counters: ids, .. } = serde_json::from_slice(&request.bytes).unwrap();
    let counters: Vec<_> = ids.iter().map(|&id| engine.counter(id).unwrap()).collect();
    let first = serde_json::to_vec(&FirstToken { request: 0, token: 7, position: 5 }).unwrap();
    block_on(engine.notify(&engine.local(), first)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Long enough for a decode that doesn't wait to be caught at it.
            std::thread::sleep(Duration::from_millis(50));
            for &id in &ids {
                let mut batch = Batch::new(&engine.local());
                batch.count(id, 2);
                block_on(engine.transfer(batch)).unwrap();
            }
        });
        decode.answer(asked, &|_| Ok(())).unwrap();
        assert!(counters.iter().all(|counter| counter.value() == 2));
    });
}

#[test]
fn a_prompt_of_one_token_and_one_that_fills_the_pool() {
    assert_equal(&Options::tiny("x", 5));
    assert_equal(&Options::tiny(&"y".repeat(Shape::TINY.context), 5));
    let long = Options::tiny(&"y".repeat(Shape::TINY.context + 1), 5);
    assert!(split(&long).unwrap_err().to_string().contains("don't fit"));
}

#[test]
fn what_is_aborted_in_mid_transfer_leaves_its_memory_to_the_next() {
    for path in [Path::Auto, Path::Tcp, Path::Local] {
        for layers in 0..Shape::TINY.layers {
            let abort_after = Some(layers);
            let tiny = Options::tiny(PROMPT, 9);
            let options = Options { path, requests: 5, chunk_tokens: 3, abort_after, ..tiny };
            let (verdict, out) = split(&options).unwrap();
            assert!(verdict, "{options:?}\n{out}");
            let aborts = out.lines().filter(|line| line.starts_with("before request "));
            assert_eq!(aborts.count(), 5, "{out}");
        }
    }
}

#[test]
fn one_bit_that_is_wrong_on_arrival_is_noticed() {
    for path in [Path::Auto, Path::Local] {
        for ship in [Ship::Layer, Ship::Block] {
            let options = Options { path, ship, flip_bit: true, ..Options::tiny(PROMPT, 9) };
            let (verdict, out) = split(&options).unwrap();
            assert!(!verdict, "{options:?}\n{out}");
            assert!(out.ends_with("\nKV caches equal: no\nlogit hashes equal: no\n"), "{out}");
            assert!(out.contains(" differs "), "{out}");
        }
    }
}

#[test]
fn a_role_that_fails_ends_the_run_with_its_reason() {
    let options = Options::tiny("x", 5);
    let model = tiny();
    let crew = Crew::threads(&model, &options, &[Role::Prefill, Role::Decode]).unwrap();
    crew.order(Order::Open("nobody".into())).unwrap();
    let failure = conduct(crew, &model, &options, &mut Vec::new()).unwrap_err();
    assert!(failure.to_string().starts_with("decode: only one engine"), "{failure}");
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    let (model, options) = (tiny(), Options::tiny("x", 5));
    let engine = Engine::builder().start().unwrap();
    let mut prefill = Prefill::new(&model, &options, &engine).unwrap();
    let nobodys = serde_json::to_string(&Reference::from_bytes(&[0; REFERENCE_BYTES])).unwrap();
    for (bytes, reason) in [
        ("{}", "missing field"),
        (r#"{"id":0,"tokens":[1,2],"blocks":[],"counters":[0,1,2]}"#, "0 blocks and 3 counters"),
        (r#"{"id":0,"tokens":[1,2],"blocks":[$],"counters":[0]}"#, "do both processes ship alike"),
        (r#"{"id":0,"tokens":[],"blocks":[],"counters":[0,1,2]}"#, "the prompt is empty"),
        (r#"{"id":0,"tokens":[1,2],"blocks":[4096],"counters":[0,1,2]}"#, "expected a string"),
    ] {
        let bytes = bytes.replace('$', &nobodys);
        let from = engine.name().to_owned();
        let request = Notification { from, bytes: bytes.clone().into() };
        let failure = prefill.serve(&request).unwrap_err().to_string();
        assert!(failure.contains(reason), "{bytes}: {failure}");
    }
}

mod leases {
    use super::*;

    fn store(ship: Ship) -> (Engine, Store) {
        let engine = Engine::builder().start().unwrap();
        let store = Store::new(&engine, Shape::TINY, ship).unwrap();
        (engine, store)
    }

    #[test]
    fn a_shipped_piece_is_read_and_not_written() {
        let (_engine, store) = store(Ship::Layer);
        let mut cache = store.own(8).unwrap();
        let row: Vec<u16> = (0..Shape::TINY.row() as u16).collect();
        (0..8).for_each(|position| cache.put(1, position, &row, &row).unwrap());
        let lease = cache.share(1, 0).unwrap();
        assert_eq!(lease.len(), Shape::TINY.slice_bytes());
        let failure = cache.put(1, 3, &row, &row).unwrap_err();
        assert_eq!(failure.to_string(), "layer 1 of block 0 is not ours to write");
        cache.put(1, 4, &row, &row).unwrap();
        cache.put(0, 3, &row, &row).unwrap();
        let mut k = vec![0; 8 * row.len()];
        let mut v = k.clone();
        cache.gather(1, 8, &mut k, &mut v).unwrap();
        assert_eq!((k, v), (row.repeat(8), row.repeat(8)));
        assert!(cache.flip_bit(1, 0).is_err());
    }

    #[test]
    fn a_piece_that_is_awaited_is_nobodys_until_its_counter_says_so() {
        let (engine, store) = store(Ship::Block);
        let counter = engine.counter(5).unwrap();
        let writer = engine.name().to_owned();
        let arriving = Arriving { blocks: 2, counters: vec![counter], writer };
        let mut cache = store.awaiting(9, arriving, Vec::new()).unwrap();
        assert_eq!((cache.capacity(), cache.references().len()), (12, 2));
        let mut k = vec![0; Shape::TINY.row()];
        let mut v = k.clone();
        assert!(cache.gather(0, 1, &mut k, &mut v).is_err());
        assert!(cache.share(0, 0).is_err());
        let mut batch = Batch::new(&engine.local());
        batch.count(5, 2);
        let arrival = std::thread::spawn({
            let engine = engine.clone();
            move || block_on(engine.transfer(batch)).map(drop).is_ok()
        });
        cache.put(2, 8, &k, &v).unwrap();
        assert!(arrival.join().unwrap());
        cache.gather(0, 9, &mut vec![0; 9 * k.len()], &mut vec![0; 9 * v.len()]).unwrap();
    }
}
