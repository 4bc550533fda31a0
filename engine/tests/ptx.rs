//! The CUDA kernels compile for every architecture, without spills, and the images that come with the program are
//! those of the sources.
//!
//! Needs libnvrtc but no GPU; the tests say so and pass where there is none. `KVLAB_NVRTC` names the library's folder
//! (PyPI's `nvidia-cuda-nvrtc` holds it), else the system's search path counts.

use std::time::Instant;

use engine::cuda::images::{IMAGES, MADE, made};
use engine::cuda::{SOURCE, compile, kernel_names, nvrtc_version};

fn number_before(line: &str, words: &str) -> Option<u32> {
    line.split_once(words)?.0.split_whitespace().last()?.parse().ok()
}

/// What the assembler says of each kernel: name, bytes spilt, bytes of stack.
fn report(log: &str) -> Vec<(String, u32, u32)> {
    let mut kernels = Vec::new();
    let mut name = String::new();
    for line in log.lines() {
        if let Some(rest) = line.split_once("Compiling entry function '") {
            name = rest.1.split('\'').next().expect("a split has a first part").to_owned();
        }
        if let Some(stack) = number_before(line, " bytes stack frame") {
            let spilt = number_before(line, " bytes spill stores").unwrap_or(0);
            if !name.is_empty() {
                kernels.push((std::mem::take(&mut name), spilt, stack));
            }
        }
    }
    kernels
}

#[test]
fn the_kernels_compile_without_spills() {
    check("sm_90");
}

#[test]
#[ignore = "long: cargo test -p engine --test ptx -- --ignored --nocapture"]
fn sm_75_compiles_without_spills() {
    check("sm_75");
}

#[test]
#[ignore = "long: cargo test -p engine --test ptx -- --ignored --nocapture"]
fn sm_80_to_sm_89_compile_without_spills() {
    ["sm_80", "sm_86", "sm_89"].into_iter().for_each(check);
}

#[test]
#[ignore = "long: cargo test -p engine --test ptx -- --ignored --nocapture"]
fn sm_100_compiles_without_spills() {
    check("sm_100");
}

/// Whether there is an NVRTC; says so where there is none.
fn has_nvrtc() -> bool {
    nvrtc_version().inspect_err(|error| println!("skipped: {error}")).is_ok()
}

fn check(architecture: &str) {
    if !has_nvrtc() {
        return;
    }
    let start = Instant::now();
    let compiled = compile(SOURCE, architecture).unwrap_or_else(|error| panic!("{error}"));
    let kernels = report(&compiled.log);
    for name in kernel_names() {
        assert!(kernels.iter().any(|(of, ..)| *of == name), "{architecture}: no {name}");
    }
    let spilt: Vec<_> =
        kernels.iter().filter(|(name, _, stack)| *stack > may_spill(name, architecture)).collect();
    println!(
        "{architecture}: {} kernels, {} bytes, {:.1} s, {} spill: {spilt:?}",
        kernels.len(),
        compiled.image.len(),
        start.elapsed().as_secs_f64(),
        kernels.iter().filter(|(_, _, stack)| *stack > 0).count()
    );
    assert!(spilt.is_empty(), "{architecture} spills: {spilt:?}");
}

/// Bytes of memory that a thread may use for numbers that registers cannot hold.
fn may_spill(name: &str, architecture: &str) -> u32 {
    let is_linear =
        |kind: &str| name.starts_with(&format!("lin_{kind}")) || name.starts_with(&format!("glu_{kind}"));
    match (name, architecture) {
        // Prefill of heads of 256 holds 128 sums a thread: a few numbers that its loop seldom needs may lie in memory.
        ("attn_prefill_bf16_256" | "attn_prefill_scan_bf16_256", _) => 64,
        (_, "sm_90") => 0,
        (name, _) if name.starts_with("attn_prefill") && name.ends_with("_256") => 64,
        // Shuffles in place of tensor cores.
        (_, "sm_75") if is_linear("bf16") => 16,
        // NVRTC 12.8, the first that knows the architecture.
        ("add_norm", "sm_100") => 64,
        (_, "sm_100") if is_linear("q4_0") => 64,
        _ => 0,
    }
}

#[test]
fn the_report_is_read() {
    let log = "ptxas info    : Compiling entry function 'add_norm' for 'sm_90'\n\
               ptxas info    : Function properties for add_norm\n\
               \x20   16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n";
    assert_eq!(report(log), [("add_norm".to_owned(), 8, 16)]);
}

#[test]
fn the_images_were_made_of_these_sources() {
    let hash = made(SOURCE, (0, 0));
    let hash = hash.split(' ').next_back().expect("a split has a last part");
    assert!(MADE.ends_with(hash), "made anew by cargo run --release -p engine --example images");
}

#[test]
#[ignore = "long: cargo test -p engine --test ptx -- --ignored --nocapture"]
fn the_images_are_what_nvrtc_makes() {
    if !has_nvrtc() {
        return;
    }
    let version = nvrtc_version().expect("it is there");
    if MADE != made(SOURCE, version) {
        println!("skipped: NVRTC {}.{} did not make them, but: {MADE}", version.0, version.1);
        return;
    }
    for image in &IMAGES {
        let compiled = compile(SOURCE, image.name).unwrap_or_else(|error| panic!("{error}"));
        assert!(compiled.image == image.unpack().expect("it is whole"), "{} differs", image.name);
        println!("{} is the same", image.name);
    }
}
