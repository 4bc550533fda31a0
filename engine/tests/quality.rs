//! Quality on the tiny model: what is lost shows where it should, and what is kept does not.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::sync::{Arc, LazyLock};

use engine::cpu::Cpu;
use engine::quality::QualityError;
use engine::quality::corpus::{Document, Kind};
use engine::quality::evaluate::{Evaluation, Measured, Outcome};
use engine::quality::reading::Reading;
use engine::quality::summary::{Boundaries, Row, row};
use engine::quality::tiny;
use engine::quality::variant::Variant;
use engine::{Backend, Batch, CacheShape, Config, EngineError, Output, Span, View, Wanted, Weights};
use policies::{Effect, Plan, SeqId};
use serde_json::Value;

const NUM_CTX: u32 = 640;

static WEIGHTS: LazyLock<Arc<Weights>> =
    LazyLock::new(|| Arc::new(tiny::weights().expect("the model is in the crate")));

fn documents(count: u64) -> Vec<Document> {
    (0..count).map(|index| Document::new(11, index, 1024, 128)).collect()
}

fn backend(shape: CacheShape) -> Result<Box<dyn Backend>, EngineError> {
    Ok(Box::new(Cpu::new(WEIGHTS.clone(), shape)?))
}

fn evaluate_with(
    make: &(dyn Fn(CacheShape) -> Result<Box<dyn Backend>, EngineError> + Sync),
    documents: &[Document],
    names: &[&str],
) -> Outcome {
    evaluate(make, documents, names).unwrap()
}

fn evaluate(
    make: &(dyn Fn(CacheShape) -> Result<Box<dyn Backend>, EngineError> + Sync),
    documents: &[Document],
    names: &[&str],
) -> Result<Outcome, QualityError> {
    let variants: Vec<Variant> = names.iter().map(|name| name.parse().unwrap()).collect();
    let evaluation = Evaluation {
        config: &WEIGHTS.config,
        backend: make,
        num_ctx: NUM_CTX,
        num_batch: 64,
        progress: &|_| {},
        is_interrupted: &|| false,
    };
    evaluation.run(documents, &variants)
}

fn rows(outcome: &Outcome) -> Vec<Row> {
    let boundaries = Boundaries::new(1024, 128, NUM_CTX);
    let line = |measured: &Measured| row(measured, &outcome.reference, boundaries);
    std::iter::once(&outcome.reference).chain(&outcome.variants).map(line).collect()
}

/// The file's hash (FNV-1a, bytes): whoever trains anew changes it on purpose.
#[test]
fn the_weights_are_those_that_were_committed() {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
    let hash = tiny::FILE.iter().fold(0xCBF2_9CE4_8422_2325, fnv);
    assert_eq!(hash, 0x46D5_CE76_0433_6D64, "{hash:#x}");
    assert!(tiny::FILE.len() < 3_000_000);
}

#[test]
fn the_folder_of_the_tiny_model_loads_to_the_same_weights() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let loaded =
        engine::load::load(&folder, engine::load::Options { dequantize: true, ..Default::default() })
            .unwrap();
    let (theirs, ours) = (&loaded.weights, &*WEIGHTS);
    assert_eq!(Config { name: ours.config.name.clone(), ..theirs.config.clone() }, ours.config);
    assert_eq!(theirs.embedding_scale, ours.embedding_scale);
    assert_eq!(theirs.norm, ours.norm);
    let matrices = |weights: &Weights| {
        let layers = weights.layers.iter();
        let all =
            layers.map(|l| format!("{:?}", (&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down, &l.q_norm)));
        (format!("{:?}", weights.embedding), all.collect::<Vec<String>>())
    };
    assert!(matrices(theirs) == matrices(ours));
    let tokenizer = loaded.tokenizer.unwrap();
    let document = Document::new(3, 0, 200, 100);
    let words = engine::quality::vocabulary::words();
    let text: Vec<&str> = document.tokens.iter().map(|&token| words[token as usize]).collect();
    assert_eq!(tokenizer.encode(&text.join(" "), false).unwrap(), document.tokens);
    assert_eq!((tokenizer.bos(), tokenizer.end_of_turn()), (Some(2), Some(5)));
}

