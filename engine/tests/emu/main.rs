//! The CUDA kernels on the CPU, through a C++ shim (`kernels/emu/shim.h`), against references in f64.
//!
//! A C++ compiler (`CXX`, else `c++`) is looked for at run time; without one the tests say so and pass.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod attention;
mod cache;
mod linear;
mod norm;
mod shim;
