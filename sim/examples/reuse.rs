//! Prints which share of a trace's prompts every rule of eviction finds in caches of several sizes.
//!
//!     cargo run --release -p sim --example reuse -- TRACE BLOCK_TOKENS BLOCKS,BLOCKS,... [SESSIONS]
//!
//! With SESSIONS, so many sessions of a closed trace are served at a time, a request of each in turn.

use std::error::Error;
use std::io::{Write, stdout};

use policies::{Geometry, LayerClass, Policy, Reach, make_policy};
use sim::reuse::{in_turns, reuse};
use traces::{ReadOptions, Request};

const RULES: [&str; 8] = ["lru", "fifo", "lfu", "s3fifo", "cost", "scan", "fifo:none:leaf", "belady"];

fn cache(spec: &str, block_tokens: u32, blocks: u32) -> Result<Box<dyn Policy>, Box<dyn Error>> {
    let cells = block_tokens.checked_mul(blocks).ok_or("more cells than can be numbered")?;
    let all = LayerClass { name: "all".to_owned(), layers: 1, reach: Reach::Full, cells };
    let geometry =
        Geometry { classes: vec![all], context_max: u32::MAX, batch_max: u32::MAX, sequences_max: 1 };
    Ok(make_policy(spec, &geometry)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [trace, block_tokens, sizes, rest @ ..] = &*arguments else {
        return Err("expected TRACE BLOCK_TOKENS BLOCKS,BLOCKS,... [SESSIONS]".into());
    };
    let block_tokens: u32 = block_tokens.parse()?;
    let sizes = sizes.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let requests = traces::open(trace.as_ref(), &ReadOptions::default())?;
    let mut requests = requests.collect::<Result<Vec<Request>, _>>()?;
    if let Some(width) = rest.first() {
        requests = in_turns(requests, width.parse()?);
    }
    let mut out = stdout().lock();
    write!(out, "blocks")?;
    RULES.iter().try_for_each(|rule| write!(out, "\t{rule}"))?;
    writeln!(out, "\trefused")?;
    for blocks in sizes {
        write!(out, "{blocks}")?;
        let mut refused = 0;
        for rule in RULES {
            let spec = format!("paged:{block_tokens}+prefix({rule})");
            let found = reuse(&mut *cache(&spec, block_tokens, blocks)?, &requests);
            write!(out, "\t{:.1} %", found.share() * 100.0)?;
            refused = found.refused;
        }
        writeln!(out, "\t{refused}")?;
    }
    Ok(())
}
