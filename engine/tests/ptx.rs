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

/// What the assembler says of a kernel.
#[derive(Debug, PartialEq)]
struct Built {
    name: String,
    /// Bytes of a thread for numbers that registers do not hold.
    stack: u32,
    /// Bytes of a block that its threads share.
    shared: u32,
}

fn report(log: &str) -> Vec<Built> {
    let mut kernels: Vec<Built> = Vec::new();
    // The function that lines speak of is the last kernel named, and not one that it calls.
    let mut is_kernel = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().expect("a split has a first part").to_owned();
            kernels.push(Built { name, stack: 0, shared: 0 });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if let Some((_, name)) = line.split_once("Function properties for ") {
            is_kernel = name.trim() == kernel.name;
        }
        if let Some(stack) = number_before(line, " bytes stack frame").filter(|_| is_kernel) {
            kernel.stack = stack;
        }
        if let Some(shared) = number_before(line, " bytes smem") {
            kernel.shared = shared;
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
    let (major, minor) = nvrtc_version().expect("it is there");
    if architecture == "sm_100" && (major, minor) < (12, 8) {
        println!("skipped: NVRTC {major}.{minor} does not know {architecture}");
        return;
    }
    let start = Instant::now();
    let compiled = compile(SOURCE, architecture).unwrap_or_else(|error| panic!("{error}"));
    let kernels = report(&compiled.log);
    let mut names: Vec<&str> = kernels.iter().map(|kernel| &*kernel.name).collect();
    names.sort_unstable();
    let mut expected = kernel_names();
    expected.sort_unstable();
    assert_eq!(names, expected, "{architecture}");
    let spilt: Vec<&Built> =
        kernels.iter().filter(|kernel| kernel.stack > may_spill(&kernel.name, architecture)).collect();
    println!(
        "NVRTC {major}.{minor}, {architecture}: {} kernels, {} bytes, {:.1} s, {} spill: {spilt:?}",
        kernels.len(),
        compiled.image.len(),
        start.elapsed().as_secs_f64(),
        kernels.iter().filter(|kernel| kernel.stack > 0).count()
    );
    assert!(spilt.is_empty(), "{architecture} spills: {spilt:?}");
    let shared: Vec<&Built> = kernels.iter().filter(|kernel| kernel.shared > MOST_SHARED).collect();
    assert!(shared.is_empty(), "{architecture}: {shared:?}");
    assert!(kernels.iter().any(|kernel| kernel.shared > MOST_SHARED / 2), "the report says what is shared");
}

/// Bytes that a block may share on every device without asking for more.
const MOST_SHARED: u32 = 48 << 10;

/// Bytes of memory that a thread may use for numbers that registers cannot hold.
fn may_spill(name: &str, architecture: &str) -> u32 {
    let is_linear =
        |kind: &str| name.starts_with(&format!("lin_{kind}")) || name.starts_with(&format!("glu_{kind}"));
    match (name, architecture) {
        // Prefill of heads of 256 holds 128 sums a thread: a few numbers that its loop seldom needs may lie in memory.
        // 72 bytes with NVRTC 13.5, 64 with 12.8.
        ("attn_prefill_bf16_256" | "attn_prefill_scan_bf16_256", "sm_100") => 72,
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
               \x20   16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
               ptxas info    : Used 64 registers, used 1 barriers, 16 bytes cumulative stack size, 128 bytes smem\n\
               ptxas info    : Function properties for called\n\
               \x20   32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
               ptxas info    : Compiling entry function 'embed' for 'sm_90'\n\
               ptxas info    : Function properties for embed\n\
               \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
               ptxas info    : Used 40 registers, used 0 barriers\n";
    let built = |name: &str, stack, shared| Built { name: name.to_owned(), stack, shared };
    assert_eq!(report(log), [built("add_norm", 16, 128), built("embed", 0, 0)]);
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
