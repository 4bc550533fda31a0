//! What became of a request, and the latencies that follow from it.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It got an answer (which may have been cut at the context limit).
    Completed,
    /// It was lost after it had been accepted (crash, out of cache).
    Failed,
    /// It was refused on arrival: queue full, or longer than could ever be served.
    Rejected,
    /// The run ended before it did.
    Unfinished,
}

/// One request after the run. Times are nanoseconds since the start of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Number of the request in its trace.
    pub id: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was sent.
    pub arrival_ns: u64,
    /// When it first got cells; none if it never did.
    pub admitted_ns: Option<u64>,
    /// When its first token was ready.
    pub first_token_ns: Option<u64>,
    /// When it ended, however it ended; none if the run ended first.
    pub finished_ns: Option<u64>,
    /// Prompt tokens as sent.
    pub prompt_tokens: u32,
    /// Output tokens asked for.
    pub output_tokens_asked: u32,
    /// Output tokens produced.
    pub output_tokens: u32,
    /// Prompt tokens cut off to fit the context.
    pub truncated_tokens: u32,
    /// Context shifts it went through.
    pub shifts: u32,
    /// Tokens dropped by context shifts.
    pub shifted_tokens: u64,
    /// Times it lost its cells and had to wait again.
    pub preemptions: u32,
    /// Prompt tokens that were found in the cache when it was first admitted.
    pub cached_tokens: u32,
    /// Tokens computed a second time after a preemption or a cleared cache.
    pub recomputed_tokens: u64,
    /// Whether its output ended early because the context was full.
    pub stopped_at_limit: bool,
}

impl Served {
    /// Time to first token, waiting included.
    pub fn ttft_ns(&self) -> Option<u64> {
        Some(self.first_token_ns? - self.arrival_ns)
    }

    /// Time per output token after the first; none for answers of one token and unfinished ones.
    pub fn tpot_ns(&self) -> Option<u64> {
        let gaps = u64::from(self.output_tokens.checked_sub(1)?);
        (self.finished_ns? - self.first_token_ns?).checked_div(gaps)
    }

    /// Arrival to the last token.
    pub fn latency_ns(&self) -> Option<u64> {
        Some(self.finished_ns? - self.arrival_ns)
    }
}

/// What a request must keep to count as goodput.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slo {
    /// Longest time to first token.
    pub ttft_ns: u64,
    /// Longest mean time per output token.
    pub tpot_ns: u64,
}

impl Slo {
    /// Whether a request kept it: completed whole (nothing truncated, shifted or cut), in time.
    pub fn kept_by(&self, served: &Served) -> bool {
        served.outcome == Outcome::Completed
            && served.truncated_tokens == 0
            && served.shifts == 0
            && !served.stopped_at_limit
            && served.ttft_ns().is_some_and(|ns| ns <= self.ttft_ns)
            && served.tpot_ns().is_none_or(|ns| ns <= self.tpot_ns)
    }
}
