//! Runs cases on a device: what is read goes there, what is written comes back.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::{Arg, Runner};
use crate::cuda::driver::{Args, Buffer, Stream};
use crate::cuda::kernels::{Gpu, grid, names};
use crate::error::EngineError;

/// A device, and which kernels have run on it.
pub(crate) struct OnDevice<'a> {
    gpu: &'a Gpu,
    launched: RefCell<BTreeSet<String>>,
}

/// The memory of one launch.
#[derive(Default)]
struct Held<'a> {
    buffers: Vec<Buffer>,
    /// What is written, and which buffer holds it.
    back: Vec<(usize, &'a mut [u8])>,
}

impl<'a> Held<'a> {
    fn place(&mut self, gpu: &Gpu, arg: Arg<'a>) -> Result<u64, EngineError> {
        let filled = |bytes: &[u8]| {
            let buffer = Buffer::new(&gpu.device, "a case", bytes.len())?;
            buffer.put(0, bytes)?;
            Ok::<Buffer, EngineError>(buffer)
        };
        let buffer = match arg {
            Arg::Word(word) => return Ok(word),
            Arg::Read(bytes) => filled(bytes)?,
            Arg::Write(bytes) => {
                let buffer = filled(bytes)?;
                self.back.push((self.buffers.len(), bytes));
                buffer
            }
            Arg::Addresses(args) => {
                let places = args.into_iter().map(|arg| self.place(gpu, arg));
                let places = places.collect::<Result<Vec<u64>, _>>()?;
                filled(&places.iter().flat_map(|at| at.to_le_bytes()).collect::<Vec<u8>>())?
            }
        };
        let at = buffer.at();
        self.buffers.push(buffer);
        Ok(at)
    }
}

impl<'a> OnDevice<'a> {
    /// Nothing has run yet.
    pub(crate) fn new(gpu: &'a Gpu) -> OnDevice<'a> {
        OnDevice { gpu, launched: RefCell::default() }
    }

    /// The kernels that have not run yet.
    pub(crate) fn untried(&self) -> Vec<String> {
        let launched = self.launched.borrow();
        names().into_iter().filter(|name| !launched.contains(name)).collect()
    }

    fn try_run(
        &self,
        name: &str,
        blocks: [u32; 3],
        threads: u32,
        args: Vec<Arg<'_>>,
    ) -> Result<(), EngineError> {
        let mut held = Held::default();
        let mut words = Args::new();
        for arg in args {
            words = words.long(held.place(self.gpu, arg)?);
        }
        let shape = grid(blocks.map(|n| n as usize), threads as usize);
        let stream = Stream::new(&self.gpu.device)?;
        self.gpu.kernels.launch(&stream, name, shape, words)?;
        stream.synchronize()?;
        for (index, bytes) in held.back {
            held.buffers[index].get(bytes)?;
        }
        self.launched.borrow_mut().insert(name.to_owned());
        Ok(())
    }
}

impl Runner for OnDevice<'_> {
    fn run(&self, _: u32, name: &str, grid: [u32; 3], threads: u32, args: Vec<Arg<'_>>) {
        self.try_run(name, grid, threads, args).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
