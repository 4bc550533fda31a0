//! `length: N` of the panic, read as slots x window + batch.
//!
//! The window cache of the Ollama engine has `roundup(slots * window + batch, pad)` cells, pad 32, or
//! 256 with flash attention, where a slot's context is at least the window; otherwise, and for the
//! cache of the global layers, `roundup(slots * context, pad)`.

use std::fmt;

/// Windows of the models that run on this engine: Gemma 3 from 4b on, and 1b.
pub const WINDOWS: [u32; 2] = [1024, 512];

/// Paddings of the number of cells, without and with flash attention.
const PADS: [u32; 2] = [32, 256];

/// Batch sizes that people set, the default first.
const BATCHES: [u32; 9] = [512, 256, 1024, 128, 2048, 64, 4096, 32, 8192];

/// Most slots that are thought likely.
const SLOTS_MAX: u32 = 64;

/// Most readings given.
const READINGS_MAX: usize = 6;

/// What the log tells of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Slots (`--parallel`).
    pub parallel: Option<u32>,
    /// Tokens of a batch (`--batch-size`).
    pub batch: Option<u32>,
    /// Window of the model.
    pub window: Option<u32>,
    /// Context of all slots together (`--ctx-size`).
    pub context: Option<u32>,
}

/// One way in which a length comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Slots.
    pub slots: u32,
    /// Cells of each slot: the window, or the context.
    pub cells: u32,
    /// Cells for one batch; none in a cache that is sized by the context.
    pub batch: Option<u32>,
    /// Cells of padding.
    pub padding: u32,
    /// Whether the log itself says so.
    pub is_certain: bool,
}

impl fmt::Display for Reading {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let slots = if self.slots == 1 { "slot" } else { "slots" };
        match self.batch {
            Some(batch) => write!(out, "{} {slots} x {} window + {batch} batch", self.slots, self.cells)?,
            None => write!(out, "{} {slots} x {} context", self.slots, self.cells)?,
        }
        if self.padding > 0 {
            write!(out, " + {} padding", self.padding)?;
        }
        Ok(())
    }
}

impl Reading {
    /// So many prompts in prefill at the same time are enough to fill the window cache, and how
    /// many tokens each must have; none where one slot or another cache cannot be filled so.
    pub fn threshold(&self) -> Option<(u32, u64)> {
        let batch = u64::from(self.batch?);
        let window = u64::from(self.cells);
        if self.slots < 2 || batch == 0 || window == 0 {
            return None;
        }
        // Each prompt in prefill holds window + batch cells while another one is placed.
        let size = u64::from(self.slots) * window + batch + u64::from(self.padding);
        let prompts = size / (window + batch) + 1;
        let prompts = u32::try_from(prompts).ok().filter(|prompts| *prompts <= self.slots)?;
        Some((prompts, (window.div_ceil(batch) + 1) * batch))
    }
}

/// Ways in which a length comes about, the likeliest first. What the log tells is kept to; where it
/// tells everything there is one reading. None at all where nothing fits.
pub fn readings(length: u32, known: &Known) -> Vec<Reading> {
    let mut found = Vec::new();
    let windows = known.window.map_or(WINDOWS.to_vec(), |window| vec![window]);
    let batches = known.batch.map_or(BATCHES.to_vec(), |batch| vec![batch]);
    for &batch in &batches {
        for &window in &windows {
            for slots in known.parallel.map_or(1..=SLOTS_MAX, |slots| slots..=slots) {
                let sum = u64::from(slots) * u64::from(window) + u64::from(batch);
                if let Some(padding) = padding(sum, length) {
                    let is_certain = known.parallel.is_some() && known.batch.is_some();
                    found.push(Reading { slots, cells: window, batch: Some(batch), padding, is_certain });
                }
            }
        }
    }
    if found.is_empty() || !found[0].is_certain {
        found.extend(by_context(length, known));
        // What the log gives in full goes before what only fits.
        found.sort_by_key(|reading| !reading.is_certain);
    }
    if found.is_empty() && known.parallel.is_some() {
        // A batch size that nobody thought of.
        found.extend(any_batch(length, &windows, known));
    }
    if found.first().is_some_and(|reading| reading.is_certain) {
        found.truncate(1);
    }
    found.truncate(READINGS_MAX);
    found
}

/// Cells of padding between what is needed and the length, if one of the paddings explains it.
fn padding(sum: u64, length: u32) -> Option<u32> {
    let fits = PADS.iter().any(|pad| sum.next_multiple_of(u64::from(*pad)) == u64::from(length));
    fits.then(|| u32::try_from(u64::from(length) - sum).expect("padding is below 256"))
}

/// The cache of the global layers, or a context smaller than the window.
fn by_context(length: u32, known: &Known) -> Option<Reading> {
    let (context, slots) = (known.context?, known.parallel?);
    if slots == 0 {
        return None;
    }
    let padding = padding(u64::from(context), length)?;
    Some(Reading { slots, cells: context / slots, batch: None, padding, is_certain: true })
}

