//! Logs of inference servers: what they say about the KV cache, and the requests in them.
//!
//! [`Scan`] reads logs of any size in one pass and bounded memory and gives a [`Report`]: the
//! events of the table [`EVENTS`] with their counts and times, what the log tells of its server,
//! and, if asked, the requests. [`diagnose`] says what the report means; [`explain`] does the same
//! for a few pasted lines. Lines that are not known are ignored, whatever they contain.
//!
//! ```
//! use logs::{Scan, Verdict, diagnose};
//!
//! let mut scan = Scan::new();
//! scan.read(&b"panic: failed to decode batch: could not find a kv cache slot (length: 2560)\n"[..])?;
//! let report = scan.finish();
//! let diagnosis = diagnose(&report);
//! assert_eq!(diagnosis.verdict, Verdict::Crash);
//! assert_eq!(diagnosis.lengths[0].readings[0].to_string(), "2 slots x 1024 window + 512 batch");
//! # Ok::<(), std::io::Error>(())
//! ```

mod clock;
mod diagnosis;
mod events;
mod explain;
mod facts;
mod fields;
mod input;
mod knowledge;
mod length;
mod requests;
mod scan;
mod tally;
mod words;

pub use diagnosis::{Diagnosis, Length, Verdict, diagnose};
pub use events::{EVENTS, Engine, Event, Kind, Level};
pub use explain::{Answer, Explanation, explain};
pub use facts::{Facts, Population, Version};
pub use knowledge::{Advice, Effect, Topic};
pub use length::{Known, Reading, WINDOWS, readings};
pub use requests::{Assume, REQUESTS_MAX, Recovered, RequestSource};
pub use scan::{Report, Scan};
pub use tally::{Moment, Tally};
