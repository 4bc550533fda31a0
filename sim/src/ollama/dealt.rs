//! How llama-server deals layers to GPUs (`--split-mode layer`), which nobody estimates first.
//!
//! Layer `i` of `n`, the output layer being the last of them, goes to the first GPU whose share, summed from the
//! first GPU, lies beyond `i / n`. Shares are the memory that is free on each GPU, or what `--tensor-split` says. All
//! layers are on GPUs; what finds no room there is for the driver to refuse or to move. Source: `load_tensors` of
//! llama.cpp, whose shares are 32-bit floats where these are exact.

use super::estimate::{Demand, Estimate};
use super::place::{Fit, Placement, check};
use super::{ModelFile, OllamaError, Options};

/// By what layers are dealt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shares {
    /// The memory that is free on each GPU.
    Free,
    /// A number for each GPU that the server sees (`--tensor-split`).
    Given(Vec<u32>),
}

/// Layers of each GPU, of `layers` in all.
///
/// ```
/// // 62 layers and the output layer of a 27b model on two GPUs, three to one.
/// assert_eq!(sim::ollama::dealt::deal(63, &[3, 1]), [48, 15]);
/// ```
pub fn deal(layers: u32, shares: &[u64]) -> Vec<u32> {
    let total: u128 = shares.iter().map(|share| u128::from(*share)).sum();
    let mut sum = 0;
    let mut before = 0;
    let count = |share: &u64| {
        sum += u128::from(*share);
        // Layers below the end of this share: `i / layers < sum / total`.
        let end = (sum * u128::from(layers)).div_ceil(total.max(1)) as u32;
        let own = end - before;
        before = end;
        own
    };
    shares.iter().map(count).collect()
}

/// Where the layers go on devices with `free` bytes each.
///
/// # Errors
///
/// Those of [`place`](super::place()), and `Shares` where not every device has a share or all are zero.
pub(super) fn dealt(
    file: &ModelFile,
    free: &[u64],
    options: &Options,
    shares: &Shares,
) -> Result<Placement, OllamaError> {
    check(options)?;
    let shares: Vec<u64> = match shares {
        Shares::Free => free.to_vec(),
        Shares::Given(given) => given.iter().map(|share| u64::from(*share)).collect(),
    };
    if shares.len() != free.len() || shares.iter().all(|share| *share == 0) {
        return Err(OllamaError::Shares { shares: shares.len(), devices: free.len() });
    }
    let parallel = options.num_parallel.max(1);
    let demand = Demand::new(file, options.num_ctx, options.num_batch, parallel, options.kv_in_effect());
    let layers = deal(file.blocks.len() as u32 + 1, &shares);
    let bytes = vec![0; layers.len()];
    let estimate = Estimate { layers, bytes, graph_bytes: 0, vram_bytes: 0, total_bytes: 0, is_full: true };
    Ok(Placement { devices: (0..free.len()).collect(), parallel, fit: Fit::Dealt, demand, estimate })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_layer_goes_to_the_first_whose_share_lies_beyond_it(
            layers in 1_u32..200, shares in prop::collection::vec(0_u64..1 << 40, 1..6)
        ) {
            prop_assume!(shares.iter().any(|share| *share > 0));
            let mut expected = vec![0; shares.len()];
            let total: u128 = shares.iter().map(|share| u128::from(*share)).sum();
            for layer in 0..layers {
                let mut sum = 0;
                let beyond = |share: &u64| {
                    sum += u128::from(*share);
                    sum * u128::from(layers) > u128::from(layer) * total
                };
                expected[shares.iter().position(beyond).unwrap()] += 1;
            }
            prop_assert_eq!(deal(layers, &shares), expected);
        }
    }

    #[test]
    fn who_has_no_share_gets_no_layer() {
        assert_eq!(deal(35, &[1, 1]), [18, 17]);
        assert_eq!(deal(35, &[0, 1, 0]), [0, 35, 0]);
        assert!(deal(35, &[]).is_empty());
    }
}