fn any_batch(length: u32, windows: &[u32], known: &Known) -> Option<Reading> {
    let slots = known.parallel?;
    windows.iter().find_map(|&window| {
        let batch = length.checked_sub(slots.checked_mul(window)?)?;
        let likely = known.batch.is_none() && (1..=8192).contains(&batch);
        likely.then_some(Reading { slots, cells: window, batch: Some(batch), padding: 0, is_certain: false })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(length: u32, known: &Known) -> Vec<String> {
        readings(length, known).iter().map(Reading::to_string).collect()
    }

    #[test]
    fn the_lengths_of_the_reports_are_read_as_they_were_set() {
        let nothing = Known::default();
        assert_eq!(texts(2560, &nothing)[0], "2 slots x 1024 window + 512 batch");
        assert_eq!(texts(6656, &nothing)[0], "6 slots x 1024 window + 512 batch");
        assert_eq!(texts(4608, &nothing)[0], "4 slots x 1024 window + 512 batch");
        assert_eq!(texts(1536, &nothing)[0], "1 slot x 1024 window + 512 batch");
    }

    #[test]
    fn without_help_other_readings_are_given_too() {
        let list = texts(2560, &Known::default());
        assert!(list.contains(&"4 slots x 512 window + 512 batch".to_owned()), "{list:?}");
        assert!(list.contains(&"3 slots x 512 window + 1024 batch".to_owned()), "{list:?}");
        assert!(readings(2560, &Known::default()).iter().all(|reading| !reading.is_certain));
    }

    #[test]
    fn what_the_log_tells_decides() {
        let known = Known { parallel: Some(4), batch: Some(512), window: Some(512), context: Some(16384) };
        assert_eq!(texts(2560, &known), ["4 slots x 512 window + 512 batch"]);
        assert!(readings(2560, &known)[0].is_certain);
        let known = Known { parallel: Some(3), batch: Some(1024), ..Known::default() };
        assert_eq!(texts(2560, &known), ["3 slots x 512 window + 1024 batch"]);
    }

    #[test]
    fn half_of_what_decides_is_not_enough() {
        let only_batch = Known { batch: Some(512), ..Known::default() };
        assert_eq!(
            texts(2560, &only_batch),
            ["2 slots x 1024 window + 512 batch", "4 slots x 512 window + 512 batch"]
        );
        let only_slots = Known { parallel: Some(2), ..Known::default() };
        for known in [only_batch, only_slots] {
            assert!(readings(2560, &known).iter().all(|reading| !reading.is_certain));
        }
    }

    #[test]
    fn padding_is_seen_without_and_with_flash_attention() {
        let known = Known { parallel: Some(2), batch: Some(500), window: Some(1024), context: None };
        assert_eq!(texts(2560, &known), ["2 slots x 1024 window + 500 batch + 12 padding"]);
        let known = Known { parallel: Some(2), batch: Some(260), window: Some(1024), context: None };
        assert_eq!(texts(2336, &known), ["2 slots x 1024 window + 260 batch + 28 padding"]);
        assert_eq!(texts(2560, &known), ["2 slots x 1024 window + 260 batch + 252 padding"]);
        assert!(texts(2368, &known).is_empty());
    }

    #[test]
    fn a_cache_of_the_size_of_the_context_is_that_of_the_global_layers() {
        let known = Known { parallel: Some(2), batch: Some(512), window: Some(1024), context: Some(8192) };
        assert_eq!(texts(8192, &known), ["2 slots x 4096 context"]);
    }

    #[test]
    fn an_odd_batch_is_found_from_the_slots() {
        let known = Known { parallel: Some(2), ..Known::default() };
        assert_eq!(texts(2752, &known), ["2 slots x 1024 window + 704 batch"]);
    }

    #[test]
    fn nothing_fits_nonsense() {
        for length in [0, 1, 31, 33, 100_000_000, u32::MAX] {
            assert!(texts(length, &Known::default()).is_empty(), "{length}");
        }
    }

    #[test]
    fn thresholds_are_those_of_the_measured_code() {
        let threshold = |slots, cells, batch| {
            Reading { slots, cells, batch: Some(batch), padding: 0, is_certain: true }.threshold()
        };
        assert_eq!(threshold(2, 1024, 512), Some((2, 1536)));
        assert_eq!(threshold(2, 1024, 256), Some((2, 1280)));
        assert_eq!(threshold(2, 1024, 128), Some((2, 1152)));
        assert_eq!(threshold(2, 1024, 1024), Some((2, 2048)));
        assert_eq!(threshold(4, 1024, 512), Some((4, 1536)));
        assert_eq!(threshold(6, 1024, 512), Some((5, 1536)));
        assert_eq!(threshold(1, 1024, 512), None);
    }
}
