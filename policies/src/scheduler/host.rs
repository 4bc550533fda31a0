//! Main memory for the cells of preempted sequences: so many bytes, or any number.

/// Main memory that sequences in it share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// Bytes that there are.
    pub bytes: u64,
    /// Bytes of a cell, per layer class.
    pub cell_bytes: Vec<u64>,
}

/// The books of it.
#[derive(Clone, Debug)]
pub(super) struct Host {
    memory: HostMemory,
    used: u64,
}

impl Host {
    pub fn new(memory: HostMemory) -> Self {
        Host { memory, used: 0 }
    }

    /// Takes room for so many cells of each class; none if there is too little.
    pub fn take(&mut self, cells: &[u64]) -> Option<u64> {
        let bytes = cells.iter().zip(&self.memory.cell_bytes).map(|(cells, bytes)| cells * bytes);
        let bytes = bytes.sum::<u64>();
        if bytes > self.memory.bytes - self.used {
            return None;
        }
        self.used += bytes;
        Some(bytes)
    }

    /// Gives back what [`Host::take`] answered.
    pub fn give(&mut self, bytes: u64) {
        self.used -= bytes;
    }
}
