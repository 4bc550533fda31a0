//! Statistics of a trace, in one pass: a table of numbers, and the series for plots.
//!
//! Memory is bounded: lengths are exact up to a million requests and then binned (see
//! [`Quantiles`]), series have a fixed number of points, and at most [`IDS_MAX`] prefix ids and
//! [`SESSIONS_MAX`] sessions are remembered (16 bytes a slot, about 400 MB at worst). Where there
//! are more, [`TraceStats::is_capped`] says so: sharing is then that of the requests up to the one
//! whose ids no longer fitted, and later sessions are not counted.

mod series;
mod table;

use crate::error::TraceError;
use crate::quantiles::Quantiles;
use crate::request::{Request, When};

pub use series::{LogHistogram, Progress, TIME_BINS_MAX, TimeSeries};
use series::{Moments, Windows};
use table::{Entry, IdTable};

/// Most prefix ids that are remembered.
pub const IDS_MAX: usize = 1 << 23;
/// Most sessions that are remembered.
pub const SESSIONS_MAX: usize = 1 << 22;
/// Widths in seconds of the windows in which the burstiness of arrivals is measured.
pub const WINDOWS_S: [u64; 3] = [1, 10, 60];
/// The quantiles in the table.
const QUANTILES: [(f64, &str); 7] =
    [(0.05, "p5"), (0.25, "p25"), (0.50, "p50"), (0.75, "p75"), (0.90, "p90"), (0.95, "p95"), (0.99, "p99")];

/// One number of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is, like `prompt p95`.
    pub name: String,
    /// The value; none where the trace does not have it, like the gaps of a single request.
    pub value: Option<f64>,
    /// Its unit; empty for plain ratios.
    pub unit: &'static str,
}

/// Token counts of the prompts, or of the answers.
#[derive(Clone, Debug)]
pub struct Lengths {
    /// Quantiles, mean and maximum, in tokens.
    pub quantiles: Quantiles,
    /// The same in bins for a histogram.
    pub histogram: LogHistogram,
    moments: Moments,
}

impl Lengths {
    fn new() -> Self {
        Lengths { quantiles: Quantiles::new(), histogram: LogHistogram::new(), moments: Moments::default() }
    }

    fn record(&mut self, tokens: u32) {
        self.quantiles.record(u64::from(tokens));
        self.histogram.record(u64::from(tokens));
        self.moments.record(f64::from(tokens));
    }

    /// Deviation over mean; none without requests.
    pub fn cv(&self) -> Option<f64> {
        self.moments.cv()
    }

    /// At most 201 points of the distribution function: tokens, and the share of requests with
    /// no more than that.
    pub fn cdf(&self) -> Vec<(u64, f64)> {
        let shares = (0..=200).map(|step| f64::from(step) / 200.0);
        let mut points: Vec<(u64, f64)> =
            shares.filter_map(|share| Some((self.quantiles.quantile(share)?, share))).collect();
        points.reverse();
        points.dedup_by_key(|(tokens, _)| *tokens);
        points.reverse();
        points
    }
}

/// What prompts share when nothing is ever forgotten.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Requests that were looked at: all, unless there were too many ids.
    pub requests: u64,
    /// Prefix blocks in all prompts.
    pub blocks: u64,
    /// Those of them in a leading run that earlier prompts had.
    pub blocks_hit: u64,
    /// Tokens of all prompts.
    pub tokens: u64,
    /// Tokens in the leading runs that earlier prompts had.
    pub tokens_hit: u64,
    /// Share of tokens hit, as it develops from request to request.
    pub progress: Progress,
    /// How many requests ago a block that is hit was last used, in the order of the trace.
    pub reuse_distance: LogHistogram,
    seen: IdTable,
    is_full: bool,
}

