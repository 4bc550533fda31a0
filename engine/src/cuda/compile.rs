//! Compiles the kernels for a device that no image of [`super::images`] fits, and keeps what came out.
//!
//! NVRTC is looked for at run time: where the loader looks, in the folders that `KVLAB_NVRTC` names
//! (separated by colons; the same folders may hold cuBLASLt), and where CUDA's own installer puts it.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use cudarc::nvrtc::{result, sys};

use crate::error::EngineError;

/// The source of all kernels: one module.
pub const SOURCE: &str = concat!(
    include_str!("../../kernels/common.cu"),
    include_str!("../../kernels/linear.cu"),
    include_str!("../../kernels/norm.cu"),
    include_str!("../../kernels/cache.cu"),
    include_str!("../../kernels/attention.cu"),
    include_str!("../../kernels/sample.cu"),
);

/// Bytes of the hash in front of a kept image.
const HASH: usize = 32;

/// Folders where libraries may lie that the loader does not know.
fn folders() -> Vec<PathBuf> {
    let named = std::env::var_os("KVLAB_NVRTC").unwrap_or_default();
    let usual = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/opt/cuda/lib64"];
    std::env::split_paths(&named).chain(usual.iter().map(PathBuf::from)).collect()
}

/// Loads the libraries that lie in [`folders`], so that a later load by name finds them: the loader
/// knows them by their own names then.
pub(crate) fn preload() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for folder in folders().iter().filter(|folder| folder.is_dir()) {
            // The builtins first: NVRTC looks for them by name at its first compilation.
            for start in ["libnvrtc-builtins.so.", "libnvrtc.so.", "libcublasLt.so."] {
                for path in starting_with(folder, start) {
                    // SAFETY: the libraries' initialisers are those that using them runs anyway.
                    if let Ok(library) = unsafe { libloading::Library::new(&path) } {
                        std::mem::forget(library);
                    }
                }
            }
        }
    });
}

/// Files of a folder whose names start so, newest first.
fn starting_with(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
    };
    let mut paths: Vec<PathBuf> = entries.filter(named).collect();
    paths.sort_unstable_by(|a, b| b.cmp(a));
    paths
}

/// What compiling gave.
pub struct Compiled {
    /// Machine code, or PTX that ends with a zero byte.
    pub image: Vec<u8>,
    /// The compiler's log: registers, spills and shared memory of every kernel.
    pub log: String,
}

/// Version of NVRTC, `(major, minor)`.
///
/// # Errors
/// [`EngineError::Device`] where there is none.
pub fn nvrtc_version() -> Result<(i32, i32), EngineError> {
    preload();
    // SAFETY: it loads a library and calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        return Err(EngineError::Device(
            "no NVRTC library (libnvrtc.so.13 or .12), which compiles kernels for devices that kvlab brings none for: install CUDA's NVRTC \
             (pip install nvidia-cuda-nvrtc) and name its folder in KVLAB_NVRTC"
                .to_owned(),
        ));
    }
    let asked = catch_unwind(AssertUnwindSafe(|| {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both outputs are valid.
        let code = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        (code, major, minor)
    }));
    match asked {
        Ok((sys::nvrtcResult::NVRTC_SUCCESS, major, minor)) => Ok((major, minor)),
        _ => Err(EngineError::Device("the NVRTC library does not tell its version".to_owned())),
    }
}

/// Compiles source for an architecture such as `sm_90`, or to PTX for one such as `compute_90`.
///
/// # Errors
/// [`EngineError::Device`] where there is no NVRTC, or with the compiler's messages.
pub fn compile(source: &str, arch: &str) -> Result<Compiled, EngineError> {
    nvrtc_version()?;
    let failed = |what: &str| EngineError::Device(format!("compiling the kernels for {arch}: {what}"));
    let text = CString::new(source).map_err(|_| failed("the source holds a zero byte"))?;
    let is_ptx = arch.starts_with("compute_");
    let mut options = vec!["--std=c++17".to_owned(), format!("--gpu-architecture={arch}")];
    options.extend((!is_ptx).then(|| "--ptxas-options=-v".to_owned()));
    let compiled = catch_unwind(AssertUnwindSafe(|| {
        let program = result::create_program(&text, Some(c"kvlab.cu")).map_err(|e| e.to_string())?;
        // SAFETY: the program was just made and is destroyed once, after its last use; the buffer
        // has the size that NVRTC asks for.
        unsafe {
            let done = result::compile_program(program, &options);
            let log = result::get_program_log(program).map(words).unwrap_or_default();
            let image = done.map_err(|_| log.clone()).and_then(|()| {
                let (mut size, ok) = (0, sys::nvrtcResult::NVRTC_SUCCESS);
                let sized = if is_ptx {
                    sys::nvrtcGetPTXSize(program, &raw mut size)
                } else {
                    sys::nvrtcGetCUBINSize(program, &raw mut size)
                };
                let mut image = vec![0_u8; size];
                let to = image.as_mut_ptr().cast::<c_char>();
                let got =
                    if is_ptx { sys::nvrtcGetPTX(program, to) } else { sys::nvrtcGetCUBIN(program, to) };
                if sized == ok && got == ok { Ok(image) } else { Err("no machine code".to_owned()) }
            });
            let _ = result::destroy_program(program);
            image.map(|image| Compiled { image, log })
        }
    }));
    match compiled {
        Ok(compiled) => compiled.map_err(|log| failed(&log)),
        Err(_) => Err(failed("the NVRTC library is too old")),
    }
}

fn words(log: Vec<c_char>) -> String {
    let bytes: Vec<u8> = log.into_iter().map(|byte| byte as u8).chain([0]).collect();
    let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    text.to_string_lossy().into_owned()
}

/// Machine code of the kernels for an architecture: kept from an earlier run, or compiled and kept.
///
/// # Errors
/// As [`compile`].
pub(crate) fn kernels(arch: u32) -> Result<(Vec<u8>, (i32, i32)), EngineError> {
    let (major, minor) = nvrtc_version()?;
    let key = blake3::hash(format!("{arch} {major}.{minor}\n{SOURCE}").as_bytes()).to_hex();
    let path = cache_folder().map(|folder| folder.join(format!("{key}.cubin")));
    if let Some(kept) = path.as_deref().and_then(read_kept) {
        return Ok((kept, (major, minor)));
    }
    let cubin = compile(SOURCE, &format!("sm_{arch}"))?.image;
    if let Some(path) = path {
        // A cache that cannot be written costs a second at the next start and nothing else.
        let _ = keep(&path, &cubin);
    }
    Ok((cubin, (major, minor)))
}

/// Where compiled kernels are kept: the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(cache.or_else(home)?.join("kvlab").join("kernels"))
}

/// A kept image whose hash is right.
fn read_kept(path: &Path) -> Option<Vec<u8>> {
    let kept = std::fs::read(path).ok()?;
    let (hash, image) = kept.split_at_checked(HASH)?;
    (blake3::hash(image).as_bytes() == hash).then(|| image.to_vec())
}

/// Writes under another name and renames, so that nobody reads half an image.
fn keep(path: &Path, image: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let bytes = [blake3::hash(image).as_bytes(), image].concat();
    std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_image_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("some/where.cubin");
        keep(&path, b"machine code").expect("written");
        assert_eq!(read_kept(&path).as_deref(), Some(&b"machine code"[..]));
        let mut bytes = std::fs::read(&path).expect("read");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(read_kept(&path), None);
        std::fs::write(&path, b"short").expect("written");
        assert_eq!(read_kept(&path), None);
    }
}
