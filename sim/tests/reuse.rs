//! What caches find of real traces, where these are at hand (see `KVLAB_TRACES`): an endless one beside counting, and
//! LRU beside a model of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use policies::{Geometry, LayerClass, Policy, Reach, make_policy};
use sim::reuse::{Reuse, in_turns, reuse};
use traces::{Prefix, ReadOptions, Request, When};

const MOONCAKE: &str = "mooncake/conversation_trace.part0.jsonl.gz";
const SYNTHETIC: &str = "mooncake/synthetic_trace.jsonl.gz";
const AGENTS: &str = "claude_code_agent/traces_0600_0699.jsonl.gz";

/// A real trace; none, with a message, where it is absent.
fn real(name: &str) -> Option<Vec<Request>> {
    let folder = std::env::var("KVLAB_TRACES")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces"), PathBuf::from);
    let path = folder.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent; set KVLAB_TRACES to the folder of traces", path.display());
        return None;
    }
    let requests = traces::open(&path, &ReadOptions::default()).expect("the trace is good");
    Some(requests.collect::<Result<_, _>>().expect("the trace is good"))
}

fn cache(spec: &str, cells: u32) -> Box<dyn Policy> {
    let all = LayerClass { name: "all".into(), layers: 1, reach: Reach::Full, cells };
    let geometry =
        Geometry { classes: vec![all], context_max: u32::MAX, batch_max: u32::MAX, sequences_max: 1 };
    make_policy(spec, &geometry).expect("the spec is good")
}

/// Ids and, of these, ids that came before: an endless cache without any policy.
fn count(requests: &[Request]) -> (u64, u64) {
    let mut seen = BTreeSet::new();
    let (mut ids, mut found) = (0, 0);
    for request in requests {
        ids += request.prefix.ids.len() as u64;
        found += request.prefix.ids.iter().take_while(|id| seen.contains(*id)).count() as u64;
        seen.extend(request.prefix.ids.iter().copied());
    }
    (ids, found)
}

/// LRU over ids of full blocks, written down anew: tokens found.
fn lru(requests: &[Request], block: u32, blocks: u64) -> u64 {
    let mut cached: BTreeMap<u64, u64> = BTreeMap::new();
    let mut idle: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut now, mut found) = (0, 0);
    for request in requests {
        let ids = &request.prefix.ids;
        let most = ((request.prompt_tokens - 1) / block) as usize;
        let hits = ids.iter().take(most).take_while(|id| cached.contains_key(id)).count();
        for id in &ids[..hits] {
            idle.remove(&cached[id]);
        }
        let wanted = u64::from(request.prompt_tokens.div_ceil(block)) - hits as u64;
        while cached.len() as u64 + wanted > blocks {
            let (_, id) = idle.pop_first().expect("a prompt is shorter than the cache");
            cached.remove(&id);
        }
        let full = (request.prompt_tokens / block) as usize;
        let held: Vec<u64> = ids[..full]
            .iter()
            .enumerate()
            .filter(|(at, id)| *at < hits || !cached.contains_key(id))
            .map(|(_, id)| *id)
            .collect();
        for id in held.into_iter().rev() {
            now += 1;
            cached.insert(id, now);
            idle.insert(now, id);
        }
        found += hits as u64 * u64::from(block);
    }
    found
}

#[test]
fn an_endless_cache_finds_what_counting_finds() {
    let Some(mooncake) = real(MOONCAKE) else { return };
    let (ids, found) = count(&mooncake);
    let share = found as f64 / ids as f64;
    assert!((share - 0.354).abs() < 0.0005, "{share} of the blocks");
    let endless = reuse(&mut *cache("paged:512+prefix", 200_000_000), &mooncake);
    // A prompt keeps one token to compute, so what it shares as a whole or in its unfull last block is left out.
    let full = |request: &Request| u64::from((request.prompt_tokens - 1) / 512);
    let mut seen = BTreeSet::new();
    let mut counted = 0;
    for request in &mooncake {
        let most = full(request) as usize;
        counted += request.prefix.ids.iter().take(most).take_while(|id| seen.contains(*id)).count() as u64;
        seen.extend(request.prefix.ids.iter().take((request.prompt_tokens / 512) as usize).copied());
    }
    assert_eq!(endless.found_tokens, counted * 512);
    assert_eq!(endless, reuse(&mut *cache("radix:512", 200_000_000), &mooncake));
    eprintln!("mooncake: {share:.4} of the blocks, {:.4} of the tokens", endless.share());
    assert!((endless.share() - 0.360).abs() < 0.0005, "{endless:?}");
}

