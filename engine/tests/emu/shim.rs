//! Compiles the kernels with a C++ compiler and launches them as the CUDA driver would.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Write as _;
use std::sync::OnceLock;

use engine::cuda::cases::{Arg, Runner};
use engine::cuda::{SOURCE, kernel_names};
use libloading::{Library, Symbol};

#[path = "../common/compiler.rs"]
mod compiler;

/// Kernels, compiled.
pub struct Shim(Library);

type Entry = unsafe extern "C" fn(*const u32, u32, *mut *mut c_void, u32) -> *const c_char;
type Announce = unsafe extern "C" fn(*const Range, usize);

/// Memory that a launch was given, as `watch.cpp` reads it.
#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
    is_writable: u64,
}

/// How kernels are compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With tensor-core instructions emulated.
    Plain,
    /// As they are on sm_75.
    Turing,
    /// With every access watched.
    Watched,
}

fn compile(way: Way, kernels: &str, names: &[impl AsRef<str>]) -> Option<Shim> {
    let entries = names.iter().map(|name| format!("EMU_ENTRY({})\n", name.as_ref()));
    let source = format!("#include \"shim.h\"\n{kernels}\n{}", entries.collect::<String>());
    let files = [
        ("emu.cpp", &*source),
        ("shim.h", include_str!("../../kernels/emu/shim.h")),
        ("watch.cpp", include_str!("../../kernels/emu/watch.cpp")),
    ];
    let flags: &[_] = if way == Way::Turing { &["-DKVLAB_EMU_TURING"] } else { &[] };
    let is_watched = way == Way::Watched;
    let library = compiler::Library { name: "libemu.so", source: "emu.cpp", flags, is_watched };
    let folder = compiler::build("emu", &files, &[library])?;
    // SAFETY: the library was made from our own sources and has no initialiser of consequence.
    Some(Shim(unsafe { Library::new(folder.join("libemu.so")) }.unwrap()))
}

/// The kernels with tensor-core instructions emulated; none where there is no compiler.
pub fn shim() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile(Way::Plain, SOURCE, &kernel_names())).as_ref()
}

/// The kernels as they are on sm_75, whose tensor cores take smaller matrices and no bf16.
pub fn turing() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile(Way::Turing, SOURCE, &kernel_names())).as_ref()
}

/// The kernels with their accesses watched.
pub fn watched() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile(Way::Watched, SOURCE, &kernel_names())).as_ref()
}

/// Kernels of a test's own, whose accesses are watched.
pub fn watched_kernels(text: &str, names: &[&str]) -> Option<&'static Shim> {
    compile(Way::Watched, text, names).map(|shim| &*Box::leak(Box::new(shim)))
}

/// Where barriers stand in the kernels: the line before each.
pub struct Barriers {
    shim: &'static Shim,
    /// What stands there, and after what.
    pub lines: Vec<String>,
}

impl Barriers {
    /// The kernels, watched, any of whose barriers can be left out.
    pub fn new() -> Option<Barriers> {
        let mut lines = Vec::new();
        let mut kernels = String::from("extern \"C\" unsigned emu_left_out;\nunsigned emu_left_out = ~0u;\n");
        let mut before = "";
        for line in SOURCE.lines() {
            if line.trim() == "__syncthreads();" || line.trim() == "__syncwarp();" {
                write!(kernels, "if (emu_left_out != {}) ", lines.len()).unwrap();
                lines.push(format!("{} after {}", line.trim(), before.trim()));
            }
            before = line;
            writeln!(kernels, "{line}").unwrap();
        }
        let shim = Box::leak(Box::new(compile(Way::Watched, &kernels, &kernel_names())?));
        Some(Barriers { shim, lines })
    }

    /// The kernels without one of them.
    pub fn without(&self, number: usize) -> OnShim {
        // SAFETY: the library has this variable, and no kernel runs.
        unsafe { **self.shim.0.get::<*mut u32>("emu_left_out").unwrap() = number as u32 };
        OnShim::new(self.shim)
    }
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
fn word(arg: Arg, arrays: &mut Vec<Vec<u64>>, ranges: &mut Vec<Range>) -> u64 {
    let mut range = |start: *const u8, bytes: usize, is_writable: bool| {
        let start = start as u64;
        ranges.push(Range { start, bytes: bytes as u64, is_writable: u64::from(is_writable) });
        start
    };
    match arg {
        Arg::Word(word) => word,
        Arg::Read(bytes) => range(bytes.as_ptr(), bytes.len(), false),
        Arg::Write(bytes) => range(bytes.as_mut_ptr(), bytes.len(), true),
        Arg::Addresses(args) => {
            let array: Vec<u64> = args.into_iter().map(|arg| word(arg, arrays, ranges)).collect();
            let start = array.as_ptr() as u64;
            ranges.push(Range { start, bytes: size_of_val(&*array) as u64, is_writable: 0 });
            arrays.push(array);
            start
        }
    }
}

impl Runner for OnShim {
    fn run(&self, schedule: u32, name: &str, grid: [u32; 3], threads: u32, args: Vec<Arg<'_>>) {
        let (mut arrays, mut ranges) = (Vec::new(), Vec::new());
        let mut words: Vec<u64> = args.into_iter().map(|arg| word(arg, &mut arrays, &mut ranges)).collect();
        let mut pointers: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        // SAFETY: every entry has this type; the shim unpacks as many arguments as the kernel has, and cases pass
        // buffers that live through the call.
        let trouble = unsafe {
            if let Ok(announce) = self.shim.0.get::<Announce>("emu_announce") {
                announce(ranges.as_ptr(), ranges.len());
            }
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
