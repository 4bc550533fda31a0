//! What of a memory nobody can use, by how layer classes share it: equal sequences are served until one finds no room.

use policies::{Append, Content, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId, make_policy};

const WINDOW: u32 = 1024;
const BATCH: u32 = 512;
const LENGTHS: [u32; 4] = [512, 2048, 8192, 32_768];

/// Gemma 3 12B's classes, split as Ollama does for 16 slots of 8,192 tokens.
fn geometry() -> Geometry {
    let class = |name: &str, layers, reach, cells| LayerClass { name: name.into(), layers, reach, cells };
    let classes = vec![
        class("local", 40, Reach::Window(WINDOW), 16 * WINDOW + BATCH),
        class("global", 8, Reach::Full, 16 * 8192),
    ];
    Geometry { classes, context_max: 131_072, batch_max: BATCH, sequences_max: 4096 }
}

/// Layer-cells that a sequence's next token reads.
fn needed(geometry: &Geometry, len: u32) -> u64 {
    let classes = geometry.classes.iter();
    classes.map(|class| u64::from(class.layers) * u64::from(class.reach.clip(len))).sum()
}

/// Sequences of so many tokens that a policy holds at once, the last of which is decoded.
fn served(policy: &mut dyn Policy, len: u32) -> u32 {
    for seq in 0.. {
        let intent =
            Intent { content: Content::own(u64::from(seq) + 1), prompt_tokens: len - 1, total_tokens: len };
        policy.open(SeqId(seq), &intent);
        for tokens in (1..len / BATCH).map(|_| BATCH).chain([BATCH - 1, 1]) {
            let append = Append { seq: SeqId(seq), tokens, restored: false };
            if policy.place(&[append], &mut Plan::without_writes()).is_err() {
                return seq;
            }
        }
    }
    unreachable!("memory ends")
}

/// Prints the table of docs/policies.md: the share of the memory that no sequence reads when the next one is refused.
#[test]
fn what_each_way_to_share_a_memory_leaves_unused() {
    let geometry = geometry();
    let memory: u64 =
        geometry.classes.iter().map(|class| u64::from(class.layers) * u64::from(class.cells)).sum();
    let mut unused = Vec::new();
    for spec in ["paged", "shared", "vllm", "swa-full"] {
        let shares = LENGTHS.map(|len| {
            let mut policy = make_policy(spec, &geometry).expect("the spec is good");
            let read = u64::from(served(&mut *policy, len)) * needed(&geometry, len);
            assert!(read <= memory, "{spec}: more is read than there is");
            100.0 * (1.0 - read as f64 / memory as f64)
        });
        println!("{spec:>9} {}", shares.map(|share| format!("{share:6.1} %")).join(" "));
        unused.push(shares);
    }
    let [split, shared, groups, unified] = unused[..] else { panic!("four ways") };
    // A split is right near the length it was made for, and wastes most of the memory far from it.
    assert!(split[2] < 5.0 && split[0] > 50.0 && split[3] > 20.0, "{split:?}");
    // One memory wastes little at any length, but for what the last sequence would have needed.
    assert!(shared[..3].iter().chain(&groups[..3]).all(|&share| share < 10.0), "{shared:?}, {groups:?}");
    // Without windows every layer pays for every token.
    assert!(unified[0] < 5.0 && unified[2] > 50.0 && unified[3] > unified[2], "{unified:?}");
}
