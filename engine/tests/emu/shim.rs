//! Compiles the kernels with a C++ compiler and launches them as the CUDA driver would.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use engine::cuda::cases::{Arg, Runner};
use engine::cuda::kernel_names;
use libloading::{Library, Symbol};

#[path = "../common/compiler.rs"]
mod compiler;

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

fn compile(flags: &[&str]) -> Option<Shim> {
    let header = include_str!("../../kernels/emu/shim.h");
    let entries: String = kernel_names().iter().map(|name| format!("EMU_ENTRY({name})\n")).collect();
    let text = format!("{header}\n{}\n{entries}", SOURCES.concat());
    let mut hasher = DefaultHasher::new();
    (&text, flags).hash(&mut hasher);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let stem = format!("emu-{:016x}", hasher.finish());
    let library = folder.join(format!("{stem}.so"));
    if !library.exists() {
        let compiler = compiler::find(&folder)?;
        let process = std::process::id();
        let source = folder.join(format!("{stem}-{process}.cpp"));
        let object = folder.join(format!("{stem}-{process}.so"));
        std::fs::write(&source, text).unwrap();
        let run = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off"])
            .args(flags)
            .arg("-o")
            .args([&object, &source])
            .output()
            .expect("the compiler has just run");
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
    SHIM.get_or_init(|| compile(&[])).as_ref()
}

/// The kernels as they are on sm_75, whose tensor cores take smaller matrices and no bf16.
pub fn turing() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile(&["-DKVLAB_EMU_TURING"])).as_ref()
}

/// Where kernels run: a library, and the names of those that ran.
pub struct OnShim {
    shim: &'static Shim,
    pub launched: RefCell<BTreeSet<String>>,
}

impl OnShim {
    /// Nothing has run yet.
    pub fn new(shim: &'static Shim) -> OnShim {
        OnShim { shim, launched: RefCell::default() }
    }
}

/// The word that the kernel is given; arrays of addresses live in `arrays`.
fn word(arg: Arg, arrays: &mut Vec<Vec<u64>>) -> u64 {
    match arg {
        Arg::Word(word) => word,
        Arg::Read(bytes) => bytes.as_ptr() as u64,
        Arg::Write(bytes) => bytes.as_mut_ptr() as u64,
        Arg::Addresses(args) => {
            let array: Vec<u64> = args.into_iter().map(|arg| word(arg, arrays)).collect();
            arrays.push(array);
            arrays[arrays.len() - 1].as_ptr() as u64
        }
    }
}

impl Runner for OnShim {
    fn run(&self, schedule: u32, name: &str, grid: [u32; 3], threads: u32, args: Vec<Arg<'_>>) {
        let mut arrays = Vec::new();
        let mut words: Vec<u64> = args.into_iter().map(|arg| word(arg, &mut arrays)).collect();
        let mut pointers: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        // SAFETY: every entry has this type; the shim unpacks as many arguments as the kernel has, and cases pass
        // buffers that live through the call.
        let trouble = unsafe {
            let entry: Symbol<Entry> = self.shim.0.get(format!("launch_{name}")).unwrap();
            entry(grid.as_ptr(), threads, pointers.as_mut_ptr(), schedule)
        };
        if !trouble.is_null() {
            // SAFETY: what is not null is a string of the shim's.
            panic!("{name}: {}", unsafe { CStr::from_ptr(trouble) }.to_string_lossy());
        }
        self.launched.borrow_mut().insert(name.to_owned());
    }
}
