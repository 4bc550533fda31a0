//! Plain data: requests in, served requests out.
//!
//! Readers stream requests from files of several formats, generators make them from a seed,
//! and [`served`] says what became of each. Nothing here knows of caches or clocks.
//!
//! ```
//! use std::io::Cursor;
//! use traces::{GenerateOptions, ReadOptions, Reader, TraceStats, Workload, generate, write_csv};
//!
//! let options = GenerateOptions { requests: 100, seed: 1, rate_per_s: None };
//! let mut csv = Vec::new();
//! write_csv(generate(Workload::Chat, &options)?, &mut csv)?;
//!
//! let reader = Reader::from_read(Cursor::new(csv), "chat.csv", &ReadOptions::default())?;
//! let stats = TraceStats::collect(reader)?;
//! assert_eq!(stats.requests, 100);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bins;
mod chain;
mod error;
pub mod generate;
pub mod quantiles;
pub mod random;
pub mod read;
pub mod request;
pub mod served;
pub mod stats;
pub mod write;

pub use bins::Bins;
pub use error::TraceError;
pub use generate::{GenerateOptions, Generator, Workload, generate};
pub use quantiles::Quantiles;
pub use read::{Format, ReadOptions, Reader, open};
pub use request::{Image, Prefix, Request, When};
pub use served::{Outcome, Served, Slo};
pub use stats::TraceStats;
pub use write::{write_csv, write_csv_file};
