//! How fast logs are read: megabytes per second, for logs in which few, many and all lines matter.
//!
//! `cargo run --release -p logs --example scan_speed [LOG]`. The log is in memory; gzip is not part of it.

use std::time::Instant;

use logs::Scan;

/// Bytes of a made-up log.
const BYTES: usize = 256 << 20;

fn repeated(lines: &[&str]) -> Vec<u8> {
    let block = lines.join("\n") + "\n";
    block.as_bytes().iter().copied().cycle().take(BYTES / block.len() * block.len()).collect()
}

fn measure(name: &str, log: &[u8]) -> std::io::Result<()> {
    for (kind, make) in [("events", Scan::new as fn() -> Scan), ("and requests", Scan::with_requests)] {
        let mut best = f64::INFINITY;
        let mut found = 0;
        for _ in 0..3 {
            let mut scan = make();
            let started = Instant::now();
            scan.read(log)?;
            best = best.min(started.elapsed().as_secs_f64());
            found = scan.finish().tallies.iter().map(|tally| tally.count).sum();
        }
        println!("{name:>24} {kind:>14} {:>8.0} MB/s {found:>10} events", log.len() as f64 / 1e6 / best);
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    if let Some(path) = std::env::args().nth(1) {
        return measure(&path, &std::fs::read(&path)?);
    }
    let debug = "time=2025-04-20T10:11:12.123+02:00 level=DEBUG source=sched.go:407 msg=\"context for request finished\"";
    let sched = "time=2025-04-20T10:11:12.124+02:00 level=DEBUG source=sched.go:339 msg=\"runner with non-zero duration has gone idle, adding timer\" modelPath=/srv/blobs/sha256-1fb99eda86dc duration=5m0s";
    let gin = "[GIN] 2025/04/20 - 10:11:12 | 200 |  4.513843834s |       127.0.0.1 | POST     \"/api/chat\"";
    let load = "time=2025-04-20T10:11:12.551+02:00 level=DEBUG source=cache.go:104 msg=\"loading cache slot\" id=0 cache=276 prompt=512 used=11 remaining=501";
    let defrag =
        "time=2025-04-20T10:11:12.600+02:00 level=DEBUG source=causal.go:374 msg=\"defragmenting kv cache\"";
    let mut few = [debug, sched].repeat(50);
    few.push(gin);
    let debug_log = [debug, sched, load, debug, sched, sched, gin];
    measure("1 line in 100 matters", &repeated(&few))?;
    measure("debug log of Ollama", &repeated(&debug_log))?;
    measure("access lines only", &repeated(&[gin]))?;
    measure("events only", &repeated(&[defrag]))
}