/// The statistics of a trace.
#[derive(Clone, Debug)]
pub struct TraceStats {
    /// Requests.
    pub requests: u64,
    /// Those that wait for an answer before them.
    pub closed_loop: u64,
    /// First and last time of arrival, in nanoseconds; none without open-loop requests.
    pub span_ns: Option<(u64, u64)>,
    /// Prompt tokens.
    pub prompt: Lengths,
    /// Output tokens.
    pub output: Lengths,
    /// Open-loop arrivals over time.
    pub arrivals: TimeSeries,
    /// Shared prefixes.
    pub sharing: Sharing,
    /// Requests that belong to a session.
    pub in_session: u64,
    /// Requests with images.
    pub with_images: u64,
    /// Images.
    pub images: u64,
    /// Tokens of images.
    pub image_tokens: u64,
    /// Whether there were more ids or sessions than are remembered.
    pub is_capped: bool,
    gaps: Moments,
    windows: [Windows; 3],
    sessions: IdTable,
    /// Sessions of more than one request.
    sessions_longer: u64,
}

impl Default for TraceStats {
    fn default() -> Self {
        TraceStats {
            requests: 0,
            closed_loop: 0,
            span_ns: None,
            prompt: Lengths::new(),
            output: Lengths::new(),
            arrivals: TimeSeries::new(),
            sharing: Sharing {
                requests: 0,
                blocks: 0,
                blocks_hit: 0,
                tokens: 0,
                tokens_hit: 0,
                progress: Progress::new(),
                reuse_distance: LogHistogram::new(),
                seen: IdTable::new(IDS_MAX),
                is_full: false,
            },
            in_session: 0,
            with_images: 0,
            images: 0,
            image_tokens: 0,
            is_capped: false,
            gaps: Moments::default(),
            windows: WINDOWS_S.map(Windows::new),
            sessions: IdTable::new(SESSIONS_MAX),
            sessions_longer: 0,
        }
    }
}

impl TraceStats {
    /// Statistics of a whole trace.
    ///
    /// # Errors
    ///
    /// The first error among the requests.
    pub fn collect(
        requests: impl IntoIterator<Item = Result<Request, TraceError>>,
    ) -> Result<Self, TraceError> {
        let mut stats = TraceStats::default();
        for request in requests {
            stats.record(&request?);
        }
        Ok(stats)
    }

    /// Adds the next request of the trace.
    pub fn record(&mut self, request: &Request) {
        self.requests += 1;
        self.prompt.record(request.prompt_tokens);
        self.output.record(request.output_tokens);
        match request.when {
            When::At { ns } => self.record_arrival(ns),
            When::After { .. } => self.closed_loop += 1,
        }
        if let Some(session) = request.session {
            self.in_session += 1;
            match self.sessions.entry(session, 1) {
                Entry::Known(turns) => {
                    self.sessions_longer += u64::from(*turns == 1);
                    *turns += 1;
                }
                Entry::New => {}
                Entry::Full => self.is_capped = true,
            }
        }
        self.with_images += u64::from(!request.images.is_empty());
        self.images += request.images.len() as u64;
        self.image_tokens += request.images.iter().map(|image| u64::from(image.tokens)).sum::<u64>();
        self.sharing.record(request);
        self.is_capped |= self.sharing.is_full;
    }

    fn record_arrival(&mut self, ns: u64) {
        if let Some((_, last)) = self.span_ns {
            self.gaps.record(ns.saturating_sub(last) as f64);
        }
        self.span_ns = Some((self.span_ns.map_or(ns, |(first, _)| first), ns));
        self.arrivals.record(ns);
        for windows in &mut self.windows {
            windows.record(ns);
        }
    }

    /// Seconds from the first to the last arrival; none without open-loop requests.
    pub fn span_s(&self) -> Option<f64> {
        self.span_ns.map(|(first, last)| last.saturating_sub(first) as f64 / 1e9)
    }

    /// Arrivals per second: gaps between arrivals over the time they fill. Follow-ups of a closed
    /// loop have no time of arrival and do not count.
    pub fn rate_per_s(&self) -> Option<f64> {
        let gaps = (self.requests - self.closed_loop).checked_sub(1)?;
        self.span_s().filter(|span| *span > 0.0).map(|span| gaps as f64 / span)
    }

    /// Deviation over mean of the gaps between arrivals.
    pub fn gap_cv(&self) -> Option<f64> {
        self.gaps.cv()
    }

