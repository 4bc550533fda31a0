//! Compiles the kernels with a C++ compiler and launches them as the CUDA driver would.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use engine::cuda::cases::{Arg, Runner};
use engine::cuda::kernel_names;
use libloading::{Library, Symbol};

#[path = "../common/compiler.rs"]
mod compiler;

const SHIM: &str = include_str!("../../kernels/emu/shim.h");
const WATCH: &str = include_str!("../../kernels/emu/watch.cpp");
const SOURCES: [&str; 6] = [
    include_str!("../../kernels/common.cu"),
    include_str!("../../kernels/linear.cu"),
    include_str!("../../kernels/norm.cu"),
    include_str!("../../kernels/cache.cu"),
    include_str!("../../kernels/attention.cu"),
    include_str!("../../kernels/sample.cu"),
];

/// Kernels, compiled.
pub struct Shim(Library);

type Entry = unsafe extern "C" fn(*const u32, u32, *mut *mut c_void, u32) -> *const c_char;
type Announce = unsafe extern "C" fn(*const Range, usize);

/// Memory that a launch was given, as `watch.cpp` reads it.
#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
    is_writable: u32,
    unused: u32,
}

/// How kernels are compiled.
#[derive(Clone, Copy, Hash, PartialEq, Eq)]
enum Way {
    /// With tensor-core instructions emulated.
    Plain,
    /// As they are on sm_75.
    Turing,
    /// With every access watched.
    Watched,
}

fn compile(way: Way, kernels: &str, names: &[String]) -> Option<Shim> {
    if way == Way::Watched && !cfg!(target_os = "linux") {
        println!("skipped: accesses are watched on Linux only");
        return None;
    }
    let entries: String = names.iter().fold(String::new(), |mut all, name| {
        writeln!(all, "EMU_ENTRY({name})").unwrap();
        all
    });
    let text = format!("{SHIM}\n{kernels}\n{entries}");
    let mut hasher = DefaultHasher::new();
    (&text, WATCH, way).hash(&mut hasher);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let stem = format!("emu-{:016x}", hasher.finish());
    let library = folder.join(format!("{stem}.so"));
    if !library.exists() {
        let compiler = compiler::find(&folder)?;
        let part = folder.join(format!("{stem}-{}", std::process::id()));
        std::fs::create_dir_all(&part).unwrap();
        let run = |args: &[&str]| {
            let common = ["-std=c++17", "-O2", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"];
            let run = Command::new(&compiler).current_dir(&part).args(common).args(args).output();
            let run = run.expect("the compiler has just run");
            assert!(run.status.success(), "{compiler}: {}", String::from_utf8_lossy(&run.stderr));
        };
        std::fs::write(part.join("emu.cpp"), text).unwrap();
        std::fs::write(part.join("watch.cpp"), WATCH).unwrap();
        match way {
            Way::Plain => run(&["-shared", "-o", "emu.so", "emu.cpp"]),
            Way::Turing => run(&["-DKVLAB_EMU_TURING", "-shared", "-o", "emu.so", "emu.cpp"]),
            Way::Watched => {
                run(&["-DKVLAB_EMU_WATCH", "-fsanitize=thread", "-c", "-o", "emu.o", "emu.cpp"]);
                run(&["-c", "-o", "watch.o", "watch.cpp"]);
                run(&["-shared", "-o", "emu.so", "emu.o", "watch.o"]);
            }
        }
        std::fs::rename(part.join("emu.so"), &library).unwrap();
        std::fs::remove_dir_all(&part).unwrap();
    }
    // SAFETY: the library was just made from our own sources and has no initialiser of consequence.
    Some(Shim(unsafe { Library::new(&library) }.unwrap()))
}

/// The kernels with tensor-core instructions emulated; none where there is no compiler.
pub fn shim() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile(Way::Plain, &SOURCES.concat(), &kernel_names())).as_ref()
}

/// The kernels as they are on sm_75, whose tensor cores take smaller matrices and no bf16.
pub fn turing() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile(Way::Turing, &SOURCES.concat(), &kernel_names())).as_ref()
}

/// The kernels with their accesses watched.
pub fn watched() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| compile(Way::Watched, &SOURCES.concat(), &kernel_names())).as_ref()
}

/// Kernels of a test's own, whose accesses are watched.
pub fn watched_kernels(text: &str, names: &[&str]) -> Option<&'static Shim> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    compile(Way::Watched, text, &names).map(|shim| &*Box::leak(Box::new(shim)))
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
        let (text, mut lines) = (SOURCES.concat(), Vec::new());
        let mut kernels = String::from("extern \"C\" unsigned emu_left_out;\nunsigned emu_left_out = ~0u;\n");
        let mut before = "";
        for line in text.lines() {
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
        ranges.push(Range { start, bytes: bytes as u64, is_writable: u32::from(is_writable), unused: 0 });
        start
    };
    match arg {
        Arg::Word(word) => word,
        Arg::Read(bytes) => range(bytes.as_ptr(), bytes.len(), false),
        Arg::Write(bytes) => range(bytes.as_mut_ptr(), bytes.len(), true),
        Arg::Addresses(args) => {
            let array: Vec<u64> = args.into_iter().map(|arg| word(arg, arrays, ranges)).collect();
            let start = array.as_ptr() as u64;
            ranges.push(Range { start, bytes: size_of_val(&*array) as u64, is_writable: 0, unused: 0 });
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