/// `training/check.py` wrote the logits of transformers' `Gemma3ForCausalLM`.
#[test]
fn the_engine_computes_what_transformers_computes() {
    let expected: Value = serde_json::from_str(include_str!("data/tiny-logits.json")).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let tokens: Vec<u32> = numbers(&expected["tokens"]).iter().map(|&token| token as u32).collect();
    assert_eq!(tokens, Document::new(4, 0, 192, 128).tokens);
    let variant = Variant::reference();
    let document = Document {
        kinds: vec![Kind::Other; tokens.len() + 1],
        exam: 1,
        tokens: [&tokens[..], &[0]].concat(),
    };
    let documents = [&document];
    let geometry = variant.geometry(&WEIGHTS.config, document.tokens.len() as u32, 64);
    let shape = CacheShape::new(&WEIGHTS.config, &geometry, variant.kv).unwrap();
    let reading = Reading::new(&variant, &documents, backend(shape).unwrap(), &geometry).unwrap();
    let mut compared = 0;
    let rows = expected["rows"].as_array().unwrap();
    reading
        .run(&mut |token| {
            for row in rows.iter().filter(|row| row["row"] == token.at - 1) {
                for (logit, expected) in token.logits.iter().zip(numbers(&row["logits"])) {
                    assert!(
                        (f64::from(*logit) - expected).abs() < 5e-5,
                        "row {}: {logit} {expected}",
                        token.at - 1
                    );
                    compared += 1;
                }
            }
        })
        .unwrap();
    assert_eq!(compared, 256 * rows.len());
}

#[test]
fn recall_falls_with_what_a_policy_drops_and_with_nothing_else() {
    let names = [
        "full",
        "prompt",
        "prompt/keep=28",
        "truncate:28",
        "shift:0",
        "shift:1",
        "shift:28",
        "ring",
        "sinks:1",
        "sinks:28",
    ];
    let outcome = evaluate_with(&backend, &documents(4), &names);
    let rows = rows(&outcome);
    let of = |name: &str| rows.iter().find(|row| row.variant.name == name).unwrap();
    let recall = |name: &str| of(name).recall.mean;
    let group = |name: &str, group: usize| of(name).recall_by_group[group].mean;
    let (system, old, mid, recent) = (0, 1, 2, 3);
    assert!(recall("full/f32") >= 0.99 && of("full/f32").chat_excess.mean < 0.1);
    assert!(recall("full") >= 0.99, "16 bits lose nothing");
    assert!(recall("shift:28") < recall("prompt/keep=28") && recall("prompt/keep=28") < recall("full"));
    for name in &names[1..] {
        assert!(group(name, recent) > 0.95, "{name}");
        assert!(group(name, old) < 0.4, "{name}");
        let keeps = name.ends_with("28");
        assert!(if keeps { group(name, system) > 0.9 } else { group(name, system) < 0.3 }, "{name}");
    }
    assert!(group("prompt", mid) > 0.9 && group("shift:0", mid) < 0.3);
    // Losing `<bos>` costs the chat, which needs no memory; one sink is enough to mend it.
    for name in ["prompt", "shift:0", "ring"] {
        assert!(of(name).chat_delta.mean > 0.02, "{name} {:?}", of(name).chat_delta);
    }
    for name in ["prompt/keep=28", "shift:1", "sinks:1", "sinks:28"] {
        assert!(of(name).chat_delta.mean.abs() < 0.01, "{name} {:?}", of(name).chat_delta);
    }
    assert_eq!(of("full/f32").kl.mean, 0.0);
    assert_eq!(of("full/f32").agreement.mean, 1.0);
    assert!(of("shift:28").incidents.reductions == 8 && of("full").incidents.reductions == 0);
}

