//! The CUDA kernels on the CPU, through a C++ shim (`kernels/emu/shim.h`), against references in f64.
//!
//! A C++ compiler (`CXX`, else `c++`) is looked for at run time; without one the tests say so and pass. The cases
//! are those that `kvlab engine selftest` runs on a device.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod shim;

use std::time::Instant;

use engine::cuda::cases::CASES;
use engine::cuda::kernel_names;

use shim::{OnShim, shim, turing};

/// Runs a case of this name on a shim.
fn run(shim: &OnShim, name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let start = Instant::now();
    (case.run)(shim);
    println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
}

/// One test per case, and the list of their names.
macro_rules! cases {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                if let Some(shim) = shim() {
                    run(&OnShim::new(shim), stringify!($name));
                }
            }
        )*
    };
}

cases! {
    linear_layers_equal_a_product_in_f64
    a_column_does_not_depend_on_its_neighbours
    small_layers_equal_a_product_in_f64
    gate_and_up_become_one
    plain_layers_equal_a_product_in_f64
    repacked_weights_widen_to_what_they_were
    made_up_weights_are_those_of_the_cpu
    embeddings_are_scaled_and_normed
    the_residual_takes_the_sum_of_all_splits
    the_most_likely_token_is_the_first_of_equals
    q_and_k_are_normed_and_rotated_and_k_and_v_are_stored
    a_shift_turns_k_as_its_new_positions_would
    copies_behave_as_if_one_after_another
    what_is_swapped_out_comes_back
    quantised_blocks_are_those_of_gguf
    decode_equals_f64_and_placement_changes_no_bit
    splits_only_change_rounding
    a_padding_sequence_writes_nothing
    prefill_equals_f64_and_placement_changes_no_bit
    a_scan_of_all_cells_finds_the_same
    plain_attention_is_exact
}

#[test]
fn every_case_is_a_test_and_every_kernel_is_tried() {
    assert_eq!(CASES.iter().map(|case| case.name).collect::<Vec<_>>(), NAMES);
    let Some(shim) = shim() else { return };
    let shim = OnShim::new(shim);
    CASES.iter().for_each(|case| run(&shim, case.name));
    let launched = shim.launched.borrow();
    let untried: Vec<String> = kernel_names().into_iter().filter(|name| !launched.contains(name)).collect();
    assert!(untried.is_empty(), "{untried:?}");
}

#[test]
fn the_smaller_tensor_cores_of_sm_75_compute_the_same() {
    let Some(shim) = turing() else { return };
    let shim = OnShim::new(shim);
    CASES.iter().for_each(|case| run(&shim, case.name));
}
