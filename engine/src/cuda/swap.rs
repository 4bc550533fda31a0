//! What went to host memory: chunks of tokens in pinned memory, moved by a stream of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policies::Cell;

use super::driver::{Args, Buffer, Device, Event, Pinned, Stream};
use super::kernels::{Kernels, grid};
use super::slabs::Slabs;
use crate::cpu::check::HostKey as Key;
use crate::error::EngineError;

/// Bytes of a chunk at most; two stand ready on the device.
const CHUNK: usize = 16 << 20;

/// Tokens of one class that left together: records `[buffer][token]`, K buffers before V buffers.
struct Chunk {
    memory: Pinned,
    tokens: usize,
    /// Tokens that are still to be found here.
    left: usize,
}

/// Host memory.
pub(crate) struct Host {
    chunks: BTreeMap<u64, Chunk>,
    next: u64,
    /// Chunk of every token, and which of its tokens it is.
    places: BTreeMap<Key, (u64, usize)>,
    /// Memory of chunks that came back, by size.
    spare: BTreeMap<usize, Vec<Pinned>>,
    leaving: Buffer,
    arriving: Buffer,
    event: Event,
    stream: Stream,
}

/// What moving cells needs of the backend.
pub(crate) struct Mover<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) stream: &'a Stream,
    pub(crate) slabs: &'a Slabs,
}

impl Mover<'_> {
    /// Bytes of a token in all layers of a class.
    fn token_bytes(&self, class: usize) -> usize {
        self.slabs.classes[class].layers * (self.slabs.k_record + self.slabs.v_record)
    }

    /// Most tokens of a chunk.
    pub(crate) fn chunk_tokens(&self, class: usize) -> usize {
        (CHUNK / self.token_bytes(class).max(1)).max(1)
    }

    /// Queues the copy of the records of cells to or from one piece of memory.
    fn pack(&self, name: &str, class: usize, cells: u64, tokens: usize, at: u64) -> Result<(), EngineError> {
        let (buffers, slabs) = (&self.slabs.classes[class], self.slabs);
        let halves = [(0, slabs.k_record, 0), (buffers.layers, slabs.v_record, slabs.k_record)];
        for (first, record, before) in halves {
            let args = Args::new()
                .at(buffers.both.at() + 8 * first as u64)
                .int(record as u32)
                .at(cells)
                .int(tokens as u32)
                .at(at + (buffers.layers * before * tokens) as u64);
            self.kernels.launch(self.stream, name, grid([tokens, buffers.layers, 1], 64), args)?;
        }
        Ok(())
    }
}

impl Host {
    /// Nothing is there yet.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Host, EngineError> {
        Ok(Host {
            chunks: BTreeMap::new(),
            next: 0,
            places: BTreeMap::new(),
            spare: BTreeMap::new(),
            leaving: Buffer::new(device, "room for swapping", 0)?,
            arriving: Buffer::new(device, "room for swapping", 0)?,
            event: Event::new(device)?,
            stream: Stream::new(device)?,
        })
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.places.clear();
        while let Some((_, chunk)) = self.chunks.pop_first() {
            self.spare.entry(chunk.memory.bytes()).or_default().push(chunk.memory);
        }
    }

    /// Where every token lies that is there.
    pub(crate) fn places(&self) -> &BTreeMap<Key, (u64, usize)> {
        &self.places
    }

    /// Forgets what is left of classes of requests.
    pub(crate) fn forget(&mut self, whose: &BTreeSet<(u8, u64)>) {
        for &(class, request) in whose {
            let left = self.places.range((class, request, 0)..=(class, request, u32::MAX));
            let left: Vec<Key> = left.map(|(&key, _)| key).collect();
            left.into_iter().for_each(|key| self.take(key));
        }
    }

    /// Where a token lies.
    pub(crate) fn find(&self, key: Key) -> Option<(u64, usize)> {
        self.places.get(&key).copied()
    }

    /// Takes a token out.
    fn take(&mut self, key: Key) {
        let Some((id, _)) = self.places.remove(&key) else { return };
        let chunk = self.chunks.get_mut(&id).expect("a place is in a chunk");
        chunk.left -= 1;
        if chunk.left == 0 {
            let chunk = self.chunks.remove(&id).expect("it was just there");
            self.spare.entry(chunk.memory.bytes()).or_default().push(chunk.memory);
        }
    }

    /// Memory of at least so many bytes, used before if possible.
    fn memory(&mut self, device: &Arc<Device>, bytes: usize) -> Result<Pinned, EngineError> {
        let bytes = bytes.next_power_of_two();
        match self.spare.get_mut(&bytes).and_then(Vec::pop) {
            Some(memory) => Ok(memory),
            None => Pinned::new(device, bytes),
        }
    }

    /// Queues the way out of tokens of a class; `cells` is their cells' address on the device.
    pub(crate) fn put(
        &mut self,
        mover: &Mover,
        class: u8,
        keys: &[Key],
        cells: u64,
    ) -> Result<(), EngineError> {
        let device = mover.stream.device.clone();
        let tokens = keys.len();
        let bytes = tokens * mover.token_bytes(usize::from(class));
        let memory = self.memory(&device, bytes)?;
        if self.leaving.bytes() < bytes {
            self.stream.synchronize()?;
            mover.stream.synchronize()?;
            self.leaving = Buffer::new(&device, "room for swapping", bytes.max(CHUNK))?;
        }
        // What left before must be gone before its room is used again.
        mover.stream.wait_for(&self.stream, &self.event)?;
        mover.pack("cells_gather", usize::from(class), cells, tokens, self.leaving.at())?;
        self.stream.wait_for(mover.stream, &self.event)?;
        self.stream.download(&memory, 0, &self.leaving, 0, bytes)?;
        self.chunks.insert(self.next, Chunk { memory, tokens, left: tokens });
        for (place, &key) in keys.iter().enumerate() {
            self.take(key);
            self.places.insert(key, (self.next, place));
        }
        self.next += 1;
        Ok(())
    }

    /// Queues the way back of tokens of one chunk, which stay here until they are forgotten; `cells` is the
    /// address of a cell for every token of the chunk, a spare one for those that are not wanted.
    pub(crate) fn get(&mut self, mover: &Mover, class: u8, id: u64, cells: u64) -> Result<(), EngineError> {
        let chunk = &self.chunks[&id];
        let bytes = chunk.tokens * mover.token_bytes(usize::from(class));
        if self.arriving.bytes() < bytes {
            self.stream.synchronize()?;
            mover.stream.synchronize()?;
            self.arriving = Buffer::new(&mover.stream.device, "room for swapping", bytes.max(CHUNK))?;
        }
        self.stream.wait_for(mover.stream, &self.event)?;
        self.stream.upload(&self.arriving, 0, &chunk.memory, 0, bytes)?;
        mover.stream.wait_for(&self.stream, &self.event)?;
        mover.pack("cells_scatter", usize::from(class), cells, chunk.tokens, self.arriving.at())
    }

    /// The cells of a chunk's tokens, `spare` for those whose place has none.
    pub(crate) fn cells(&self, id: u64, places: &BTreeMap<usize, Cell>, spare: Cell) -> Vec<Cell> {
        (0..self.chunks[&id].tokens).map(|place| places.get(&place).copied().unwrap_or(spare)).collect()
    }
}
