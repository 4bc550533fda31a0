//! Fitted parameters of the generators, each with its source and how well it fits.
//!
//! All but `SHOTS_` were fitted on a part of the data and scored on the rest: "KS a / b" is the
//! Kolmogorov-Smirnov distance to the fitted and to the held-out part. Mixtures are sums of
//! log-normal laws (natural logarithm of tokens or seconds). What no data show is marked as an
//! assumption.

use std::ops::RangeInclusive;

use super::laws::{LogNormal, Mixture};

/// Arrivals of Azure's 2023 conversation trace: two Poisson rates per second that take turns.
/// KS of inter-arrivals 0.016 / 0.093. IoD at 1, 10, 60 s: real 1.33, 3.40, 14.6; this 1.21,
/// 3.11, 10.6.
pub(super) const CHAT_RATES_PER_S: [f64; 2] = [5.01, 7.368];
/// Mean seconds for which each of the two rates holds (exponential).
pub(super) const CHAT_DWELL_S: [f64; 2] = [153.4, 94.8];

/// Percentiles 0 to 100 of prompt tokens in Azure's 2023 conversation trace. KS 0.008 / 0.078;
/// mixtures of log-normal laws reach 0.139 only.
pub(super) const AZURE_CHAT_PROMPT: [f64; 101] = [
    2.0, 30.0, 120.0, 165.0, 181.0, 181.0, 194.0, 200.0, 203.0, 209.0, 215.0, 236.01, 302.0, 370.0, 373.0,
    375.0, 377.0, 380.0, 382.0, 385.0, 387.0, 389.0, 391.0, 393.0, 394.0, 395.0, 397.0, 398.0, 399.0, 400.0,
    402.0, 403.0, 404.0, 406.0, 408.0, 410.0, 412.76, 417.0, 420.0, 426.0, 435.0, 459.0, 790.0, 889.0, 936.0,
    967.0, 983.0, 995.0, 1002.0, 1009.0, 1014.0, 1020.0, 1025.0, 1030.0, 1036.0, 1041.0, 1046.0, 1051.0,
    1056.0, 1062.0, 1067.0, 1072.0, 1079.0, 1084.0, 1089.0, 1096.0, 1101.0, 1109.0, 1115.0, 1122.0, 1132.0,
    1140.0, 1151.0, 1164.0, 1180.0, 1200.0, 1232.0, 1291.0, 1313.0, 1315.0, 1320.0, 1363.0, 1520.0, 1726.06,
    1924.44, 2076.35, 2278.26, 2460.17, 2606.08, 2976.95, 4073.0, 4076.0, 4078.0, 4080.0, 4082.0, 4085.0,
    4088.0, 4090.0, 4097.0, 4121.0, 14050.0,
];
/// Percentiles 0 to 100 of output tokens in Azure's 2023 conversation trace. KS 0.006 / 0.171.
pub(super) const AZURE_CHAT_OUTPUT: [f64; 101] = [
    7.0, 16.0, 24.0, 31.0, 36.0, 39.0, 42.0, 45.0, 47.0, 49.0, 50.0, 53.0, 55.0, 57.0, 59.0, 61.0, 64.0,
    66.0, 68.0, 70.0, 72.0, 74.0, 76.0, 78.0, 79.0, 81.0, 82.0, 84.0, 85.0, 86.0, 87.0, 88.0, 89.0, 90.0,
    91.0, 92.0, 93.0, 94.0, 95.0, 96.0, 97.0, 99.0, 100.0, 101.0, 103.0, 104.0, 106.0, 108.0, 110.0, 113.0,
    115.0, 119.0, 123.0, 127.0, 131.0, 135.0, 139.0, 144.0, 149.0, 154.0, 161.0, 163.0, 169.0, 179.0, 183.0,
    196.0, 207.06, 217.0, 239.88, 372.0, 375.0, 379.0, 384.0, 388.0, 390.0, 393.0, 394.0, 395.0, 396.0,
    396.0, 398.0, 399.0, 401.0, 404.0, 407.0, 410.0, 411.0, 414.0, 415.0, 418.0, 421.0, 426.0, 429.0, 430.63,
    440.0, 448.0, 467.0, 506.0, 537.18, 598.0, 1000.0,
];

