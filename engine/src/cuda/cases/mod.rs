//! Every kernel against a reference in f64, wherever kernels run: on a device, or on a CPU for tests.
//!
//! A case panics where a kernel computes something else than it should, as a test does.

#![allow(unsafe_code)]

mod attention;
mod cache;
mod device;
mod linear;
mod norm;

use half::bf16;

pub(crate) use device::OnDevice;

/// A place where kernels run.
pub trait Runner {
    /// Runs a kernel over `grid` blocks of so many threads and waits for it. Threads take turns by a
    /// schedule, where the place has a choice; what is written may not depend on it.
    ///
    /// # Panics
    /// If the kernel cannot run.
    fn run(&self, schedule: u32, name: &str, grid: [u32; 3], threads: u32, args: Vec<Arg<'_>>);
}

impl dyn Runner + '_ {
    fn launch(&self, name: &str, grid: [u32; 3], threads: u32, args: Vec<Arg<'_>>) {
        self.run(0, name, grid, threads, args);
    }
}

/// An argument of a kernel.
#[derive(Debug)]
pub enum Arg<'a> {
    /// The bits of a number.
    Word(u64),
    /// The address of what is read.
    Read(&'a [u8]),
    /// The address of what is written.
    Write(&'a mut [u8]),
    /// The address of addresses.
    Addresses(Vec<Arg<'a>>),
}

/// Something that a kernel is asked to do, and what it must give.
#[derive(Clone, Copy)]
pub struct Case {
    /// What is shown, as a sentence in snake case.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&dyn Runner),
}

const fn case(name: &'static str, run: fn(&dyn Runner)) -> Case {
    Case { name, run }
}

/// All cases.
pub const CASES: &[Case] = &[
    case("linear_layers_equal_a_product_in_f64", linear::linear_layers_equal_a_product_in_f64),
    case("a_column_does_not_depend_on_its_neighbours", linear::a_column_does_not_depend_on_its_neighbours),
    case("small_layers_equal_a_product_in_f64", linear::small_layers_equal_a_product_in_f64),
    case("gate_and_up_become_one", linear::gate_and_up_become_one),
    case("plain_layers_equal_a_product_in_f64", linear::plain_layers_equal_a_product_in_f64),
    case("repacked_weights_widen_to_what_they_were", linear::repacked_weights_widen_to_what_they_were),
    case("made_up_weights_are_those_of_the_cpu", linear::made_up_weights_are_those_of_the_cpu),
    case("embeddings_are_scaled_and_normed", norm::embeddings_are_scaled_and_normed),
    case("the_residual_takes_the_sum_of_all_splits", norm::the_residual_takes_the_sum_of_all_splits),
    case("the_most_likely_token_is_the_first_of_equals", norm::the_most_likely_token_is_the_first_of_equals),
    case(
        "q_and_k_are_normed_and_rotated_and_k_and_v_are_stored",
        cache::q_and_k_are_normed_and_rotated_and_k_and_v_are_stored,
    ),
    case("a_shift_turns_k_as_its_new_positions_would", cache::a_shift_turns_k_as_its_new_positions_would),
    case("copies_behave_as_if_one_after_another", cache::copies_behave_as_if_one_after_another),
    case("what_is_swapped_out_comes_back", cache::what_is_swapped_out_comes_back),
    case("quantised_blocks_are_those_of_gguf", cache::quantised_blocks_are_those_of_gguf),
    case(
        "decode_equals_f64_and_placement_changes_no_bit",
        attention::decode_equals_f64_and_placement_changes_no_bit,
    ),
    case("splits_only_change_rounding", attention::splits_only_change_rounding),
    case("a_padding_sequence_writes_nothing", attention::a_padding_sequence_writes_nothing),
    case(
        "prefill_equals_f64_and_placement_changes_no_bit",
        attention::prefill_equals_f64_and_placement_changes_no_bit,
    ),
    case("a_scan_of_all_cells_finds_the_same", attention::a_scan_of_all_cells_finds_the_same),
    case("plain_attention_is_exact", attention::plain_attention_is_exact),
];

/// Numbers whose bytes a kernel may read and write: any bytes are a number.
trait Plain: Copy {}

impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for i32 {}
impl Plain for f32 {}
impl Plain for bf16 {}
impl<T: Plain, const N: usize> Plain for [T; N] {}

/// What is read.
fn p<T: Plain>(data: &[T]) -> Arg<'_> {
    // SAFETY: the slice's own memory, and plain numbers have no padding.
    Arg::Read(unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) })
}

/// What is written.
fn m<T: Plain>(data: &mut [T]) -> Arg<'_> {
    // SAFETY: as above, borrowed as the slice was, and whatever is written is a number.
    Arg::Write(unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) })
}

/// A whole number.
fn u(value: usize) -> Arg<'static> {
    Arg::Word(value as u64)
}

/// A float.
fn f(value: f32) -> Arg<'static> {
    Arg::Word(u64::from(value.to_bits()))
}

/// No address.
const NONE: Arg<'static> = Arg::Word(0);

/// Numbers from a seed.
struct Random(u64);

impl Random {
    /// 64 bits.
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        crate::synthetic::hash(17, self.0)
    }

    /// Below a bound.
    fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Mean 0, variance 1.
    fn unit(&mut self) -> f32 {
        ((self.bits() >> 40) as f32 / 8_388_608.0 - 1.0) * 1.732
    }

    /// Many of them.
    fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }

    /// A random order of `0..count`.
    fn order(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        (1..count).rev().for_each(|i| order.swap(i, self.below(i + 1)));
        order
    }
}

/// Largest difference; infinite where anything is no number.
fn apart(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let one = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs();
    a.iter().zip(b).map(one).fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) })
}

/// The bits of floats, to compare them exactly.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