#[test]
fn coarser_numbers_diverge_more_and_recall_does_not_show_it() {
    let outcome = evaluate_with(&backend, &documents(2), &["full", "full/bf16", "full/q8_0", "full/q4_0"]);
    let rows = rows(&outcome);
    let kl: Vec<f64> = rows.iter().map(|row| row.kl.mean).collect();
    assert!(kl[1] < 1e-6 && kl[1] < kl[2], "f16 and bf16: {kl:?}");
    assert!(kl[3] < 1e-4 && kl[4] > 10.0 * kl[3] && kl[4] < 0.05, "q8_0 and q4_0: {kl:?}");
    assert!(rows.iter().all(|row| row.recall.mean > 0.97));
}

#[test]
fn what_goes_by_attention_is_missed_less_than_what_goes_by_age() {
    let names = ["sinks:4", "heavy:640", "heavy:320/ctx=full", "snap:320:32/ctx=full"];
    let outcome = evaluate_with(&backend, &documents(4), &names);
    let rows = rows(&outcome);
    let of = |name: &str| rows.iter().find(|row| row.variant.name == name).unwrap();
    for row in &rows {
        println!("{}: recall {:?}, KL {:?}, {:?}", row.variant.name, row.recall, row.kl, row.incidents);
    }
    assert!(of("heavy:640").recall.mean > of("sinks:4").recall.mean);
    // A token of the exam at a time; what the body was cut to comes first.
    assert!(of("heavy:320/ctx=full").incidents.reductions == 4 * 127);
    assert!(of("snap:320:32/ctx=full").incidents.reductions == 4);
    assert!(of("snap:320:32/ctx=full").kl.mean > of("full/f32").kl.mean);
}

#[test]
fn a_ladder_holds_more_tokens_in_coarser_cells_and_diverges_with_each_rung() {
    let names =
        ["ladder/ctx=full", "ladder:16:q8_0/ctx=full/cells=672", "ladder/ctx=full/cells=384", "full/q4_0"];
    let outcome = evaluate_with(&backend, &documents(2), &names);
    let rows = rows(&outcome);
    let kl: Vec<f64> = rows.iter().map(|row| row.kl.mean).collect();
    println!("{kl:?}");
    assert!(kl[1] < 1e-6, "without pressure nothing is rounded: {kl:?}");
    assert!(kl[2] > 2.0 * kl[1] && kl[2] < 1e-4, "one rung: {kl:?}");
    assert!(kl[3] > 5.0 * kl[2] && kl[3] < kl[4], "two rungs, but for the latest: {kl:?}");
    let short = ["ladder:16:q8_0/ctx=full/cells=384"];
    assert!(evaluate(&backend, &documents(1), &short).is_err(), "it does not fit on the first rung");
}

/// A backend that forgets to rotate.
struct Unturned(Box<dyn Backend>);

impl Backend for Unturned {
    fn device(&self) -> String {
        self.0.device()
    }

    fn config(&self) -> &Config {
        self.0.config()
    }

