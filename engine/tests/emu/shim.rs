//! Compiles the kernels with a C++ compiler and launches them as the CUDA driver would.

use std::ffi::{CStr, c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use libloading::{Library, Symbol};

const SOURCES: [&str; 6] = [
    include_str!("../../kernels/common.cu"),
    include_str!("../../kernels/linear.cu"),
    include_str!("../../kernels/norm.cu"),
    include_str!("../../kernels/cache.cu"),
    include_str!("../../kernels/attention.cu"),
    include_str!("../../kernels/sample.cu"),
];

/// The kernels, compiled.
pub struct Shim(Library);

type Entry = unsafe extern "C" fn(*const u32, u32, *mut *mut c_void, u32) -> *const c_char;

/// Names of all kernels.
fn kernels() -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let plain = SOURCES.iter().flat_map(|source| source.split("\nKERNEL(").skip(1));
    for rest in plain {
        let after = rest.split_once(") ").expect("launch bounds end").1;
        names.push(after.split('(').next().expect("a split has a first part").to_owned());
    }
    for weights in ["bf16", "q8_0", "q4_0"] {
        for columns in [8, 16, 32] {
            names.extend(["lin", "glu"].map(|kind| format!("{kind}_{weights}_{columns}")));
        }
    }
    names.extend(["f32", "bf16", "q8_0", "q4_0"].map(|kind| format!("embed_{kind}")));
    for kv in ["bf16", "q8_0", "q4_0"] {
        for hd in [32, 64, 128, 256] {
            let kinds = ["decode", "scan", "prefill", "prefill_scan"];
            names.extend(kinds.map(|kind| format!("attn_{kind}_{kv}_{hd}")));
        }
    }
    names
}

fn compile(flag: &str) -> Option<Shim> {
    let header = include_str!("../../kernels/emu/shim.h");
    let entries: String = kernels().iter().map(|name| format!("EMU_ENTRY({name})\n")).collect();
    let text = format!("{header}\n{}\n{entries}", SOURCES.concat());
    let mut hasher = DefaultHasher::new();
    (&text, flag).hash(&mut hasher);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let stem = format!("emu-{:016x}", hasher.finish());
    let library = folder.join(format!("{stem}.so"));
    if !library.exists() {
        let process = std::process::id();
        let source = folder.join(format!("{stem}-{process}.cpp"));
        let object = folder.join(format!("{stem}-{process}.so"));
        std::fs::write(&source, text).unwrap();
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let run = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off"])
            .args([flag, "-o"])
            .args([&object, &source])
            .output();
        let run = match run {
            Ok(run) => run,
            Err(error) => {
                println!("skipped: no C++ compiler ({compiler}: {error})");
                return None;
            }
        };
        assert!(run.status.success(), "{compiler}: {}", String::from_utf8_lossy(&run.stderr));
        std::fs::rename(&object, &library).unwrap();
        std::fs::remove_file(&source).unwrap();
    }
    // SAFETY: the library was just made from our own sources and has no initialiser of consequence.
    Some(Shim(unsafe { Library::new(&library) }.unwrap()))
}

/// The kernels with tensor-core instructions emulated; none where there is no compiler.
pub fn shim() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile("-DKVLAB_EMU_MATRICES")).as_ref()
}

/// The kernels as they are on chips without those instructions.
pub fn shuffles() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile("-DKVLAB_EMU_SHUFFLES")).as_ref()
}

impl Shim {
    /// Launches a kernel under a schedule; arguments are the bits of each, as [`p`], [`m`], [`u`] and [`f`] make them.
    pub fn launch_as(&self, schedule: u32, name: &str, grid: [u32; 3], threads: u32, args: &mut [u64]) {
        let mut pointers: Vec<*mut c_void> =
            args.iter_mut().map(|arg| std::ptr::from_mut(arg).cast()).collect();
        // SAFETY: every entry has this type; the shim unpacks as many arguments as the kernel has, and tests pass
        // pointers to buffers that live through the call.
        let trouble = unsafe {
            let entry: Symbol<Entry> = self.0.get(format!("launch_{name}")).unwrap();
            entry(grid.as_ptr(), threads, pointers.as_mut_ptr(), schedule)
        };
        if !trouble.is_null() {
            // SAFETY: what is not null is a string of the shim's.
            panic!("{name}: {}", unsafe { CStr::from_ptr(trouble) }.to_string_lossy());
        }
    }

    /// Launches a kernel with threads in order.
    pub fn launch(&self, name: &str, grid: [u32; 3], threads: u32, args: &mut [u64]) {
        self.launch_as(0, name, grid, threads, args);
    }
}

/// What is read.
pub fn p<T>(data: &[T]) -> u64 {
    data.as_ptr() as u64
}

/// What is written.
pub fn m<T>(data: &mut [T]) -> u64 {
    data.as_mut_ptr() as u64
}

/// A whole number.
pub fn u(value: usize) -> u64 {
    value as u64
}

/// A float.
pub fn f(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// Numbers from a seed.
pub struct Random(pub u64);

impl Random {
    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Mean 0, variance 1.
    pub fn unit(&mut self) -> f32 {
        ((self.bits() >> 40) as f32 / 8_388_608.0 - 1.0) * 1.732
    }

    /// Many of them.
    pub fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }

    /// A random order of `0..count`.
    pub fn order(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        (1..count).rev().for_each(|i| order.swap(i, self.below(i + 1)));
        order
    }
}

/// Largest difference.
pub fn apart(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let one = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs();
    a.iter().zip(b).map(one).fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) })
}

/// The bits of floats, to compare them exactly.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