/// ShareGPT turns per conversation: geometric. KS 0.030 / 0.044.
pub(super) const CHAT_TURNS_P: f64 = 0.189;
/// ShareGPT tokens of the first prompt. KS 0.013 / 0.021.
pub(super) const CHAT_FIRST_PROMPT: Mixture<2> =
    Mixture { weights: [0.4223, 0.5777], mu: [3.3912, 5.0538], sigma: [0.7117, 1.3457] };
/// ShareGPT new user tokens of each later turn. KS 0.018 / 0.027.
pub(super) const CHAT_USER: Mixture<2> =
    Mixture { weights: [0.9121, 0.0879], mu: [3.1519, 6.6639], sigma: [1.127, 0.8284] };
/// ShareGPT output tokens, cut at [`CHAT_OUTPUT_MAX`]. KS 0.022 / 0.043.
pub(super) const CHAT_OUTPUT: Mixture<3> = Mixture {
    weights: [0.2714, 0.5631, 0.1655],
    mu: [4.607, 6.0443, 6.6747],
    sigma: [1.153, 0.3975, 0.1587],
};
/// Longest answer in the filtered ShareGPT file.
pub(super) const CHAT_OUTPUT_MAX: u32 = 1_024;
/// Longest prompt in the filtered ShareGPT file; a conversation ends before it would pass it.
pub(super) const CHAT_PROMPT_MAX: u32 = 8_141;
/// Seconds between an answer and the next turn. Assumption: the turn gaps of Mooncake's
/// conversation trace (KS 0.038), which run from arrival to arrival and so are a little long.
pub(super) const CHAT_WAIT_S: LogNormal = LogNormal { mu: 4.869, sigma: 0.955 };
/// Chance that a first turn shows an image, and that a later turn does. Assumption.
pub(super) const IMAGE_P: (f64, f64) = (0.8, 0.2);
/// Tokens that Gemma 3's chat template puts before what the user sends: the beginning of the text, the
/// marker of the turn, whose it is, and a line break. They count as part of the message.
pub(super) const TURN_HEAD_TOKENS: u32 = 4;
/// Tokens of one image (Gemma 3 in Ollama, with the two markers and the line breaks).
pub(super) const IMAGE_TOKENS: u32 = 260;

/// Tokens of the instruction before a screenshot, the same for all. This and the other `SHOTS_`
/// numbers come, where nothing else is said, from the recorded workload of this incident
/// (ollama#10372: Gemma 3, screenshots beside chat), scaled: a made-up workload in the shape of that
/// report, recorded as it ran through Ollama 0.6.6; what the reporter's machine was sent is not
/// known. It has 24 requests, 18 with a screenshot and 6 of chat, with all lengths at a quarter,
/// which are taken times 4 here. A range goes from the least to the most in it and is taken as
/// uniform, as so few values fit no finer law.
pub(super) const SHOTS_INSTRUCTION: u32 = 28;
/// Tokens after a screenshot: 8 to 36, mean 24 (18 values).
pub(super) const SHOTS_WORDS: RangeInclusive<u32> = 8..=36;
/// Output tokens for a screenshot: 44 to 160, mean 90 (18 values).
pub(super) const SHOTS_OUTPUT: RangeInclusive<u32> = 44..=160;
/// Seconds between an answer and the next screenshot. Recorded are 7 to 49 steps (mean 29) from a
/// request of any kind to the next; times 4, at [`SHOTS_TOKEN_S`]. Assumption: the program waits so
/// long after an answer. So requests come 6.7 s apart, where the record has 4.0 s whatever the
/// server does, which is more than one slot of a 27B can serve there.
pub(super) const SHOTS_WAIT_S: RangeInclusive<f64> = 0.95..=6.66;
/// Screenshots in a run: geometric, mean 30. Assumption.
pub(super) const SHOTS_RUN_P: f64 = 1.0 / 30.0;
/// Mean seconds between two runs of the program (exponential). Assumption.
pub(super) const SHOTS_PAUSE_S: f64 = 45.0;
/// People who chat beside the program. Assumption: two, so that with the program 2.4 sessions are
/// under way on average.
pub(super) const SHOTS_CHATTERS: usize = 2;
/// Tokens with which every conversation begins.
pub(super) const SHOTS_CHAT_SYSTEM: u32 = 60;
/// Tokens of a long text pasted at the start of a conversation: 1,216 to 2,932, mean 2,097 (6
/// values).
pub(super) const SHOTS_PASTE: RangeInclusive<u32> = 1_216..=2_932;
/// Share of conversations that begin with one, chosen so that 5 of 6 chat prompts have 1,536 tokens
/// or more, as recorded. The other conversations begin like ShareGPT's, and all go on like them
/// ([`CHAT_TURNS_P`], [`CHAT_FIRST_PROMPT`], [`CHAT_USER`]), as the record has single prompts only.
pub(super) const SHOTS_PASTE_P: f64 = 0.8;
/// Output tokens of a chat turn: 60 to 232, mean 159 (6 values).
pub(super) const SHOTS_CHAT_OUTPUT: RangeInclusive<u32> = 60..=232;
/// Seconds between an answer and the next turn. Assumption: the deviation of [`CHAT_WAIT_S`], and a
/// median (27 s) at which one request in four is chat, as recorded.
pub(super) const SHOTS_CHAT_WAIT_S: LogNormal = LogNormal { mu: 3.3, sigma: 0.955 };
/// Mean seconds between two conversations of a person (exponential). Assumption.
pub(super) const SHOTS_CHAT_PAUSE_S: f64 = 60.0;
/// Longest chat prompt; a conversation ends before it would pass it. Assumption.
pub(super) const SHOTS_CHAT_PROMPT_MAX: u32 = 16_384;
/// Seconds of a prompt token and of an output token, by which the end of a session is planned: a 27B
/// in 4 bits on a card of 672 GB/s, as the cost model of the specification sheets has it.
pub(super) const SHOTS_TOKEN_S: (f64, f64) = (0.000_8, 0.034);

