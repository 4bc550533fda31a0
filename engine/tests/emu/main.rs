//! The CUDA kernels on the CPU, through a C++ shim (`kernels/emu/shim.h`), against references in f64.
//!
//! A C++ compiler (`CXX`, else `c++`) is looked for at run time; without one the tests say so and pass. The cases
//! are those that `kvlab engine selftest` runs on a device.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod shim;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use engine::cuda::cases::{Arg, CASES, Runner};
use engine::cuda::kernel_names;

use shim::{Barriers, OnShim, shim, turing, watched, watched_kernels};

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

#[test]
fn no_kernel_races_or_leaves_its_memory() {
    let Some(shim) = watched() else { return };
    let shim = OnShim::new(shim);
    CASES.iter().for_each(|case| run(&shim, case.name));
}

/// What a case or a kernel panicked with; none where it did not.
fn trouble(run: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    Some(*panic.downcast::<String>().expect("a message"))
}

/// Kernels of `faults.cu`, blocks, threads of a block, and what is said of them.
const FAULTS: &str = "\
right_shared 1 64
right_lanes 1 32
right_blocks 2 32
wrong_shared 1 64 block 0 0 0: a store races with a load: thread 32 and thread 31, shared memory, after 1 barriers
wrong_reuse 1 64 block 0 0 0: a load races with a store: thread 32 and thread 31, shared memory, after 1 barriers
wrong_reuse_of_one 1 64 block 0 0 0: a store races with a load: thread 40 and thread 31, shared memory, after 1 barriers
wrong_lanes 1 32 block 0 0 0: a store races with a load: thread 1 and thread 0, shared memory, after 1 barriers
wrong_shuffle 1 32 block 0 0 0: a load races with a store: thread 0 and thread 1, shared memory, after 1 barriers
wrong_warps 1 64 block 0 0 0: a load races with a store: thread 0 and thread 32, shared memory, after 1 barriers
wrong_equals 1 32 block 0 0 0: two stores race: thread 1 and thread 0, global memory, after 0 barriers
wrong_blocks 2 32 block 1 0 0: a load races with a store: thread 0 and thread 0, global memory, after 0 barriers
wrong_between_blocks 2 32 block 1 0 0: a load races with a store: thread 0 and thread 0, global memory, after 0 barriers
wrong_stale 2 32 block 1 0 0: a load of what no thread has stored: thread 0, shared memory, after 0 barriers
wrong_end 1 32 block 0 0 0: a store out of bounds: thread 31, global memory, after 0 barriers
wrong_begin 1 32 block 0 0 0: a load out of bounds: thread 0, global memory, after 0 barriers
wrong_vector 1 32 block 0 0 0: a store off its alignment: thread 0, global memory, after 0 barriers
wrong_store 1 32 block 0 0 0: a store to what is only read: thread 0, global memory, after 0 barriers
";

#[test]
fn what_is_watched_for_is_found() {
    let text = concat!(include_str!("../../kernels/common.cu"), include_str!("faults.cu"));
    let faults = FAULTS.lines().map(|line| {
        let mut words = line.splitn(4, ' ');
        let [name, blocks, threads] = [(); 3].map(|()| words.next().unwrap());
        (name, blocks.parse().unwrap(), threads.parse().unwrap(), words.next())
    });
    let names: Vec<&str> = faults.clone().map(|(name, ..)| name).collect();
    let Some(shim) = watched_kernels(text, &names) else { return };
    for (name, blocks, threads, expected) in faults {
        // 64 numbers on multiples of 16 bytes, and not right before what is only read.
        let (mut out, input) = (vec![0_u128; 16], [0_u8; 16]);
        // SAFETY: any bytes are numbers and numbers are any bytes.
        let (_, out, _) = unsafe { out.align_to_mut::<u8>() };
        let mut found = |schedule| {
            let args = vec![Arg::Write(&mut *out), Arg::Read(&input)];
            trouble(|| OnShim::new(shim).run(schedule, name, [blocks, 1, 1], threads, args))
        };
        let expected = expected.map(|expected| format!("{name}: {expected}"));
        // Other threads come first in other schedules, and something is wrong in all.
        assert!([1, 7].iter().all(|&schedule| found(schedule).is_some() == expected.is_some()), "{name}");
        assert_eq!(found(0), expected, "{name}");
    }
}

#[test]
#[ignore = "long: cargo test -p engine --test emu -- --ignored --nocapture"]
fn a_barrier_less_is_a_race() {
    let Some(barriers) = Barriers::new() else { return };
    let mut superfluous = Vec::new();
    for (number, line) in barriers.lines.iter().enumerate() {
        let shim = barriers.without(number);
        let found = CASES.iter().find_map(|case| trouble(|| (case.run)(&shim)));
        println!("{line}: {}", found.as_deref().unwrap_or("nothing is found"));
        let is_needed =
            found.is_some_and(|found| found.contains("race") || found.contains("no thread has stored"));
        superfluous.extend((!is_needed).then_some(line));
    }
    assert!(superfluous.is_empty(), "{superfluous:#?}");
}
