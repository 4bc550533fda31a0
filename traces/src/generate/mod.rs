//! Synthetic workloads, drawn from laws fitted to real traces (see `params.rs` for every number).
//!
//! Generators stream: ten million requests take the memory of the sessions under way (RAG and documents keep those of some minutes, so it
//! rises with their rate). The same
//! workload, seed and rate give the same requests on the same machine.
//!
//! | workload | times | sessions | prefixes |
//! | --- | --- | --- | --- |
//! | `azure-chat` | open loop, two Poisson rates | none | unknown |
//! | `chat` | closed loop, starts as above | ShareGPT turns, at most 8,141 tokens | 16 tokens |
//! | `image-chat` | as `chat` | as `chat`, with images of 260 tokens | 16 tokens |
//! | `screenshots` | closed loop, three clients | runs of screenshots, chat of 2 people | 16 tokens |
//! | `code` | open loop, bursts | none | unknown: no data show sharing |
//! | `rag` | open loop, hours of the day | RAGPulse turns | 16 tokens |
//! | `documents` | open loop, Poisson | one per document | 16 tokens |
//! | `agent` | closed loop, Poisson starts | Claude Code loops, to 900 k tokens | 64 tokens |
//! | `seats:N` | open loop, one after another | N conversations that take turns | 16 tokens |
//! | `uniform:IN:OUT` | all at once, or Poisson | none | unknown |
//!
//! The last two follow no data: they are the plain workloads of known results.
//!
//! Open-loop workloads are sorted by arrival. In closed-loop ones a session is written whole:
//! its first request at a time, the others each so long after the answer before.

mod agent;
mod arrivals;
mod chat;
mod documents;
mod laws;
mod merge;
mod params;
mod rag;
mod screenshots;
mod seats;
mod single;
mod uniform;

use std::ops::RangeInclusive;
use std::str::FromStr;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::TraceError;
use crate::read::TOKENS_MAX;
use crate::request::Request;

/// Mean requests per second that can be asked for.
pub const RATES_PER_S: RangeInclusive<f64> = 0.001..=10_000.0;

/// The kinds of workload that can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// Single chat requests like Azure's 2023 conversation trace.
    AzureChat,
    /// Conversations of several turns like ShareGPT, started like Azure's conversations.
    Chat,
    /// Conversations with images.
    ImageChat,
    /// A program that sends screenshots in a loop beside two people who chat, on one machine.
    Screenshots,
    /// Code completion in bursts like Azure's 2023 code trace.
    Code,
    /// Questions with retrieved passages like RAGPulse.
    Rag,
    /// Several questions about each long document like Mooncake's synthetic trace.
    Documents,
    /// Coding agents like Claude Code sessions.
    Agent,
    /// Chat seats that take turns, round after round.
    Seats {
        /// How many.
        seats: u32,
        /// After how many rounds it ends; none for as many as are asked for.
        rounds: Option<u32>,
    },
    /// Single requests of uniformly drawn lengths, each range with both its ends.
    Uniform {
        /// Fewest and most tokens of a prompt.
        prompt: (u32, u32),
        /// Fewest and most tokens of an answer.
        output: (u32, u32),
    },
}

/// Most seats, and most rounds of them.
const SEATS_MAX: u32 = 100_000;

impl Workload {
    /// Every workload; those with numbers once.
    pub const ALL: [Workload; 10] = [
        Workload::AzureChat,
        Workload::Chat,
        Workload::ImageChat,
        Workload::Screenshots,
        Workload::Code,
        Workload::Rag,
        Workload::Documents,
        Workload::Agent,
        Workload::Seats { seats: 4, rounds: None },
        Workload::Uniform { prompt: (64, 1023), output: (200, 200) },
    ];

    /// The name used on the command line.
    pub fn name(self) -> String {
        let range = |(least, most): (u32, u32)| match least == most {
            true => least.to_string(),
            false => format!("{least}-{most}"),
        };
        let name = match self {
            Workload::AzureChat => "azure-chat",
            Workload::Chat => "chat",
            Workload::ImageChat => "image-chat",
            Workload::Screenshots => "screenshots",
            Workload::Code => "code",
            Workload::Rag => "rag",
            Workload::Documents => "documents",
            Workload::Agent => "agent",
            Workload::Seats { seats, rounds: None } => return format!("seats:{seats}"),
            Workload::Seats { seats, rounds: Some(rounds) } => return format!("seats:{seats}:{rounds}"),
            Workload::Uniform { prompt, output } => {
                return format!("uniform:{}:{}", range(prompt), range(output));
            }
        };
        name.to_owned()
    }

