//! Makes the images of the kernels that come with the program: `kernels/bin/*.lzma`, with the NVRTC at hand.
//!
//! NVRTC 12.8 (`pip install nvidia-cuda-nvrtc-cu12==12.8.93`, its folder in `KVLAB_NVRTC`) is the one to use: the first
//! that knows sm_100, and drivers for CUDA 12 take what it makes.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use engine::cuda::images::{IMAGES, made};
use engine::cuda::{SOURCE, compile, nvrtc_version};
use lzma_rust2::{LzmaOptions, LzmaWriter};

fn main() -> Result<(), Box<dyn Error>> {
    let version = nvrtc_version()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/bin");
    for image in &IMAGES {
        let compiled = compile(SOURCE, image.name)?;
        let (options, len) = (LzmaOptions::with_preset(9), compiled.image.len());
        let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(len as u64))?;
        writer.write_all(&compiled.image)?;
        let packed = writer.finish()?;
        println!("{}: {} bytes, packed {}", image.name, compiled.image.len(), packed.len());
        std::fs::write(folder.join(format!("{}.lzma", image.name)), packed)?;
    }
    std::fs::write(folder.join("made.txt"), made(SOURCE, version))?;
    Ok(())
}
