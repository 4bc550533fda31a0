//! The CUDA kernels compile for every architecture, without spills.
//!
//! Needs libnvrtc but no GPU; the test says so and passes where there is none. `KVLAB_NVRTC` names the library's folder
//! (PyPI's `nvidia-cuda-nvrtc` holds it), else the system's search path counts.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;

use libloading::Library;
use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_NOW};

const SOURCES: [&str; 6] = [
    include_str!("../kernels/common.cu"),
    include_str!("../kernels/linear.cu"),
    include_str!("../kernels/norm.cu"),
    include_str!("../kernels/cache.cu"),
    include_str!("../kernels/attention.cu"),
    include_str!("../kernels/sample.cu"),
];

fn open(stems: &[&str]) -> Option<Library> {
    let folder = std::env::var_os("KVLAB_NVRTC").map(PathBuf::from).unwrap_or_default();
    // SAFETY: the library of a vendor, whose initialiser only prepares itself.
    let open = |stem: &&str| unsafe { Unix::open(Some(folder.join(stem)), RTLD_NOW | RTLD_GLOBAL) }.ok();
    stems.iter().find_map(open).map(Library::from)
}

struct Nvrtc {
    library: Library,
    _builtins: Option<Library>,
}

type Program = *mut c_void;

impl Nvrtc {
    fn find() -> Option<Nvrtc> {
        let builtins = open(&[
            "libnvrtc-builtins.so.13.0",
            "libnvrtc-builtins.so.12.9",
            "libnvrtc-builtins.so.12.8",
            "libnvrtc-builtins.so.12.4",
        ]);
        let library = open(&["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]);
        if library.is_none() {
            println!("skipped: no libnvrtc (KVLAB_NVRTC may name its folder)");
        }
        Some(Nvrtc { library: library?, _builtins: builtins })
    }

    /// Whether it compiles, and what the compiler says.
    fn compile(&self, source: &str, options: &[&str]) -> (bool, String) {
        let source = CString::new(source).unwrap();
        let options: Vec<CString> = options.iter().map(|option| CString::new(*option).unwrap()).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the types are those of nvrtc.h; every buffer lives through its call.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut Program,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int;
            let create = self.library.get::<Create>("nvrtcCreateProgram").unwrap();
            let none = std::ptr::null();
            assert_eq!(create(&mut program, source.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none), 0);
            type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
            let compile = self.library.get::<Compile>("nvrtcCompileProgram").unwrap();
            let is_compiled = compile(program, options.len() as c_int, options.as_ptr()) == 0;
            let mut bytes = 0_usize;
            type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
            assert_eq!(self.library.get::<Size>("nvrtcGetProgramLogSize").unwrap()(program, &mut bytes), 0);
            let mut log = vec![0_u8; bytes];
            type Log = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
            assert_eq!(
                self.library.get::<Log>("nvrtcGetProgramLog").unwrap()(program, log.as_mut_ptr().cast()),
                0
            );
            type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
            assert_eq!(self.library.get::<Destroy>("nvrtcDestroyProgram").unwrap()(&mut program), 0);
            (is_compiled, String::from_utf8_lossy(&log).into_owned())
        }
    }
}

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
    check(&["sm_90"]);
}

#[test]
#[ignore = "long: cargo test -p engine --test ptx -- --ignored --nocapture"]
fn every_architecture_compiles_without_spills() {
    check(&["sm_75", "sm_80", "sm_86", "sm_89", "sm_100"]);
}

fn check(architectures: &[&str]) {
    let Some(nvrtc) = Nvrtc::find() else { return };
    let source = SOURCES.concat();
    for &architecture in architectures {
        let target = format!("--gpu-architecture={architecture}");
        let (is_compiled, log) = nvrtc.compile(&source, &["--std=c++17", &target, "--ptxas-options=-v"]);
        assert!(is_compiled, "{architecture}: {log}");
        let kernels = report(&log);
        assert!(kernels.len() > 85, "{architecture}: {} kernels", kernels.len());
        // Prefill of heads of 256 holds 128 sums a thread: a few numbers that its loop seldom needs may lie in memory.
        let may = |name: &str| match name {
            "attn_prefill_bf16_256" | "attn_prefill_scan_bf16_256" => 64,
            _ if architecture == "sm_90" => 0,
            _ if name.starts_with("attn_prefill") && name.ends_with("_256") => 64,
            _ => 0,
        };
        let spilt: Vec<_> = kernels.iter().filter(|(name, _, stack)| *stack > may(name)).collect();
        // Shuffles instead of tensor cores need more registers: a correct way there, not the fast one.
        assert!(spilt.is_empty() || architecture == "sm_75", "{architecture} spills: {spilt:?}");
        println!("{architecture}: {} kernels, {} spill", kernels.len(), spilt.len());
    }
}

#[test]
fn the_report_is_read() {
    let log = "ptxas info    : Compiling entry function 'add_norm' for 'sm_90'\n\
               ptxas info    : Function properties for add_norm\n\
               \x20   16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n";
    assert_eq!(report(log), [("add_norm".to_owned(), 8, 16)]);
}
