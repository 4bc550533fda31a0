//! Machine code of the kernels that comes with the program, so that a computer needs a driver and nothing else.
//!
//! `cargo run --release -p engine --example images` makes the files of `kernels/bin` anew, with the NVRTC named there;
//! `tests/ptx.rs` compares them with the sources. A device takes code for its own architecture, else for an older one of
//! its family (sm_86 and sm_89 take that of sm_80), else the PTX, which its driver compiles: so do devices that came
//! after NVRTC 12.8, whose drivers all know its PTX.

use std::io::Read;

use lzma_rust2::LzmaReader;

use crate::error::EngineError;

/// An image of all kernels.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The architecture, `compute_N` for PTX.
    pub name: &'static str,
    /// Its number.
    pub arch: u32,
    /// Whether it is PTX.
    pub is_ptx: bool,
    packed: &'static [u8],
}

const fn cubin(name: &'static str, arch: u32, packed: &'static [u8]) -> Image {
    Image { name, arch, is_ptx: false, packed }
}

/// All images, of older architectures before newer ones.
pub const IMAGES: [Image; 5] = [
    cubin("sm_75", 75, include_bytes!("../../kernels/bin/sm_75.lzma")),
    cubin("sm_80", 80, include_bytes!("../../kernels/bin/sm_80.lzma")),
    cubin("sm_90", 90, include_bytes!("../../kernels/bin/sm_90.lzma")),
    cubin("sm_100", 100, include_bytes!("../../kernels/bin/sm_100.lzma")),
    Image {
        name: "compute_90",
        arch: 90,
        is_ptx: true,
        packed: include_bytes!("../../kernels/bin/compute_90.lzma"),
    },
];

/// Version of NVRTC that made the images, and the hash of the sources that it made them from.
pub const MADE: &str = include_str!("../../kernels/bin/made.txt");

/// The line of [`MADE`] for sources and a version of NVRTC.
pub fn made(source: &str, (major, minor): (i32, i32)) -> String {
    format!("NVRTC {major}.{minor} of {}\n", blake3::hash(source.as_bytes()).to_hex())
}

impl Image {
    /// The image itself.
    ///
    /// # Errors
    /// A file that is damaged.
    pub fn unpack(&self) -> Result<Vec<u8>, EngineError> {
        let mut image = Vec::new();
        LzmaReader::new_mem_limit(self.packed, u32::MAX, None)
            .and_then(|mut reader| reader.read_to_end(&mut image))
            .map_err(|error| EngineError::Device(format!("the kernels for {}: {error}", self.name)))?;
        Ok(image)
    }

    /// Whether a device of an architecture can run it.
    fn runs_on(&self, arch: u32) -> bool {
        self.arch <= arch && (self.is_ptx || self.arch / 10 == arch / 10)
    }
}

/// The images for an architecture, the best first; none if the sources have changed since they were made.
pub(crate) fn images_for(arch: u32, source: &str) -> Vec<&'static Image> {
    let hash = blake3::hash(source.as_bytes()).to_hex();
    if !MADE.trim_end().ends_with(hash.as_str()) {
        return Vec::new();
    }
    let mut fitting: Vec<&Image> = IMAGES.iter().filter(|image| image.runs_on(arch)).collect();
    fitting.sort_by_key(|image| (image.is_ptx, std::cmp::Reverse(image.arch)));
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::compile::SOURCE;

    #[test]
    fn a_device_gets_its_own_code_or_that_of_its_family_or_ptx() {
        let names = |arch| images_for(arch, SOURCE).iter().map(|image| image.name).collect::<Vec<_>>();
        assert_eq!(names(75), ["sm_75"]);
        assert_eq!(names(80), ["sm_80"]);
        assert_eq!(names(86), ["sm_80"]);
        assert_eq!(names(89), ["sm_80"]);
        assert_eq!(names(90), ["sm_90", "compute_90"]);
        assert_eq!(names(103), ["sm_100", "compute_90"]);
        assert_eq!(names(120), ["compute_90"]);
        assert!(names(70).is_empty());
    }

    #[test]
    fn changed_sources_take_no_image() {
        assert!(images_for(90, "another source").is_empty());
    }

    #[test]
    fn images_unpack_to_machine_code_with_all_kernels() {
        for image in &IMAGES {
            let bytes = image.unpack().expect("it is whole");
            let start: &[u8] = if image.is_ptx { b"//" } else { b"\x7fELF" };
            assert!(bytes.iter().skip_while(|byte| byte.is_ascii_whitespace()).take(start.len()).eq(start));
            let text = String::from_utf8_lossy(&bytes);
            for name in crate::cuda::kernel_names() {
                assert!(text.contains(&name), "{} has no {name}", image.name);
            }
            assert!(!image.is_ptx || bytes.last() == Some(&0), "PTX ends with a zero byte");
        }
    }
}