/// Requests per burst in Azure's 2023 code trace, rounded, at least 1. KS 0.080.
pub(super) const CODE_BURST: LogNormal = LogNormal { mu: 4.755, sigma: 0.895 };
/// Seconds between bursts, beyond [`CODE_PAUSE_MIN_S`]. KS 0.088.
pub(super) const CODE_PAUSE_S: LogNormal = LogNormal { mu: 2.623, sigma: 1.393 };
/// Shortest silence that counts as a pause, and longest gap inside a burst, in seconds.
pub(super) const CODE_PAUSE_MIN_S: f64 = 5.0;
/// Seconds between requests of a burst. KS 0.038; of all inter-arrivals 0.038 / 0.073. IoD at
/// 1, 10, 60 s: real 12.9, 70, 155; this 9.0, 53, 145.
pub(super) const CODE_GAP_S: Mixture<3> = Mixture {
    weights: [0.4864, 0.1845, 0.3291],
    mu: [-6.2384, -2.3253, -1.8767],
    sigma: [2.3297, 0.0399, 0.8433],
};
/// Prompt tokens in Azure's 2023 code trace, cut at [`CODE_PROMPT_MAX`], where 3.7 % of the
/// prompts stand. KS 0.029 / 0.036.
pub(super) const CODE_PROMPT: Mixture<2> =
    Mixture { weights: [0.3173, 0.6827], mu: [5.5805, 7.655], sigma: [1.3164, 0.7216] };
/// Longest prompt in Azure's 2023 code trace.
pub(super) const CODE_PROMPT_MAX: u32 = 7_437;
/// Output tokens in Azure's 2023 code trace. KS 0.030 / 0.055.
pub(super) const CODE_OUTPUT: Mixture<2> =
    Mixture { weights: [0.6667, 0.3333], mu: [2.3668, 3.6039], sigma: [0.3863, 0.8999] };
/// Least and most output tokens in Azure's 2023 code trace.
pub(super) const CODE_OUTPUT_RANGE: (u32, u32) = (6, 1_899);

/// RAGPulse session starts per second, over the day. KS of all inter-arrivals 0.057 / 0.053.
pub(super) const RAG_SESSIONS_PER_S: f64 = 0.003_662_367_724_867_725;
/// Factor on the session starts in each hour of the day, from midnight.
pub(super) const RAG_HOURS: [f64; 24] = [
    1.213, 0.335, 0.24, 0.088, 0.101, 0.114, 0.114, 0.373, 0.752, 1.086, 1.244, 1.345, 1.573, 1.642, 1.604,
    1.768, 1.44, 1.238, 1.333, 1.333, 1.213, 1.389, 1.352, 1.112,
];
/// RAGPulse turns per session: geometric. KS 0.024.
pub(super) const RAG_TURNS_P: f64 = 0.583;
/// RAGPulse seconds from one turn to the next, cut at a day.
pub(super) const RAG_GAP_S: Mixture<2> =
    Mixture { weights: [0.8246, 0.1754], mu: [3.688, 6.029], sigma: [0.744, 2.265] };
