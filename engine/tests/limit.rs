//! What policies do at the context limit, on the engine, against the same edit of the plain reference's cache.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::reference::Reference;
use common::{Random, difference, geometry};
use engine::context::Context;
use engine::cpu::Cpu;
use engine::serve::shape_for;
use engine::{Backend, Batch, Config, EngineError, KvType, Output, Weights, synthetic};
use policies::{Effect, Geometry, Plan, SeqId, make_policy};

const CONTEXT: usize = 24;
const TOKENS: usize = 75;

/// What the reference does when it has as many tokens as the context.
enum Edit {
    /// Drop so many after the head; later ones slide down.
    Slide(usize),
    /// Drop one after the head; positions go on.
    GoOn,
    /// Drop so many after the head and compute the others again.
    Again(usize),
}

/// Effects that a backend was told of.
#[derive(Default)]
struct Counts {
    copies: AtomicU32,
    rotations: AtomicU32,
}

/// A backend that counts copies and rotations.
struct Counting {
    cpu: Cpu,
    counts: Arc<Counts>,
}

impl Backend for Counting {
    fn device(&self) -> String {
        self.cpu.device()
    }

    fn config(&self) -> &Config {
        self.cpu.config()
    }

    fn apply(&mut self, plan: &Plan, request_of: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError> {
        let count =
            |is: fn(&Effect) -> bool| plan.effects().iter().filter(|effect| is(effect)).count() as u32;
        let Counts { copies, rotations } = &*self.counts;
        copies.fetch_add(count(|effect| matches!(effect, Effect::Copy { .. })), Ordering::Relaxed);
        rotations.fetch_add(count(|effect| matches!(effect, Effect::Rotate { .. })), Ordering::Relaxed);
        self.cpu.apply(plan, request_of)
    }

    fn step(&mut self, batch: &Batch, output: &mut Output) -> Result<(), EngineError> {
        self.cpu.step(batch, output)
    }

    fn restart(&mut self) {
        self.cpu.restart();
    }
}

fn weights() -> Weights {
    let config = Config { window: 6, ..Config::preset("gemma3-tiny").unwrap() };
    synthetic::weights(&config, 5, true).unwrap()
}

/// The logits of every token of a text under an edit at the limit, and how often that was made.
fn edited(weights: &Weights, tokens: &[u32], keep: usize, edit: &Edit) -> (Vec<Vec<f32>>, u32) {
    let mut reference = Reference::new(weights);
    let (mut text, mut offset, mut edits): (Vec<u32>, u32, u32) = (Vec::new(), 0, 0);
    let mut logits = Vec::new();
    for &token in tokens {
        if text.len() == CONTEXT {
            edits += 1;
            let dropped = match *edit {
                Edit::Slide(tokens) | Edit::Again(tokens) => keep..keep + tokens,
                Edit::GoOn => keep..keep + 1,
            };
            text.drain(dropped.clone());
            match edit {
                Edit::Slide(_) => reference.drop(dropped, true),
                Edit::GoOn => {
                    reference.drop(dropped, false);
                    offset += 1;
                }
                Edit::Again(_) => {
                    reference = Reference::new(weights);
                    reference.text(&text);
                }
            }
        }
        text.push(token);
        logits.push(reference.next(token, offset));
    }
    (logits, edits)
}

/// A text read under a policy in pieces of these lengths, again and again.
struct Run {
    logits: Vec<Vec<f32>>,
    /// Copies made before each token's logits were there.
    copies: Vec<u32>,
    rotations: u32,
    reductions: u32,
}

fn read(
    spec: &str,
    keep: usize,
    weights: &Arc<Weights>,
    tokens: &[u32],
    cells: &[u32],
    pieces: &[usize],
) -> Run {
    let config = &weights.config;
    let geometry =
        Geometry { context_max: CONTEXT as u32, batch_max: 8, sequences_max: 1, ..geometry(config, cells) };
    let shape = shape_for(spec, config, &geometry, KvType::F32).unwrap();
    let counts = Arc::new(Counts::default());
    let cpu = Cpu::new(weights.clone(), shape).unwrap();
    let mut backend = Counting { cpu, counts: counts.clone() };
    let mut context = Context::new(&mut backend, make_policy(spec, &geometry).unwrap(), keep as u32, 1);
    let (mut logits, mut copies, mut done) = (Vec::new(), Vec::new(), 0);
    for &len in pieces.iter().cycle() {
        let piece = &tokens[done..(done + len).min(tokens.len())];
        context
            .push(piece, piece.len(), &mut |row| {
                logits.push(row.to_vec());
                copies.push(counts.copies.load(Ordering::Relaxed));
            })
            .unwrap_or_else(|error| panic!("{spec}, {done} tokens: {error}"));
        done += piece.len();
        if done == tokens.len() {
            break;
        }
    }
    Run {
        logits,
        copies,
        rotations: counts.rotations.load(Ordering::Relaxed),
        reductions: context.reductions(),
    }
}

#[test]
fn what_a_policy_drops_is_dropped_from_the_references_cache() {
    let weights = Arc::new(weights());
    let tokens = Random(8).tokens(TOKENS, weights.config.vocab);
    let half = |keep: usize| Edit::Slide((CONTEXT - keep) / 2);
    let cases = [
        ("shift:2", 2, half(2)),
        ("shift:keep=4:drop=5", 4, Edit::Slide(5)),
        ("sinks:3", 3, Edit::Slide(1)),
        ("sinks:keep=1:drop=4", 1, Edit::Slide(4)),
        ("ring", 0, Edit::GoOn),
        ("ring:2", 2, Edit::GoOn),
        ("truncate:3", 3, Edit::Again((CONTEXT - 3) / 2)),
        ("shift:2+unrotated", 2, half(2)),
        ("sinks:keep=1:drop=4+unrotated", 1, Edit::Slide(4)),
        ("ring:2+unrotated", 2, Edit::Slide(1)),
        ("defrag+shift", 4, half(4)),
        ("defrag:step:0+shift", 4, half(4)),
        ("defrag+shift+unrotated", 4, half(4)),
        ("swa-full+shift", 4, half(4)),
        ("swa-full+shift+unrotated", 4, half(4)),
        ("llama-unified", 3, half(3)),
        ("llama-unified:ubatch=3", 0, half(0)),
        ("llama-unified:shift=no", 2, Edit::Again((CONTEXT - 2) / 2)),
        ("ollama-0.6.6", 2, half(2)),
        ("ollama-0.6.6", 0, half(0)),
        ("ollama-0.12.4", 3, half(3)),
        ("ollama-0.12.4:shift=no", 2, Edit::Again((CONTEXT - 2) / 2)),
    ];
    for (spec, keep, edit) in cases {
        let (expected, edits) = edited(&weights, &tokens, keep, &edit);
        assert!(edits > 1, "{spec}: {edits} edits");
        // Every class has the cells of the smallest, or an equal part of all.
        let shares = spec.starts_with("llama-unified") || spec.starts_with("swa-full");
        // Ollama's compaction turns pairs of cells over: K and V are then those of the token beside.
        let turns_over = spec.starts_with("ollama");
        let (mut off, mut copied) = (0, 0);
        for (cells, pieces) in [
            ([64, 64], &[1][..]),
            ([64, 64], &[7, 2, 8, 1, 5]),
            ([26, 26], &[5, 8, 3]),
            ([if shares { 26 } else { 14 }, 26], &[7, 2, 8, 1, 5]),
        ] {
            let run = read(spec, keep, &weights, &tokens, &cells, pieces);
            assert_eq!(run.reductions, edits, "{spec}: edits");
            let slides = matches!(edit, Edit::Slide(_)) && !spec.ends_with("+unrotated");
            assert_eq!(run.rotations > 0, slides, "{spec}: {} rotations", run.rotations);
            for ((at, expected), (found, &copies)) in
                (0..).zip(&expected).zip(run.logits.iter().zip(&run.copies))
            {
                let (most, _) = difference(expected, found);
                if turns_over && copies > 0 {
                    off += u32::from(most > 1e-3);
                } else {
                    assert!(most < 1e-4, "{spec}, {cells:?}, token {at}: off by {most}");
                }
            }
            copied += run.copies.last().unwrap();
        }
        println!("{spec}: {edits} edits, {copied} copies, {off} tokens off");
        assert_eq!(off > 0, turns_over && copied > 0, "{spec}: {off} tokens off after {copied} copies");
        let compacts = ["shift", "defrag", "ollama"].iter().any(|name| spec.starts_with(name));
        let compacts = compacts || spec == "llama-unified";
        assert!(copied > 0 || !compacts, "{spec} copies nothing");
    }
}

/// What a policy that drops by attention keeps of a text that has grown to its limit.
#[derive(Clone, Copy)]
struct Votes {
    /// Leading and latest tokens that stay.
    keep: usize,
    recent: usize,
    /// Tokens that are left.
    target: usize,
    /// Votes are averaged over as many neighbours on each side; none: over none, and all tokens vote.
    pool: Option<usize>,
}

#[test]
fn the_tokens_go_that_the_reference_looked_at_least() {
    const PROMPT: usize = 20;
    // No window reaches back over what goes: the reference would read on behind it.
    let config = Config { window: 4, ..Config::preset("gemma3-tiny").unwrap() };
    let weights = synthetic::weights(&config, 5, true).unwrap();
    let tokens = Random(9).tokens(60, config.vocab);
    let heavy = Votes { keep: 1, recent: 4, target: 11, pool: None };
    let cases = [
        ("heavy:12:4:1", heavy, 12),
        ("heavy:12:4:1:3", Votes { target: 9, ..heavy }, 12),
        ("heavy:12:4:1:3+unrotated", Votes { target: 9, ..heavy }, 12),
        ("snap:10:4", Votes { keep: 0, recent: 4, target: 10, pool: Some(2) }, 10),
        ("snap:14:3:1:2", Votes { keep: 2, recent: 3, target: 14, pool: Some(0) }, 14),
    ];
    for (spec, votes, budget) in cases {
        // Where K is rotated as it is read, later tokens slide down.
        let slides = spec.ends_with("+unrotated");
        for batch_max in [1, 7, 16] {
            let geometry = Geometry {
                context_max: CONTEXT as u32,
                batch_max,
                sequences_max: 1,
                ..geometry(&config, &[64, 64])
            };
            let shape = shape_for(spec, &config, &geometry, KvType::F32).unwrap();
            let mut cpu = Cpu::new(weights.clone().into(), shape).unwrap();
            let policy = make_policy(spec, &geometry).unwrap();
            let mut context = Context::new(&mut cpu, policy, 0, PROMPT as u32);
            let mut reference = Reference::new(&weights);
            // What each token that is left got from each that was computed since the last reduction.
            let mut rows: Vec<Vec<f64>> = Vec::new();
            let (mut len, mut offset, mut reductions) = (0, 0, 0);
            let mut found = Vec::new();
            let prompt = &tokens[..PROMPT];
            context.push(prompt, PROMPT, &mut |logits| found.extend_from_slice(logits)).unwrap();
            let mut expected = Vec::new();
            for (i, &token) in tokens.iter().enumerate() {
                let is_first = reductions == 0;
                let limit = if votes.pool.is_none() || is_first { budget } else { CONTEXT };
                if i >= PROMPT && len >= limit {
                    let mut gone = least(&rows, len, votes);
                    gone.sort_unstable_by(|a, b| b.cmp(a));
                    offset += if slides { 0 } else { gone.len() };
                    len -= gone.len();
                    for token in gone {
                        reference.drop(token..token + 1, slides);
                        for row in rows.iter_mut().filter(|row| token < row.len()) {
                            row.remove(token);
                        }
                    }
                    if votes.pool.is_some() {
                        rows.clear();
                    }
                    reductions += 1;
                }
                expected.extend(reference.next(token, offset as u32));
                len += 1;
                rows.push(reference.looked.clone());
                if i >= PROMPT {
                    context.push(&[token], 1, &mut |logits| found.extend_from_slice(logits)).unwrap();
                }
            }
            let (most, _) = difference(&expected, &found);
            assert!(most < 1e-4, "{spec}, batches of {batch_max}: off by {most}");
            assert!(reductions > 1 && context.reductions() == reductions, "{spec}: {reductions} reductions");
        }
    }
}

/// The tokens with the fewest votes.
fn least(rows: &[Vec<f64>], len: usize, votes: Votes) -> Vec<usize> {
    let voters = if votes.pool.is_some() { &rows[rows.len() - votes.recent.min(rows.len())..] } else { rows };
    let got = |token: usize| voters.iter().filter_map(|row| row.get(token)).sum::<f64>();
    let prefix = len - votes.recent;
    let pool = votes.pool.unwrap_or(0);
    let vote =
        |token: usize| (token.saturating_sub(pool)..(token + pool + 1).min(prefix)).map(got).sum::<f64>();
    let mut order: Vec<usize> = (votes.keep..prefix).collect();
    order.sort_by(|&a, &b| vote(a).total_cmp(&vote(b)));
    order.truncate(len - votes.target);
    order
}
