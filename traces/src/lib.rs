//! Plain data: requests in, served requests out.
//!
//! Readers stream requests from files of several formats, generators make them from a seed,
//! and [`served`] says what became of each. Nothing here knows of caches or clocks.

pub mod request;
pub mod served;

pub use request::{Image, Prefix, Request, When};
pub use served::{Outcome, Served, Slo};