    /// One line on what it is.
    pub fn about(self) -> &'static str {
        match self {
            Workload::AzureChat => "single chat requests, as in Azure's conversation trace",
            Workload::Chat => "conversations of several turns, as in ShareGPT (closed loop)",
            Workload::ImageChat => "conversations with images of 260 tokens (closed loop)",
            Workload::Screenshots => "screenshots sent in a loop beside two who chat (closed loop)",
            Workload::Code => "code completion in bursts, as in Azure's code trace",
            Workload::Rag => "questions with retrieved passages, as in RAGPulse",
            Workload::Documents => "several questions about each long document",
            Workload::Agent => "coding agents with growing contexts (closed loop)",
            Workload::Seats { .. } => "long conversations that take turns, round after round",
            Workload::Uniform { .. } => "single requests of uniform lengths, at once or at a rate",
        }
    }

    /// Whether later turns wait for the answer before them.
    pub fn is_closed_loop(self) -> bool {
        matches!(self, Workload::Chat | Workload::ImageChat | Workload::Screenshots | Workload::Agent)
    }
}

impl FromStr for Workload {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let plain = || Workload::ALL.into_iter().find(|workload| workload.name() == text);
        with_numbers(text).or_else(plain).ok_or_else(|| TraceError::Option {
            option: "workload",
            found: text.to_owned(),
            expected: "azure-chat, chat, image-chat, screenshots, code, rag, documents, agent, seats:N, \
                       seats:N:ROUNDS, or uniform:IN:OUT with tokens as 200 or 64-1023",
        })
    }
}

/// `seats:28`, `seats:28:4`, `uniform:64-1023:200`; none for anything else.
fn with_numbers(text: &str) -> Option<Workload> {
    let count = |text: &str| text.parse().ok().filter(|count| (1..=SEATS_MAX).contains(count));
    let range = |text: &str| {
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        let (least, most) = (least.parse().ok()?, most.parse().ok()?);
        (1 <= least && least <= most && most <= TOKENS_MAX).then_some((least, most))
    };
    match *text.split(':').collect::<Vec<_>>() {
        ["seats", seats] => Some(Workload::Seats { seats: count(seats)?, rounds: None }),
        ["seats", seats, rounds] => {
            Some(Workload::Seats { seats: count(seats)?, rounds: Some(count(rounds)?) })
        }
        ["uniform", prompt, output] => {
            Some(Workload::Uniform { prompt: range(prompt)?, output: range(output)? })
        }
        _ => None,
    }
}

/// How much of a workload to generate.
#[derive(Clone, Copy, Debug)]
pub struct GenerateOptions {
    /// Number of requests; a session may be cut off by it. Seats with so many rounds may end before.
    pub requests: u64,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Mean requests per second, in [`RATES_PER_S`]; none for the rate of the data. Closed-loop workloads start
    /// sessions at this rate over the mean requests of a session, so that they send so much when
    /// waits are short against the trace (`screenshots` starts the sessions of each client so much
    /// closer, and they overlap), seats send one request after another at it. Chat and RAG keep the lengths of their busy times; code
    /// is drawn out or pressed together as a whole. RAG begins without follow-ups under
    /// way, so its first minutes have fewer requests.
    pub rate_per_s: Option<f64>,
}

/// A stream of generated requests.
pub struct Generator {
    requests: Box<dyn Iterator<Item = Request> + Send>,
    next_id: u64,
    left: u64,
}

/// Starts to generate a workload.
///
/// # Errors
///
/// [`TraceError::Option`] for a rate outside [`RATES_PER_S`].
pub fn generate(kind: Workload, options: &GenerateOptions) -> Result<Generator, TraceError> {
    if let Some(rate) = options.rate_per_s
        && !RATES_PER_S.contains(&rate)
    {
        return Err(TraceError::Option {
            option: "rate_per_s",
            found: rate.to_string(),
            expected: "0.001 to 10000 requests per second",
        });
    }
    let rng = ChaCha8Rng::seed_from_u64(options.seed);
    let rate = options.rate_per_s;
    let requests: Box<dyn Iterator<Item = Request> + Send> = match kind {
        Workload::AzureChat => Box::new(single::AzureChat::new(rng, rate)),
        Workload::Chat => Box::new(chat::Chat::new(rng, rate, false)),
        Workload::ImageChat => Box::new(chat::Chat::new(rng, rate, true)),
        Workload::Screenshots => Box::new(screenshots::Screenshots::new(rng, rate)),
        Workload::Code => Box::new(single::Code::new(rng, rate)),
        Workload::Rag => Box::new(merge::Merge::new(rag::Rag::new(rng, rate), 0)),
        Workload::Documents => {
            let documents = documents::Documents::new(rng, rate);
            let begin_ns = documents.warm_up_ns();
            Box::new(merge::Merge::new(documents, begin_ns))
        }
        Workload::Agent => Box::new(agent::Agent::new(rng, rate)),
        Workload::Seats { seats, rounds } => Box::new(seats::Seats::new(rng, rate, seats, rounds)),
        Workload::Uniform { prompt, output } => Box::new(uniform::Uniform::new(rng, rate, prompt, output)),
    };
    Ok(Generator { requests, next_id: 0, left: options.requests })
}

impl Iterator for Generator {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        self.left = self.left.checked_sub(1)?;
        let request = self.requests.next()?;
        let id = self.next_id;
        self.next_id += 1;
        Some(Request { id, ..request })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, usize::try_from(self.left).ok())
    }
}