/// Sizes and shares, in per mille, are those of docs/policies.md.
#[test]
fn lru_finds_what_a_model_of_its_own_finds_at_every_size() {
    for (name, block, width, documented) in [
        (MOONCAKE, 512, 0, &[(1_000, 46), (3_000, 69), (10_000, 215), (30_000, 330), (400_000, 360)][..]),
        (SYNTHETIC, 512, 0, &[(1_000, 87), (3_000, 199), (10_000, 443), (30_000, 639), (400_000, 650)]),
        (AGENTS, 64, 8, &[(10_000, 353), (30_000, 975)]),
    ] {
        let Some(mut requests) = real(name) else { continue };
        if width > 0 {
            requests = in_turns(requests, width);
        }
        for &(blocks, permille) in documented {
            let found = reuse(&mut *cache(&format!("paged:{block}+prefix"), block * blocks), &requests);
            eprintln!("{name}, {blocks} blocks: {:.4}, {} refused", found.share(), found.refused);
            assert_eq!(found.refused, 0);
            assert_eq!(found.found_tokens, lru(&requests, block, blocks.into()), "{name}, {blocks} blocks");
            assert_eq!(found, reuse(&mut *cache(&format!("radix:{block}"), block * blocks), &requests));
            let found = found.share() * 1000.0;
            assert!(
                (found - f64::from(permille)).abs() < 1.0,
                "{name}, {blocks} blocks: {found}, {permille}"
            );
        }
    }
}

#[test]
fn no_rule_finds_more_than_the_bound() {
    let Some(requests) = real(MOONCAKE) else { return };
    let requests = &requests[..4_000];
    for blocks in [1_000, 5_000] {
        let share = |rule: &str| {
            reuse(&mut *cache(&format!("paged:512+prefix({rule})"), 512 * blocks), requests).share()
        };
        let bound = share("belady");
        for rule in ["lru", "fifo", "lfu", "s3fifo", "cost", "scan"] {
            let found = share(rule);
            assert!(found > 0.0 && found < bound, "{rule}, {blocks} blocks: {found}, bound {bound}");
        }
    }
}

#[test]
fn an_agent_session_finds_all_but_what_it_adds() {
    let Some(agents) = real(AGENTS) else { return };
    let (ids, found) = count(&agents);
    let share = found as f64 / ids as f64;
    eprintln!("agents: {share:.4} of the blocks");
    let endless = reuse(&mut *cache("paged:64+prefix", 128_000_000), &agents);
    assert!(endless.share() <= share && endless.share() > share - 0.01, "{endless:?}");
    assert!((0.97..0.98).contains(&endless.share()), "{endless:?}");
}

#[test]
fn sessions_take_turns_and_make_way_for_the_next() {
    let request = |id, session| Request {
        id,
        session,
        when: When::At { ns: 0 },
        prompt_tokens: 1,
        output_tokens: 1,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    };
    let requests: Vec<Request> =
        [(0, Some(7)), (1, Some(7)), (2, Some(7)), (3, Some(5)), (4, None), (5, Some(5))]
            .map(|(id, session)| request(id, session))
            .into();
    let order =
        |width| in_turns(requests.clone(), width).iter().map(|request| request.id).collect::<Vec<_>>();
    assert_eq!(order(1), [0, 1, 2, 3, 5, 4]);
    assert_eq!(order(2), [0, 3, 1, 5, 2, 4]);
    assert_eq!(Reuse::default().share(), 0.0);
}