    fn apply(&mut self, plan: &Plan, request_of: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError> {
        let mut others = Plan::new();
        plan.effects()
            .iter()
            .filter(|effect| !matches!(effect, Effect::Rotate { .. }))
            .for_each(|&effect| others.push(effect));
        self.0.apply(&others, request_of)
    }

    fn step(&mut self, batch: &Batch, output: &mut Output) -> Result<(), EngineError> {
        self.0.step(batch, output)
    }

    fn restart(&mut self) {
        self.0.restart();
    }
}

/// The quality numbers do not catch a rotation that is left out: global heads find a fact by what it says,
/// and sliding layers have healed by the exam. Logits right after the shift do.
#[test]
fn a_missing_rotation_shows_in_logits_right_after_a_shift_and_not_in_recall() {
    let unturned =
        |shape| -> Result<Box<dyn Backend>, EngineError> { Ok(Box::new(Unturned(backend(shape)?))) };
    let late = documents(2);
    let right = rows(&evaluate_with(&backend, &late, &["shift:28/f32"])).pop().unwrap();
    let wrong = rows(&evaluate_with(&unturned, &late, &["shift:28/f32"])).pop().unwrap();
    assert!((right.recall.mean - wrong.recall.mean).abs() < 0.1);

    // The exam begins where the second shift has just been: 640, then 306 more.
    let near: Vec<Document> =
        (0..2).map(|index| Document { exam: 947, ..Document::new(11, index, 1024, 128) }).collect();
    let logits = |make: &dyn Fn(CacheShape) -> Result<Box<dyn Backend>, EngineError>, name: &str| {
        let variant: Variant = name.parse().unwrap();
        let documents: Vec<&Document> = near.iter().collect();
        let geometry = variant.geometry(&WEIGHTS.config, NUM_CTX, 64);
        let mut shape = CacheShape::new(&WEIGHTS.config, &geometry, variant.kv).unwrap();
        shape.rotated = variant.rotated;
        let mut all = Vec::new();
        let reading = Reading::new(&variant, &documents, make(shape).unwrap(), &geometry).unwrap();
        reading
            .run(&mut |token| {
                if token.at < 979 {
                    all.extend_from_slice(token.logits)
                }
            })
            .unwrap();
        all
    };
    let largest = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let turned = logits(&backend, "shift:28/f32");
    // K that is rotated as it is read needs no rotation at a shift: an independent way to the same numbers.
    let as_read = logits(&backend, "shift:28/f32/unrotated");
    assert!(largest(&turned, &as_read) < 2e-3, "{}", largest(&turned, &as_read));
    let forgotten = logits(&unturned, "shift:28/f32");
    assert!(largest(&turned, &forgotten) > 0.5, "{}", largest(&turned, &forgotten));
}

#[test]
fn the_defrag_of_ollama_0_6_6_makes_sequences_read_foreign_cells() {
    let outcome = evaluate_with(
        &backend,
        &documents(8),
        &["ollama-0.6.6/ctx=full/f32", "ollama-0.12.4/ctx=full/f32", "paged:16/ctx=full/f32"],
    );
    let rows = rows(&outcome);
    let (faulty, sound) = (&rows[1..3], &rows[3]);
    // Trimming all windows leaves the copies as they were.
    for row in faulty {
        println!("{}: {:?}, foreign {:?}, KL {:?}", row.variant, row.incidents, row.foreign, row.kl);
        assert!(row.incidents.defrags > 0);
        assert!(row.foreign.mean > 0.0, "{:?}", row.incidents);
        assert!(row.foreign.mean < 1.0 && row.chat_delta.mean.abs() < 0.05);
        assert!(row.kl.mean > 1e-3, "{:?}", row.kl);
    }
    assert_eq!((sound.foreign.mean, sound.kl.mean), (0.0, 0.0), "blocks change no bit");
}

/// Where cells lie and how many are rotated at once changes no number of what is left.
#[test]
fn policies_that_drop_and_round_alike_lose_alike() {
    for (names, loses) in [
        (["shift:4/f32", "swa-full+shift/f32"], true),
        (["shift:28", "llama-unified/keep=28"], true),
        (["shift:28:drop=306", "shift:28"], true),
        (["shift:28:drop=25%", "shift:28:drop=153"], true),
        (["shift:28+unrotated", "shift:28/unrotated"], true),
        (["ladder/ctx=full/cells=672", "ladder:16:q8_0/ctx=full/cells=672"], false),
    ] {
        let rows = rows(&evaluate_with(&backend, &documents(1), &names));
        let of = |row: &Row| (row.recall.mean, row.kl.mean, row.answer_nll.mean);
        assert_eq!(of(&rows[1]), of(&rows[2]), "{names:?}");
        assert!(rows[1].kl.mean > 0.0 && (rows[1].recall.mean < 1.0) == loses, "{names:?}");
    }
}

/// A quarter at a time leaves more than half does; three quarters at once leave next to nothing for a while.
#[test]
fn a_shift_that_drops_less_finds_more() {
    let names = ["shift:28:drop=153", "shift:28", "shift:28:drop=459"];
    let rows = rows(&evaluate_with(&backend, &documents(4), &names));
    let [full, quarter, half, most] = [0, 1, 2, 3].map(|at| rows[at].recall.mean);
    println!("{full}, {quarter}, {half}, {most}");
    assert!(full > quarter && quarter > half && quarter > most, "{full}, {quarter}, {half}, {most}");
}

/// Every prediction of a chunked reading is that of one token at a time.
#[test]
fn chunks_change_nothing() {
    // Long enough that at a shift no window still has the head, however late it lets go.
    let document = Document::new(5, 0, 240, 60);
    let variant: Variant = "shift:4/f32".parse().unwrap();
    let read = |chunk| {
        let geometry = variant.geometry(&WEIGHTS.config, 200, chunk);
        let shape = CacheShape::new(&WEIGHTS.config, &geometry, variant.kv).unwrap();
        let documents = [&document];
        let mut all = Vec::new();
        let reading = Reading::new(&variant, &documents, backend(shape).unwrap(), &geometry).unwrap();
        reading.run(&mut |token| all.push((token.at, token.logits.to_vec()))).unwrap();
        all
    };
    let (one, many) = (read(1), read(33));
    assert_eq!(one.len(), 60);
    for ((at, one), (also_at, many)) in one.iter().zip(&many) {
        assert_eq!(at, also_at);
        for (a, b) in one.iter().zip(many) {
            assert!((a - b).abs() < 1e-4);
        }
    }
}

/// The harness itself, against one batch that holds a whole document.
#[test]
fn a_reading_is_the_document_in_one_batch() {
    let document = Document::new(6, 0, 80, 30);
    let variant = Variant::reference();
    let tokens = document.tokens.len();
    let geometry = variant.geometry(&WEIGHTS.config, tokens as u32, tokens as u32);
    let shape = CacheShape::new(&WEIGHTS.config, &geometry, variant.kv).unwrap();
    let mut policy = variant.policy(&geometry).unwrap();
    let mut whole = backend(shape.clone()).unwrap();
    let content = policies::Content::own(1);
    let intent = policies::Intent { content, prompt_tokens: tokens as u32, total_tokens: tokens as u32 };
    policy.open(SeqId(0), &intent);
    let append = policies::Append { seq: SeqId(0), tokens: tokens as u32, restored: false };
    policy.place(&[append], &mut Plan::new()).unwrap();
    let mut views = vec![View::default(); 2];
    for (view, class) in views.iter_mut().zip(geometry.class_ids()) {
        view.read(&*policy, class, SeqId(0));
    }
    let span = Span { rows: 0..tokens, samples: 30, views, ..Span::default() };
    let batch = Batch {
        tokens: document.tokens.clone(),
        spans: vec![span],
        wanted: Wanted::Logits,
        walks: vec![None; 2],
    };
    let mut output = Output::default();
    whole.step(&batch, &mut output).unwrap();
    let documents = [&document];
    let small = variant.geometry(&WEIGHTS.config, tokens as u32, 7);
    let shape = CacheShape::new(&WEIGHTS.config, &small, variant.kv).unwrap();
    let reading = Reading::new(&variant, &documents, backend(shape).unwrap(), &small).unwrap();
    let mut predicted = 0;
    reading
        .run(&mut |token| {
            // Row `at - 1` predicts `at`; the batch's samples begin with the row that predicts 81.
            if token.at > 80 {
                let row = token.at - 81;
                let expected = &output.logits[row * 256..(row + 1) * 256];
                for (a, b) in token.logits.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-4, "{}", token.at);
                }
            }
            predicted += 1;
        })
        .unwrap();
    assert_eq!(predicted, 30);
}
