//! Hit rates of vLLM's hybrid prefix cache when chat seats take turns, by retention and eviction.
//!
//! `cargo run --release -p policies --example vllm_seats`

use policies::vllm::{Eviction, Retention, Setup};

#[path = "../tests/seats/mod.rs"]
mod seats;

const SEATS: [u32; 9] = [2, 4, 6, 8, 12, 14, 16, 20, 28];

fn main() {
    let hybrid = seats::gemma3_12b;
    let rows: [(&str, Setup); 7] = [
        ("dense, lru", hybrid(Retention::Dense, Eviction::Lru)),
        ("retention 2048, lru", hybrid(Retention::Every(2048), Eviction::Lru)),
        ("retention 0, lru", hybrid(Retention::Last, Eviction::Lru)),
        ("no groups, equal bytes", seats::without_groups()),
        ("dense, whole", hybrid(Retention::Dense, Eviction::Whole)),
        ("retention 2048, whole", hybrid(Retention::Every(2048), Eviction::Whole)),
        ("retention 0, whole", hybrid(Retention::Last, Eviction::Whole)),
    ];
    print!("{:24}", "seats");
    SEATS.iter().for_each(|count| print!("{count:>8}"));
    print!("\n{:24}", "seats at rest / pool");
    let share = |count| f64::from(count * seats::SEAT_BLOCKS) * 100.0 / f64::from(seats::BLOCKS);
    SEATS.iter().for_each(|&count| print!("{:>7.0}%", share(count)));
    println!();
    for (name, setup) in rows {
        print!("{name:24}");
        SEATS.iter().for_each(|&count| print!("{:>8.3}", seats::warm_hit_rate(setup.clone(), count, 3)));
        println!();
    }
    print!("{:24}", "whole seats, a bound");
    let alone = seats::warm_hit_rate(hybrid(Retention::Last, Eviction::Lru), 2, 3);
    SEATS.iter().for_each(|&count| print!("{:>8.3}", seats::bound(alone, count)));
    println!();
}