/// RAGPulse system prompts, counted in week 0: share, and tokens of the three pieces. The first
/// piece is the same for all requests of its kind, the third never. The second piece is the same
/// for a day (first kind), never (second kind, which goes without passages) or always (third).
pub(super) const RAG_SYSTEM: [(f64, [u32; 3]); 3] =
    [(0.808, [512, 512, 437]), (0.145, [512, 512, 4]), (0.047, [512, 512, 447])];
/// RAGPulse passages in a prompt that is not of the second kind, in week 0: share with none, and
/// share with six; the others have one to seven.
pub(super) const RAG_PASSAGES_P: (f64, f64) = (0.014, 0.952);
/// RAGPulse passages: number of them, exponent and shift of the Zipf-Mandelbrot law by which
/// they are chosen. Rank KS 0.021; on the held-out week the exponent is 1.08.
pub(super) const RAG_PASSAGES: (usize, f64, f64) = (2_580, 1.259, 52.7);
/// RAGPulse tokens of a passage, at most 512. A poor fit: KS 0.12.
pub(super) const RAG_PASSAGE_TOKENS: LogNormal = LogNormal { mu: 5.521, sigma: 0.392 };
/// RAGPulse tokens of a question, at most 178: median 6, p95 16.
pub(super) const RAG_USER: LogNormal = LogNormal { mu: 1.792, sigma: 0.596 };
/// RAGPulse output tokens, at most 2,183. KS 0.016 / 0.171.
pub(super) const RAG_OUTPUT: Mixture<2> =
    Mixture { weights: [0.7867, 0.2133], mu: [5.0943, 6.1305], sigma: [0.5896, 0.3236] };

/// Percentiles 0 to 100 of document tokens in Mooncake's synthetic trace: the first prompts of
/// more than six blocks. KS 0.005 there; a log-normal law is poor (0.148).
pub(super) const DOCUMENT: [f64; 101] = [
    3073.0, 3527.0, 3712.0, 4312.0, 4639.0, 5108.0, 5581.0, 6108.0, 6739.0, 8081.0, 8982.0, 10152.0, 11078.0,
    11843.0, 13084.0, 13421.0, 13695.0, 13805.0, 13939.0, 14134.0, 14242.0, 14346.0, 14449.0, 14582.0,
    14689.0, 14829.0, 14998.0, 15093.0, 15309.0, 15436.0, 15497.0, 15590.0, 15759.0, 15878.0, 15957.0,
    16073.0, 16133.0, 16297.0, 16399.0, 16499.0, 16631.0, 16695.0, 16854.0, 16989.0, 17111.0, 17267.0,
    17395.0, 17633.0, 17767.0, 17878.0, 18022.0, 18199.0, 18370.0, 18597.0, 18836.0, 19062.0, 19167.0,
    19437.0, 19583.0, 19803.0, 20094.0, 20587.0, 20951.0, 21280.0, 21637.0, 22020.0, 22428.0, 22721.0,
    23117.0, 23469.0, 23799.0, 24293.0, 24889.0, 25453.0, 26103.0, 26711.0, 27340.0, 28132.0, 28650.0,
    29626.0, 30467.0, 31124.0, 32033.0, 33004.0, 33949.0, 35386.0, 36003.0, 36639.0, 37128.0, 37634.0,
    38461.0, 39339.0, 41116.0, 42682.0, 44571.0, 48023.0, 50267.0, 53987.0, 56597.0, 66162.0, 191374.0,
];
/// Documents per second, so that requests come at the 3.91 per second of that trace.
pub(super) const DOCUMENTS_PER_S: f64 = DOCUMENT_REQUESTS_PER_S / DOCUMENT_QUESTIONS;
/// Requests per second of Mooncake's synthetic trace.
pub(super) const DOCUMENT_REQUESTS_PER_S: f64 = 3.91;
/// Mean questions per document: one with [`DOCUMENT_ONCE_P`], else 5.46.
pub(super) const DOCUMENT_QUESTIONS: f64 = DOCUMENT_ONCE_P + (1.0 - DOCUMENT_ONCE_P) * 5.46;
/// Share of documents asked once.
pub(super) const DOCUMENT_ONCE_P: f64 = 0.599;
/// Of the others, questions beyond the second: geometric with this chance to stop, 24 in all at
/// most, which gives the mean of 5.46.
pub(super) const DOCUMENT_STOP_P: f64 = 0.22;
/// Most questions about one document.
pub(super) const DOCUMENT_QUESTIONS_MAX: u64 = 24;
/// Shape, and scale in seconds, of the Weibull law of gaps between questions. KS 0.027.
pub(super) const DOCUMENT_GAP: (f64, f64) = (0.788, 93.4);
/// Tokens of a question, at most 1,000. Assumption: a median of 100, which together with the
/// 512-token blocks gives the 0.98 of a prompt that the next one shares there.
pub(super) const DOCUMENT_USER: LogNormal = LogNormal { mu: 4.605, sigma: 1.0 };
/// Output tokens, at most 893. KS 0.051.
pub(super) const DOCUMENT_OUTPUT: Mixture<2> =
    Mixture { weights: [0.555, 0.445], mu: [2.0303, 4.9313], sigma: [0.9346, 0.7933] };

