//! The runner's rules one by one, and what it promises about Ollama's policies.

use std::sync::Arc;

use policies::scheduler::{
    Event, Job, Keep, Limits, LogLine, OnFull, Refusal, Runner, RunnerKind, RunnerKnobs, Scheduler,
    Unbreakable,
};
use policies::{Content, Geometry, LayerClass, Policy, Reach, make_policy};
use proptest::prelude::*;

/// Tokens of an image.
const IMAGE: u32 = 26;

fn limits() -> Limits {
    Limits {
        num_ctx: 128,
        num_parallel: 2,
        num_batch: 32,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: false,
    }
}

/// The cells that Ollama would give a model with a window of `window`.
fn ollama(spec: &str, limits: &Limits, window: u32) -> Box<dyn Policy> {
    use policies::ollama::{Kind, PAD, Sizing, cells};
    let class = |name: &str, reach, kind| {
        let cells =
            cells(kind, limits.num_parallel, limits.num_ctx, limits.num_batch, PAD, Sizing::SharedBatch);
        LayerClass { name: name.into(), layers: 1, reach, cells }
    };
    let geometry = Geometry {
        classes: vec![
            class("local", Reach::Window(window), Kind::Swa { window }),
            class("global", Reach::Full, Kind::Causal),
        ],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    make_policy(spec, &geometry).expect("the spec is good")
}

fn runner(limits: Limits, knobs: RunnerKnobs) -> Runner {
    Runner::new(ollama("ollama-0.6.6", &limits, 32), limits, knobs, false).with_log()
}

fn chain(own: u64, ids: impl IntoIterator<Item = u64>, chain_end: u32) -> Content {
    Content { chain: ids.into_iter().collect::<Arc<[u64]>>(), chain_tokens: 4, chain_end, own }
}

fn events(scheduler: &mut dyn Scheduler) -> Vec<Event> {
    let mut events = Vec::new();
    scheduler.take_events(&mut events);
    events
}

/// Runs to the end; all events since the last look, and each step's tokens.
fn run(scheduler: &mut dyn Scheduler) -> (Vec<Event>, Vec<u32>) {
    let mut all = events(scheduler);
    let mut tokens = Vec::new();
    while let Some(step) = scheduler.next() {
        tokens.push(step.tokens());
        scheduler.done();
        all.extend(events(scheduler));
        assert!(tokens.len() < 100_000, "it does not come to an end");
    }
    (all, tokens)
}

/// What is in the cache already for the request submitted last.
fn cached(scheduler: &mut dyn Scheduler) -> Option<u32> {
    let admitted = |event: &Event| match event {
        Event::Admitted { cached_tokens, .. } => Some(*cached_tokens),
        _ => None,
    };
    events(scheduler).iter().rev().find_map(admitted)
}

fn log(scheduler: &mut dyn Scheduler) -> Vec<LogLine> {
    let mut log = Vec::new();
    scheduler.take_log(&mut log);
    log
}

/// A random workload: (pause before it, prompt, offset of an image in percent, output, keep).
type Work = Vec<(u32, u32, u32, u32, u32)>;

fn work(num_ctx: u32) -> impl Strategy<Value = Work> {
    let prompt = prop_oneof![1..40u32, 20..num_ctx, num_ctx..2 * num_ctx];
    let output = prop_oneof![1..4u32, 1..100u32];
    prop::collection::vec((0..30u32, prompt, 0..200u32, output, 0..12u32), 1..30)
}

fn job(id: u64, (_, prompt, image, output, keep): (u32, u32, u32, u32, u32)) -> Job {
    let mut job = Job::new(id, prompt, output);
    if image < 100 {
        job.unbreakable = vec![Unbreakable { at: prompt * image / 100, tokens: IMAGE }];
        job.prompt_tokens += IMAGE;
    }
    job.num_keep = Some(if keep == 0 { Keep::Prompt } else { Keep::Tokens(keep - 1) });
    // Some prompts begin alike.
    job.content = chain(id, [u64::from(output % 3), u64::from(keep)], 8);
    job
}

/// Steps of a workload that crashed the server.
fn crashes(spec: &str, limits: Limits, window: u32, work: &Work) -> usize {
    crashes_of(ollama(spec, &limits, window), limits, work)
}

fn crashes_of(policy: Box<dyn Policy>, limits: Limits, work: &Work) -> usize {
    let mut runner = Runner::new(policy, limits, RunnerKnobs { bos: true, ..RunnerKnobs::default() }, false);
    let mut all = Vec::new();
    for (id, &request) in (0..).zip(work) {
        for _ in 0..request.0 {
            if runner.next().is_some() {
                runner.done();
            }
            runner.policy().audit().expect("the books agree");
        }
        runner.submit(job(id, request));
        all.extend(events(&mut runner));
    }
    all.extend(run(&mut runner).0);
    let is_end = |event: &&Event| {
        matches!(event, Event::Finished { .. } | Event::Failed { .. } | Event::Rejected { .. })
    };
    assert_eq!(all.iter().filter(is_end).count(), work.len(), "every request ends once");
    all.iter().filter(|event| matches!(event, Event::Crashed)).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_slot_never_crashes_if_an_image_fits_into_a_batch(
        work in work(150),
        num_batch in IMAGE..70,
        num_ctx in 40..150u32,
        window in 8..100u32,
    ) {
        let limits = Limits { num_ctx, num_parallel: 1, num_batch, ..limits() };
        prop_assert_eq!(crashes("ollama-0.6.6", limits, window, &work), 0);
    }

    #[test]
    fn nothing_crashes_once_all_sequences_are_trimmed_if_an_image_fits_into_a_batch(
        work in work(150),
        num_batch in IMAGE..70,
        num_ctx in 40..150u32,
        window in 8..100u32,
        num_parallel in 1..6u32,
    ) {
        let limits = Limits { num_ctx, num_parallel, num_batch, ..limits() };
        prop_assert_eq!(crashes("ollama-0.12.4", limits, window, &work), 0);
    }

    #[test]
    fn blocks_never_crash_with_one_at_both_ends_of_every_window(
        work in work(150),
        num_batch in IMAGE..70,
        num_ctx in 40..150u32,
        window in 8..100u32,
        num_parallel in 1..6u32,
        block in 1..20u32,
        prefix in any::<bool>(),
    ) {
        let limits = Limits { num_ctx, num_parallel, num_batch, ..limits() };
        let exact = ollama("ollama-0.12.4", &limits, window);
        let mut geometry = exact.geometry().clone();
        let whole = num_parallel * num_ctx.next_multiple_of(block);
        geometry.classes[1].cells = whole.max(geometry.classes[1].cells);
        geometry.classes[0].cells = if num_ctx > window {
            geometry.classes[0].cells + num_parallel * 2 * block
        } else {
            whole.max(geometry.classes[0].cells)
        };
        let spec = format!("paged:{block}{}", if prefix { "+prefix" } else { "" });
        let policy = make_policy(&spec, &geometry).expect("the spec is good");
        prop_assert_eq!(crashes_of(policy, limits, &work), 0);
    }
}

#[test]
fn images_larger_than_a_batch_crash_even_one_slot() {
    let limits = Limits { num_parallel: 1, num_batch: 24, ..limits() };
    // 40 + 24 cells are 64 with padding; the window and an image are 66.
    let work = vec![(0, 90, 80, 1, 5)];
    assert_eq!(crashes("ollama-0.6.6", limits, 40, &work), 1);
    assert_eq!(crashes("ollama-0.12.4", limits, 40, &work), 1);
    assert_eq!(crashes("ollama-0.6.6", Limits { num_batch: IMAGE, ..limits }, 40, &work), 0);
}

#[test]
fn a_crash_takes_the_queue_with_it_and_leaves_virgin_slots() {
    let mut runner = runner(limits(), RunnerKnobs::default());
    for id in 0..5 {
        runner.submit(Job::new(id, 100, 3));
    }
    let (events, tokens) = run(&mut runner);
    let lost = |id| Event::Failed { id, output_tokens: 0 };
    let end = events.iter().position(|event| *event == Event::Crashed).expect("two prompts are too many");
    assert_eq!(events[end..], [Event::Crashed, lost(0), lost(1), lost(2), lost(3), lost(4)]);
    assert_eq!(*tokens.last().expect("there were steps"), 0);
    assert_eq!(log(&mut runner).last(), Some(&LogLine::Panic { cells: Some(96) }));
    assert_eq!((runner.sequences_len(), runner.waiting()), (0, 0));
    runner.submit(Job::new(5, 10, 1));
    let virgin = LogLine::LoadingSlot { slot: 0, cache: 0, prompt: 10, used: 0, remaining: 10 };
    assert_eq!(log(&mut runner), [virgin]);
}

#[test]
fn after_a_crash_the_round_begins_at_its_first_seat() {
    let mut runner = runner(limits(), RunnerKnobs::default());
    (0..2).for_each(|id| runner.submit(Job::new(id, 100, 3)));
    run(&mut runner);
    (2..4).for_each(|id| runner.submit(Job::new(id, 40, 3)));
    let step = runner.next().expect("there are requests");
    let first: Vec<u32> = step.prefills.iter().map(|chunk| chunk.seq.0).collect();
    assert_eq!(first, [0]);
}

#[test]
fn without_restart_a_crash_leaves_everything_as_it_was() {
    let mut runner = runner(limits(), RunnerKnobs::default()).without_restart();
    (0..3).for_each(|id| runner.submit(Job::new(id, 100, 3)));
    let steps = std::iter::from_fn(|| {
        let reload = runner.next()?.reload;
        if !reload {
            runner.done();
        }
        Some(reload)
    });
    assert_eq!(steps.collect::<Vec<_>>(), [false, false, false, true]);
    let tokens: Vec<u32> = runner.slots().map(|slot| slot.tokens).collect();
    assert_eq!(tokens, [64, 32]);
    assert!(runner.slots().all(|slot| slot.in_use));
    assert_eq!(runner.waiting(), 1);
}

/// What a second request finds in the slot of a first one, of 20 tokens and an answer of 11.
fn found(first: impl Fn(&mut Job), second: impl Fn(&mut Job)) -> Option<u32> {
    let mut runner = runner(limits(), RunnerKnobs::default());
    let mut job = Job { content: chain(1, 10..15, 20), session: Some(7), ..Job::new(1, 20, 11) };
    first(&mut job);
    runner.submit(job);
    run(&mut runner);
    let mut job = Job { content: chain(2, 10..20, 40), session: Some(7), ..Job::new(2, 40, 1) };
    second(&mut job);
    runner.submit(job);
    cached(&mut runner)
}

#[test]
fn the_next_turn_of_a_conversation_goes_on_from_the_answer() {
    // The last token of the answer was not computed.
    assert_eq!(found(|_| (), |_| ()), Some(30));
    assert_eq!(found(|job| job.content = chain(1, 10..14, 19), |_| ()), Some(30), "a rest of a block");
    let ended = |job: &mut Job| job.num_predict = Some(5);
    assert_eq!(found(ended, |_| ()), Some(24), "the answer ended early");
    let prompt_only = Some(20);
    assert_eq!(found(|_| (), |job| job.session = Some(8)), prompt_only);
    assert_eq!(found(|_| (), |job| job.session = None), prompt_only);
    assert_eq!(found(|job| job.session = None, |job| job.session = None), prompt_only);
    let short = |job: &mut Job| (job.prompt_tokens, job.content.chain_end) = (30, 30);
    assert_eq!(found(|_| (), short), prompt_only, "too short to hold the answer");
    assert_eq!(found(|_| (), |job| job.content = chain(2, 10..16, 40)), prompt_only, "the chain ends before");
    let other = |job: &mut Job| job.content = chain(2, (10..14).chain(30..36), 40);
    assert_eq!(found(|_| (), other), Some(16), "the prompt was changed");
}

#[test]
fn a_chain_may_tell_the_answer() {
    let told = |job: &mut Job| job.content = chain(1, 10..20, 31);
    let alone = |job: &mut Job| job.session = None;
    assert_eq!(found(told, alone), Some(30));
    let other = |job: &mut Job| (job.session, job.content) = (None, chain(2, (10..16).chain(40..44), 40));
    assert_eq!(found(told, other), Some(24));
}

#[test]
fn one_token_of_a_prompt_is_always_computed() {
    let same = |job: &mut Job| (job.prompt_tokens, job.content) = (20, chain(2, 10..15, 20));
    assert_eq!(found(|_| (), same), Some(19));
}

#[test]
fn a_window_that_has_moved_on_resumes_nowhere_but_at_its_end() {
    let long = |job: &mut Job| job.output_tokens = 17;
    let shorter = |job: &mut Job| job.content = chain(2, (10..14).chain(30..36), 40);
    assert_eq!(found(long, shorter), Some(0));
}

#[test]
fn what_was_cut_or_shifted_out_of_a_slot_is_not_found_in_it() {
    // The window is longer than the context, so that a slot resumes anywhere.
    let limits = Limits { num_ctx: 40, num_batch: 64, ..limits() };
    let found = |first: Job| {
        let policy = ollama("ollama-0.6.6", &limits, 64);
        let mut runner = Runner::new(policy, limits, RunnerKnobs::default(), false);
        runner.submit(first);
        run(&mut runner);
        runner.submit(Job { content: chain(2, 10..20, 36), ..Job::new(2, 36, 1) });
        cached(&mut runner)
    };
    let told = |prompt, output| Job { content: chain(1, 10..30, 80), ..Job::new(1, prompt, output) };
    assert_eq!(found(told(30, 5)), Some(34));
    assert_eq!(found(told(30, 20)), Some(4), "shifted");
    assert_eq!(found(told(60, 1)), Some(4), "cut");
    assert_eq!(found(Job { num_keep: Some(Keep::Tokens(9)), ..told(60, 1) }), Some(9), "cut");
}

#[test]
fn all_prompts_begin_with_the_same_token_if_told_so() {
    for (bos, used) in [(true, 1), (false, 0)] {
        let mut runner = runner(limits(), RunnerKnobs { bos, ..RunnerKnobs::default() });
        runner.submit(Job::new(1, 10, 1));
        run(&mut runner);
        runner.submit(Job::new(2, 10, 1));
        assert_eq!(cached(&mut runner), Some(used));
    }
}

#[test]
fn a_prompt_that_cannot_be_cut_is_refused() {
    let mut runner = runner(Limits { num_ctx: 30, ..limits() }, RunnerKnobs::default());
    let image = |at| vec![Unbreakable { at, tokens: 27 }];
    for (at, prompt, why) in [
        (3, 40, Some(Refusal::ImageInHead { at: 3, keep: 4, tokens: 27 })),
        (4, 31, Some(Refusal::NothingLeft)),
        (4, 32, None),
        (3, 30, None),
    ] {
        runner.submit(Job { unbreakable: image(at), ..Job::new(1, prompt, 1) });
        let rejected = events(&mut runner).into_iter().find_map(|event| match event {
            Event::Rejected { why, .. } => Some(why),
            _ => None,
        });
        assert_eq!(rejected, why, "an image at {at} of {prompt}");
        run(&mut runner);
    }
}

#[test]
fn the_queue_has_room_for_so_many() {
    let mut runner = runner(Limits { queue_max: Some(1), ..limits() }, RunnerKnobs::default());
    (0..4).for_each(|id| runner.submit(Job::new(id, 10, 1)));
    assert_eq!(
        events(&mut runner).last(),
        Some(&Event::Rejected { id: 3, why: Refusal::QueueFull }),
        "two have slots, one waits"
    );
}

#[test]
fn the_other_runner_counts_a_batch_for_each_sequence() {
    let prompts = |kind| {
        let mut runner = runner(limits(), RunnerKnobs { kind, ..RunnerKnobs::default() });
        (0..2).for_each(|id| runner.submit(Job::new(id, 40, 1)));
        run(&mut runner).1
    };
    assert_eq!(prompts(RunnerKind::Ollama), [32, 32, 16]);
    assert_eq!(prompts(RunnerKind::Llama), [64, 16]);
}

#[test]
fn the_other_runner_keeps_one_token_more_and_cuts_images() {
    let knobs = RunnerKnobs { kind: RunnerKind::Llama, bos: true, ..RunnerKnobs::default() };
    let mut runner = runner(limits(), knobs);
    runner.submit(Job { unbreakable: vec![Unbreakable { at: 3, tokens: 100 }], ..Job::new(1, 200, 1) });
    let truncating = LogLine::TruncatingPrompt { limit: 128, prompt: 200, keep: 5, new: 128 };
    assert_eq!(log(&mut runner)[0], truncating);
    let (_, tokens) = run(&mut runner);
    assert_eq!(tokens, [32; 4]);
}

#[test]
fn a_log_is_kept_for_whoever_wants_one() {
    let limits = limits();
    let policy = || ollama("ollama-0.6.6", &limits, 32);
    let mut quiet = Runner::new(policy(), limits, RunnerKnobs::default(), false);
    quiet.submit(Job::new(1, 10, 1));
    assert_eq!(log(&mut quiet), []);
    let mut loud = Runner::new(policy(), limits, RunnerKnobs::default(), false).with_log();
    loud.submit(Job::new(1, 10, 1));
    assert_eq!(log(&mut loud).len(), 1);
    assert_eq!(log(&mut loud), [], "a line is handed out once");
}

#[test]
fn milder_ways_to_meet_a_full_cache_lose_less() {
    let lost = |on_full| {
        let mut runner = runner(limits(), RunnerKnobs { on_full, ..RunnerKnobs::default() });
        (0..4).for_each(|id| runner.submit(Job::new(id, 100, 3)));
        let (events, _) = run(&mut runner);
        events.iter().filter(|event| matches!(event, Event::Failed { .. })).count()
    };
    assert_eq!(lost(OnFull::Crash), 4);
    for on_full in [OnFull::FailOne, OnFull::Halve, OnFull::Wait] {
        assert!(lost(on_full) < 4, "{on_full:?}");
    }
}
