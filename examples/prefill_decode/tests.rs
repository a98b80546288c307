//! The whole model, from prompt to hash: what the split into processes relies on.

use std::io::Write;

use crate::cache::VecCache;
use crate::generate::{generate, likeliest};
use crate::gguf::{Gguf, Tensor};
use crate::kernel::Kernel;
use crate::llama::Pace;
use crate::shape::Shape;
use crate::text::Streamer;
use crate::weights::Model;

/// The real model's file; says so aloud when a test has to do without.
pub fn model_file() -> Option<Gguf> {
    let Some(path) = crate::fetch::find() else {
        skipped("no model; run examples/prefill_decode/model.sh");
        return None;
    };
    Some(Gguf::open(&path).unwrap())
}

/// Past the test harness, which keeps `eprintln!` to itself when a test passes.
pub fn skipped(reason: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let line = format!("skipped: {test}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

const PROMPT: [u32; 11] = [3, 250, 17, 99, 4, 300, 0, 42, 42, 7, 128];
const STEPS: usize = 9;

fn prefill(model: &Model, pace: Pace, cache: &mut VecCache) -> u32 {
    let logits = model.prefill(&PROMPT, 0, pace, cache, &mut |_, _, _| Ok(())).unwrap();
    likeliest(&logits)
}

fn decode(model: &Model, first: u32, cache: &mut VecCache) -> (Vec<u32>, u64) {
    let answer = generate(model, first, PROMPT.len(), STEPS, cache, &mut |_| Ok(())).unwrap();
    (answer.tokens, answer.logit_hash)
}

fn single(model: &Model, pace: Pace) -> (Vec<u32>, u64) {
    let mut cache = VecCache::new(*model.shape(), PROMPT.len() + STEPS);
    let first = prefill(model, pace, &mut cache);
    decode(model, first, &mut cache)
}

/// Prefills into one cache, moves its blocks into another with another block table, lets
/// `damage` have a go at them, and decodes there.
fn split(model: &Model, damage: impl Fn(&mut VecCache)) -> (Vec<u32>, u64) {
    let shape = *model.shape();
    let mut near = VecCache::new(shape, PROMPT.len());
    let first = prefill(model, Pace::default(), &mut near);
    let mut far = VecCache::with_table(shape, vec![6, 1, 4, 0, 3]);
    far.receive(&near);
    damage(&mut far);
    decode(model, first, &mut far)
}

#[test]
fn two_caches_give_the_very_logits_of_one() {
    let model = Model::random(Shape::TINY, 2);
    assert_eq!(split(&model, |_| ()), single(&model, Pace::default()));
}

#[test]
fn one_flipped_bit_shows_in_the_hash() {
    let model = Model::random(Shape::TINY, 2);
    let (_, sound) = single(&model, Pace::default());
    let shape = Shape::TINY;
    for layer in 0..shape.layers {
        for byte in [shape.keys(layer, 1).start, shape.values(layer, 2).start] {
            let (_, damaged) = split(&model, |cache| cache.flip_bit(1, byte));
            assert_ne!(damaged, sound, "layer {layer}, byte {byte}");
        }
    }
}

#[test]
fn chunks_and_threads_do_not_show() {
    let model = Model::random(Shape::TINY, 2);
    let whole = single(&model, Pace::default());
    for (chunk_tokens, threads) in [(1, 1), (3, 1), (4, 2), (10, 3), (11, 2), (100, 16)] {
        let pace = Pace { chunk_tokens, threads };
        assert_eq!(single(&model, pace), whole, "{pace:?}");
    }
}

#[test]
fn portable_kernels_give_the_same_hash() {
    let mut model = Model::random(Shape::TINY, 2);
    let best = single(&model, Pace::default());
    model.kernel = Kernel::portable();
    assert_eq!(single(&model, Pace::default()), best);
}

/// A prompt may start behind tokens that the cache already holds.
#[test]
fn a_prefix_in_the_cache_need_not_be_computed_again() {
    let model = Model::random(Shape::TINY, 2);
    let mut cache = VecCache::new(Shape::TINY, PROMPT.len() + STEPS);
    prefill(&model, Pace::default(), &mut cache);
    let rest = &PROMPT[8..];
    let logits = model.prefill(rest, 8, Pace::default(), &mut cache, &mut |_, _, _| Ok(()));
    let answer = decode(&model, likeliest(&logits.unwrap()), &mut cache);
    assert_eq!(answer, single(&model, Pace::default()));
}

/// The same model once more, in f64 and as plainly as it can be written down.
#[test]
fn logits_are_those_of_a_plain_implementation() {
    let model = Model::random(Shape::TINY, 4);
    let mut cache = VecCache::new(Shape::TINY, PROMPT.len());
    let pace = Pace { chunk_tokens: 4, threads: 1 };
    let logits = model.prefill(&PROMPT, 0, pace, &mut cache, &mut |_, _, _| Ok(())).unwrap();
    let want = plain_logits(&model, &PROMPT);
    let furthest = logits.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs());
    let size = want.iter().map(|want| want.abs()).fold(0.0, f64::max);
    // Ours keeps K and V in bf16, which has 8 significant bits.
    let furthest = furthest.fold(0.0, f64::max);
    assert!(furthest < 0.01 * size, "off by {furthest} where logits reach {size}");
}

fn plain_logits(model: &Model, tokens: &[u32]) -> Vec<f64> {
    let shape = model.shape();
    let embedding = dense(&model.embedding);
    let mut states: Vec<Vec<f64>> =
        tokens.iter().map(|&token| embedding[token as usize].clone()).collect();
    for layer in &model.layers {
        let inputs: Vec<_> = states.iter().map(|state| plain_norm(state)).collect();
        let project = |matrix: &Tensor, heads: usize, is_turned: bool| -> Vec<Vec<Vec<f64>>> {
            let matrix = dense(matrix);
            let project = |(position, input): (usize, &Vec<f64>)| {
                let numbers = times(&matrix, input);
                let heads_of = numbers.chunks(shape.head_dim).take(heads);
                let turn = |head: &[f64]| plain_rope(head, position, f64::from(shape.rope_base));
                heads_of.map(|head| if is_turned { turn(head) } else { head.to_vec() }).collect()
            };
            inputs.iter().enumerate().map(project).collect()
        };
        let q = project(&layer.query, shape.heads, true);
        let k = project(&layer.key, shape.kv_heads, true);
        let v = project(&layer.value, shape.kv_heads, false);
        let output = dense(&layer.output);
        let [gate, up, down] = [&layer.gate, &layer.up, &layer.down].map(dense);
        for (position, state) in states.iter_mut().enumerate() {
            let mut found = Vec::new();
            for (head, q) in q[position].iter().enumerate() {
                let kv = head * shape.kv_heads / shape.heads;
                let score = |at: usize| product(q, &k[at][kv]) / (shape.head_dim as f64).sqrt();
                let weights: Vec<f64> = (0..=position).map(|at| score(at).exp()).collect();
                let sum: f64 = weights.iter().sum();
                found.extend((0..shape.head_dim).map(|dim| {
                    let parts = weights.iter().enumerate().map(|(at, w)| w / sum * v[at][kv][dim]);
                    parts.sum::<f64>()
                }));
            }
            plain_add(state, &times(&output, &found));
            let input = plain_norm(state);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let gated = times(&gate, &input).into_iter().zip(times(&up, &input));
            let hidden: Vec<f64> = gated.map(|(gate, up)| silu(gate) * up).collect();
            plain_add(state, &times(&down, &hidden));
        }
    }
    times(&embedding, &plain_norm(&states[tokens.len() - 1]))
}

fn dense(matrix: &Tensor) -> Vec<Vec<f64>> {
    let row = |row| {
        let mut numbers = vec![0.0; matrix.columns];
        Kernel::portable().decode_row(matrix, row, &mut numbers);
        numbers.into_iter().map(f64::from).collect()
    };
    (0..matrix.rows).map(row).collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn times(matrix: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| product(row, x)).collect()
}

fn plain_add(state: &mut [f64], more: &[f64]) {
    state.iter_mut().zip(more).for_each(|(state, more)| *state += more);
}

/// The random model's norms have weights of one.
fn plain_norm(state: &[f64]) -> Vec<f64> {
    let scale = (product(state, state) / state.len() as f64 + 1e-5).sqrt();
    state.iter().map(|number| number / scale).collect()
}

fn plain_rope(head: &[f64], position: usize, base: f64) -> Vec<f64> {
    let turn = |(pair, numbers): (usize, &[f64])| {
        let angle = position as f64 / base.powf(2.0 * pair as f64 / head.len() as f64);
        let (sin, cos) = angle.sin_cos();
        [numbers[0] * cos - numbers[1] * sin, numbers[0] * sin + numbers[1] * cos]
    };
    head.chunks(2).enumerate().flat_map(turn).collect()
}

/// The real weights, and few enough tokens for a debug build.
#[test]
fn the_real_model_knows_where_the_eiffel_tower_is() {
    let Some(model) = real_model() else { return };
    let prompt = model.tokenizer().encode("The Eiffel Tower is in");
    let mut cache = VecCache::new(*model.shape(), prompt.len());
    let none = &mut |_, _, _: &mut VecCache| Ok(());
    let logits = model.prefill(&prompt, 0, Pace::default(), &mut cache, none).unwrap();
    let next = model.tokenizer().piece(likeliest(&logits));
    assert_eq!(String::from_utf8(next).unwrap(), " Paris");
}

/// A whole conversation; the one test that wants an optimised build.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes a minute unoptimised: cargo test --release")]
fn the_real_model_answers_a_question() {
    let Some(model) = real_model() else { return };
    let tokenizer = model.tokenizer();
    let prompt = tokenizer.chat("What is the capital of France?");
    let mut cache = VecCache::new(*model.shape(), prompt.len() + 20);
    let none = &mut |_, _, _: &mut VecCache| Ok(());
    let logits = model.prefill(&prompt, 0, Pace::default(), &mut cache, none).unwrap();
    let mut streamer = Streamer::default();
    let mut text = String::new();
    let on_token = &mut |token| {
        text += &streamer.push(&tokenizer.piece(token));
        Ok(())
    };
    generate(&model, likeliest(&logits), prompt.len(), 20, &mut cache, on_token).unwrap();
    assert_eq!(text + &streamer.finish(), "The capital of France is Paris.");
}

fn real_model() -> Option<Model> {
    Some(Model::from_gguf(&model_file()?).unwrap())
}