/// Agent session starts per second. Assumption: the data have no absolute times.
pub(super) const AGENT_SESSIONS_PER_S: f64 = 1.0 / 300.0;
/// Claude Code requests per session: shape and scale of a gamma law, at least 3. KS 0.032 /
/// 0.099. The upstream sessions are curated towards high reuse.
pub(super) const AGENT_REQUESTS: (f64, f64) = (1.086, 70.8);
/// Claude Code tokens of the first prompt. KS 0.050 / 0.155.
pub(super) const AGENT_FIRST_PROMPT: Mixture<2> =
    Mixture { weights: [0.5192, 0.4808], mu: [9.8736, 10.9432], sigma: [0.0942, 1.0168] };
/// Median tokens of tools and system prompt (p5 10,400, p95 17,700). Assumption: all sessions
/// share them; the ids of the data are local to a session, so it cannot be seen there.
pub(super) const AGENT_SYSTEM_TOKENS: u32 = 15_400;
/// Claude Code tokens by which the prompt grows from request to request, answer included. KS
/// 0.017 / 0.024.
pub(super) const AGENT_GROWTH: Mixture<2> =
    Mixture { weights: [0.4589, 0.5411], mu: [5.8046, 7.223], sigma: [0.6021, 1.0743] };
/// Claude Code output tokens, at most 18,195. KS 0.010 / 0.104.
pub(super) const AGENT_OUTPUT: Mixture<3> = Mixture {
    weights: [0.3815, 0.341, 0.2775],
    mu: [4.9968, 5.7292, 6.1447],
    sigma: [0.3165, 0.5451, 1.152],
};
/// Chance that a request ends in a tool call, not in an answer to the user.
pub(super) const AGENT_TOOL_P: f64 = 0.884;
/// Seconds of a tool call. KS 0.008 / 0.057.
pub(super) const AGENT_TOOL_S: Mixture<3> = Mixture {
    weights: [0.3629, 0.3688, 0.2684],
    mu: [1.6156, 2.3306, 4.0212],
    sigma: [0.3312, 0.5576, 1.3719],
};
/// Seconds until the user goes on. KS 0.053 / 0.085. Its tail has no mean: cut at 10 hours,
/// the p99.
pub(super) const AGENT_USER_S: LogNormal = LogNormal { mu: 4.958, sigma: 1.963 };
/// Longest wait, in seconds.
pub(super) const AGENT_WAIT_MAX_S: f64 = 36_000.0;
/// Chance per request that the start of the prompt changes while its length does not.
pub(super) const AGENT_BREAK_P: f64 = 0.0191;
/// Chance per request that the context is compacted, once it is beyond
/// [`AGENT_COMPACT_FROM`]; 0.76 % of all requests are.
pub(super) const AGENT_COMPACT_P: f64 = 0.013;
/// Tokens from which contexts are compacted (the p10 of compacted contexts is 92 k).
pub(super) const AGENT_COMPACT_FROM: u32 = 92_000;
/// Tokens after compaction: median 42 k, p25 30 k, p75 90 k. Tools and system prompt stay.
pub(super) const AGENT_COMPACTED: LogNormal = LogNormal { mu: 10.645, sigma: 0.7 };
/// Longest context; a session ends before it would pass it (the data: 894,371).
pub(super) const AGENT_CONTEXT_MAX: u32 = 900_000;