    /// Index of dispersion, variance over mean of the arrivals per window, for windows of
    /// [`WINDOWS_S`] seconds. A Poisson process has 1.
    pub fn dispersion(&self) -> [Option<f64>; 3] {
        [0, 1, 2].map(|window: usize| self.windows[window].dispersion())
    }

    /// Sessions.
    pub fn sessions(&self) -> u64 {
        self.sessions.len() as u64
    }

    /// Mean requests per session; none without sessions.
    pub fn turns_mean(&self) -> Option<f64> {
        ratio(self.in_session, self.sessions())
    }

    /// Share of the prompt tokens that are images; none without requests.
    pub fn image_share(&self) -> Option<f64> {
        let tokens = self.prompt.quantiles.sum();
        (tokens > 0).then(|| self.image_tokens as f64 / tokens as f64)
    }

    /// The table, in the order in which it is read.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut add = |name: &str, value: Option<f64>, unit| {
            rows.push(Row { name: name.to_owned(), value, unit });
        };
        add("requests", Some(self.requests as f64), "");
        add("closed loop", ratio(self.closed_loop, self.requests), "");
        add("span", self.span_s(), "s");
        add("arrival rate", self.rate_per_s(), "1/s");
        add("gap CV", self.gap_cv(), "");
        for (width_s, dispersion) in WINDOWS_S.iter().zip(self.dispersion()) {
            add(&format!("dispersion {width_s} s"), dispersion, "");
        }
        for (what, lengths) in [("prompt", &self.prompt), ("output", &self.output)] {
            add(&format!("{what} mean"), lengths.quantiles.mean(), "tokens");
            add(&format!("{what} CV"), lengths.cv(), "");
            for (q, name) in QUANTILES {
                let value = lengths.quantiles.quantile(q).map(|tokens| tokens as f64);
                add(&format!("{what} {name}"), value, "tokens");
            }
            let max = lengths.quantiles.max().map(|tokens| tokens as f64);
            add(&format!("{what} max"), max, "tokens");
        }
        let sessions = self.sessions();
        add("sessions", Some(sessions as f64), "");
        add("turns mean", self.turns_mean(), "");
        add("sessions of one turn", ratio(sessions - self.sessions_longer, sessions), "");
        add("prefix hit, blocks", self.sharing.block_share(), "");
        add("prefix hit, tokens", self.sharing.token_share(), "");
        add("distinct prefix blocks", Some(self.sharing.seen.len() as f64), "");
        add("requests with images", ratio(self.with_images, self.requests), "");
        add("images", Some(self.images as f64), "");
        add("image tokens", self.image_share(), "");
        rows
    }
}

impl Sharing {
    /// Counts the leading run that was seen before, until ids no longer fit.
    fn record(&mut self, request: &Request) {
        if self.is_full {
            return;
        }
        let prefix = &request.prefix;
        let number = self.requests + 1;
        let (mut run, mut is_run) = (0, true);
        for id in prefix.ids.iter() {
            match self.seen.entry(*id, number) {
                Entry::Known(last) => {
                    if is_run {
                        run += 1;
                        self.reuse_distance.record(number - *last);
                    }
                    *last = number;
                }
                Entry::New => is_run = false,
                Entry::Full => {
                    self.is_full = true;
                    return;
                }
            }
        }
        self.requests = number;
        self.blocks += prefix.ids.len() as u64;
        self.blocks_hit += run;
        self.tokens += u64::from(request.prompt_tokens);
        let run_tokens = run * u64::from(prefix.block_tokens);
        self.tokens_hit += run_tokens.min(u64::from(request.prompt_tokens));
        if let Some(share) = self.token_share() {
            self.progress.record(number, share);
        }
    }

    /// Share of the prefix blocks that an endless cache hits; none without any.
    pub fn block_share(&self) -> Option<f64> {
        ratio(self.blocks_hit, self.blocks)
    }

    /// Share of the prompt tokens that an endless cache hits, those of unknown prefixes counted
    /// as missed; none without requests.
    pub fn token_share(&self) -> Option<f64> {
        ratio(self.tokens_hit, self.tokens)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
