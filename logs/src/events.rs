//! The table of events: every log text that is recognised, and what it means.

use crate::knowledge::Topic;

/// Whose text it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// Ollama, any engine below it.
    Ollama,
    /// The engine written in Go that Ollama runs Gemma 3 on, up to 0.24.
    OllamaEngine,
    /// The engine of Ollama that wraps llama.cpp, up to 0.24.
    LlamaRunner,
    /// llama-server of llama.cpp, alone or below Ollama 0.30 and later.
    LlamaServer,
    /// vLLM.
    Vllm,
    /// The memory allocator below all of them.
    Cuda,
}

impl Engine {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Ollama => "Ollama",
            Engine::OllamaEngine => "Ollama engine",
            Engine::LlamaRunner => "Ollama llama runner",
            Engine::LlamaServer => "llama-server",
            Engine::Vllm => "vLLM",
            Engine::Cuda => "CUDA",
        }
    }
}

/// How grave an event is, the gravest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Says how the server is set up.
    Fact,
    /// Requests coming and going.
    Traffic,
    /// Worth knowing, harmless alone.
    Note,
    /// A sign that the cache is short before anything fails.
    Pressure,
    /// Requests were turned away at the door.
    Queue,
    /// A request or the runner failed; the reason stands elsewhere.
    Symptom,
    /// Requests failed.
    Failure,
    /// Device memory ran out.
    Memory,
    /// The runner died.
    Crash,
}

impl Level {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Level::Fact => "fact",
            Level::Traffic => "traffic",
            Level::Note => "note",
            Level::Pressure => "pressure",
            Level::Queue => "queue",
            Level::Symptom => "symptom",
            Level::Failure => "failure",
            Level::Memory => "memory",
            Level::Crash => "crash",
        }
    }
}

/// The kinds of events, in the order of [`EVENTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the table says what each one is")]
pub enum Kind {
    CacheSlot,
    CacheSlotRunner,
    CacheDump,
    ContextExceeded,
    DecodeFailed,
    TooLong,
    OutOfMemory,
    DeviceAllocation,
    RunnerTerminated,
    RunnerGone,
    ConnectionLost,
    Busy,
    Defrag,
    Shift,
    TruncatedPrompt,
    TruncatedMessages,
    RemovalUnsupported,
    UbatchFull,
    DefragFailed,
    Retry,
    NoMemorySlot,
    RequestTooLong,
    Preempted,
    EvictSlot,
    ForkSlot,
    QuantizedWithoutFlash,
    RepeatLimit,
    LoadSlot,
    Access,
    SlotLaunch,
    SlotPrompt,
    SlotRelease,
    PrintTiming,
    PromptEval,
    Eval,
    Version,
    ServerStart,
    LoadRequest,
    LlamaServerStart,
    Offload,
    Model,
    Environment,
    SlotNew,
}

/// One recognised text.
#[derive(Debug)]
pub struct Event {
    /// Which one it is.
    pub kind: Kind,
    /// Its name on the command line and in tables.
    pub name: &'static str,
    /// Texts that a line must contain, any one of them, letter by letter.
    pub texts: &'static [&'static str],
    /// Whose text it is.
    pub engine: Engine,
    /// How grave it is.
    pub level: Level,
    /// What it means, in one sentence.
    pub meaning: &'static str,
    /// What there is to say about it at length; none where `meaning` is all.
    pub topic: Option<Topic>,
}

const fn event(
    kind: Kind,
    name: &'static str,
    engine: Engine,
    level: Level,
    topic: Option<Topic>,
    texts: &'static [&'static str],
    meaning: &'static str,
) -> Event {
    Event { kind, name, texts, engine, level, meaning, topic }
}

/// Every event, the gravest first; `EVENTS[kind as usize]` is the event of a kind.
pub const EVENTS: &[Event] = &[
    event(
        Kind::CacheSlot,
        "cache-slot",
        Engine::OllamaEngine,
        Level::Crash,
        Some(Topic::Window),
        &["could not find a kv cache slot (length:"],
        "The runner died: a batch found no room in a cache of `length` cells.",
    ),
    event(
        Kind::CacheSlotRunner,
        "cache-slot-runner",
        Engine::LlamaRunner,
        Level::Crash,
        Some(Topic::LlamaRunner),
        &["could not find a kv cache slot"],
        "The runner died: a batch found no row of free cells in the one cache of all sequences.",
    ),
    event(
        Kind::CacheDump,
        "cache-dump",
        Engine::OllamaEngine,
        Level::Crash,
        Some(Topic::Window),
        &["unable to find a kv cache slot"],
        "The last words of the cache before the crash, with its window and batch size.",
    ),
    event(
        Kind::ContextExceeded,
        "context-exceeded",
        Engine::LlamaServer,
        Level::Failure,
        Some(Topic::Pool),
        &["Context size has been exceeded"],
        "The shared pool is full at a batch of one token: every generation in flight is aborted with an error 500.",
    ),
    event(
        Kind::DecodeFailed,
        "decode-failed",
        Engine::LlamaServer,
        Level::Failure,
        Some(Topic::Pool),
        &["failed to decode the batch, n_batch = 1"],
        "The shared pool is full at a batch of one token (older wording); every generation in flight is aborted.",
    ),
    event(
        Kind::TooLong,
        "context-too-long",
        Engine::Vllm,
        Level::Failure,
        Some(Topic::TooLong),
        &[
            "is larger than the maximum number of tokens that can be stored in KV cache",
            "which is larger than the available KV cache memory",
        ],
        "The server refuses to start: one request of the longest allowed length would not fit in the cache.",
    ),
    event(
        Kind::OutOfMemory,
        "out-of-memory",
        Engine::Cuda,
        Level::Memory,
        Some(Topic::Memory),
        &["cudaMalloc failed: out of memory", "CUDA error: out of memory", "CUDA out of memory"],
        "The device had no memory left for a buffer; the runner ends or the model does not load.",
    ),
    event(
        Kind::DeviceAllocation,
        "device-allocation",
        Engine::OllamaEngine,
        Level::Memory,
        Some(Topic::Memory),
        &["unable to allocate memory from device"],
        "A device had no memory left for weights, cache or compute graph; the model does not load.",
    ),
    event(
        Kind::RunnerTerminated,
        "runner-terminated",
        Engine::Ollama,
        Level::Symptom,
        Some(Topic::Died),
        &["llama runner process has terminated", "llama runner terminated"],
        "The process that holds the model has ended; the line may say why.",
    ),
    event(
        Kind::RunnerGone,
        "runner-gone",
        Engine::Ollama,
        Level::Symptom,
        Some(Topic::Died),
        &["llama runner process no longer running"],
        "A request that was waiting found the runner dead; it fails like those in flight.",
    ),
    event(
        Kind::ConnectionLost,
        "connection-lost",
        Engine::Ollama,
        Level::Symptom,
        Some(Topic::Died),
        &[
            "unexpected EOF",
            // As it is, quoted once, and quoted once more in JSON.
            "completion\": EOF",
            "completion\\\": EOF",
            "completion\\\\\\\": EOF",
            "wsarecv",
        ],
        "A client lost its answer because the process behind it went away.",
    ),
    event(
        Kind::Busy,
        "server-busy",
        Engine::Ollama,
        Level::Queue,
        Some(Topic::Queue),
        &["maximum pending requests exceeded"],
        "The queue was full and the request was refused with a 503: too many requests, not too little cache.",
    ),
    event(
        Kind::Defrag,
        "defrag",
        Engine::OllamaEngine,
        Level::Pressure,
        Some(Topic::Window),
        &["defragmenting kv cache"],
        "No row of free cells was long enough for a batch, so the whole cache is compacted: a pause, and the last step before the crash.",
    ),
    event(
        Kind::Shift,
        "context-shift",
        Engine::Ollama,
        Level::Pressure,
        Some(Topic::Shift),
        &["context limit hit - shifting"],
        "A sequence filled its context while generating; half of what came after the kept head is dropped.",
    ),
    event(
        Kind::TruncatedPrompt,
        "truncated-prompt",
        Engine::Ollama,
        Level::Pressure,
        Some(Topic::Truncation),
        &["truncating input prompt"],
        "A prompt was longer than num_ctx: its middle was dropped, and the client was not told.",
    ),
    event(
        Kind::TruncatedMessages,
        "truncated-messages",
        Engine::Ollama,
        Level::Pressure,
        Some(Topic::Truncation),
        &["truncating input messages which exceed context length"],
        "A chat was longer than num_ctx: its oldest messages were dropped, and the client was not told.",
    ),
    event(
        Kind::RemovalUnsupported,
        "removal-unsupported",
        Engine::Ollama,
        Level::Pressure,
        Some(Topic::Shift),
        &["kv cache removal unsupported"],
        "The cache cannot shift this sequence, so its cells are given up and all of it is computed again.",
    ),
    event(
        Kind::UbatchFull,
        "ubatch-full",
        Engine::LlamaRunner,
        Level::Pressure,
        Some(Topic::LlamaRunner),
        &["failed to find KV cache slot for ubatch"],
        "A piece of a batch found no row of free cells, even after compaction; what follows is the crash.",
    ),
    event(
        Kind::DefragFailed,
        "defrag-failed",
        Engine::LlamaRunner,
        Level::Pressure,
        Some(Topic::LlamaRunner),
        &["failed to prepare defragmentation"],
        "Compaction was asked for and had nothing to move: the cache is full, not fragmented.",
    ),
    event(
        Kind::Retry,
        "retry-smaller",
        Engine::LlamaServer,
        Level::Pressure,
        Some(Topic::Pool),
        &["failed to find free space in the KV cache, retrying with smaller"],
        "The pool that the slots share had no room for a batch; it is halved and tried again.",
    ),
    event(
        Kind::NoMemorySlot,
        "no-memory-slot",
        Engine::LlamaServer,
        Level::Pressure,
        Some(Topic::Pool),
        &["failed to find a memory slot for batch of size"],
        "The cache refused a batch of this size; the server halves it.",
    ),
    event(
        Kind::RequestTooLong,
        "request-too-long",
        Engine::LlamaServer,
        Level::Pressure,
        Some(Topic::Truncation),
        &["exceeds the available context size"],
        "A request was refused with a 400 because its prompt is longer than the context of a slot.",
    ),
    event(
        Kind::Preempted,
        "preempted",
        Engine::Vllm,
        Level::Pressure,
        Some(Topic::Preemption),
        &["is preempted by PreemptionMode."],
        "A running sequence lost its blocks and will be computed again: no error, but a long pause for one client.",
    ),
    event(
        Kind::EvictSlot,
        "evict-slot",
        Engine::Ollama,
        Level::Note,
        Some(Topic::Multiuser),
        &["evicting cache slot"],
        "OLLAMA_MULTIUSER_CACHE is on: the slot that was idle longest is given to another prompt.",
    ),
    event(
        Kind::ForkSlot,
        "fork-slot",
        Engine::Ollama,
        Level::Note,
        Some(Topic::Multiuser),
        &["forking cache slot"],
        "OLLAMA_MULTIUSER_CACHE is on: a prompt shares the beginning of another slot, whose cells now have two owners.",
    ),
    event(
        Kind::QuantizedWithoutFlash,
        "quantized-without-flash",
        Engine::Ollama,
        Level::Note,
        Some(Topic::Quantized),
        &["quantized kv cache requested but flash attention disabled"],
        "The cache type that was asked for is ignored: the cache is f16 and takes twice or four times the memory.",
    ),
    event(
        Kind::RepeatLimit,
        "repeat-limit",
        Engine::Ollama,
        Level::Note,
        Some(Topic::Repeat),
        &["prediction aborted, token repeat limit reached"],
        "The model said the same token 30 times and was stopped; the client's stream just ends.",
    ),
    event(
        Kind::LoadSlot,
        "load-slot",
        Engine::Ollama,
        Level::Traffic,
        None,
        &["loading cache slot"],
        "A request begins: `prompt` tokens, of which `used` were still in the cache.",
    ),
    event(
        Kind::Access,
        "access",
        Engine::Ollama,
        Level::Traffic,
        None,
        &["[GIN] "],
        "A request was answered; the line has its end, its duration and its status.",
    ),
    event(
        Kind::SlotLaunch,
        "slot-launch",
        Engine::LlamaServer,
        Level::Traffic,
        None,
        &["slot launch_slot_:"],
        "A request begins in a slot.",
    ),
    event(
        Kind::SlotPrompt,
        "slot-prompt",
        Engine::LlamaServer,
        Level::Traffic,
        None,
        &["| new prompt, n_ctx_slot ="],
        "The length of a request's prompt.",
    ),
    event(
        Kind::SlotRelease,
        "slot-release",
        Engine::LlamaServer,
        Level::Traffic,
        None,
        &["| stop processing:"],
        "A slot is done with its request.",
    ),
    event(
        Kind::PrintTiming,
        "slot-timing",
        Engine::LlamaServer,
        Level::Traffic,
        None,
        &["slot print_timing:"],
        "The timings of a request follow.",
    ),
    event(
        Kind::PromptEval,
        "prompt-eval",
        Engine::LlamaServer,
        Level::Traffic,
        None,
        &["prompt eval time"],
        "Time and tokens of a prompt; what was in the cache does not count.",
    ),
    event(
        Kind::Eval,
        "eval",
        Engine::LlamaServer,
        Level::Traffic,
        None,
        &["eval time"],
        "Time and tokens of an answer.",
    ),
    event(
        Kind::Version,
        "version",
        Engine::Ollama,
        Level::Fact,
        None,
        &["(version 0.", "(version 1.", "vLLM API server version", "LLM engine (v"],
        "The version of the server.",
    ),
    event(
        Kind::ServerStart,
        "server-start",
        Engine::Ollama,
        Level::Fact,
        None,
        &["starting llama server", "starting runner"],
        "A runner starts; its command line has the sizes.",
    ),
    event(
        Kind::LoadRequest,
        "load-request",
        Engine::Ollama,
        Level::Fact,
        None,
        &["msg=load request="],
        "A runner is told the sizes (Ollama 0.11 and later).",
    ),
    event(
        Kind::LlamaServerStart,
        "llama-server-start",
        Engine::LlamaServer,
        Level::Fact,
        None,
        &["starting llama-server", "model via llama-server", "llama-server started in"],
        "Ollama 0.30 or later starts llama-server.",
    ),
    event(
        Kind::Offload,
        "offload",
        Engine::Ollama,
        Level::Fact,
        None,
        &["layers.split="],
        "The estimate: layers on each device and the memory they need.",
    ),
    event(
        Kind::Model,
        "model",
        Engine::Ollama,
        Level::Fact,
        None,
        &["num_key_values="],
        "The architecture of the model.",
    ),
    event(
        Kind::Environment,
        "environment",
        Engine::Ollama,
        Level::Fact,
        None,
        &["OLLAMA_NUM_PARALLEL:"],
        "The settings of the server.",
    ),
    event(
        Kind::SlotNew,
        "slot-new",
        Engine::LlamaServer,
        Level::Fact,
        None,
        &["| new slot"],
        "A slot of llama-server with its context.",
    ),
];

impl Kind {
    /// The event of this kind.
    pub fn event(self) -> &'static Event {
        &EVENTS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_its_kinds() {
        for (index, event) in EVENTS.iter().enumerate() {
            assert_eq!(event.kind as usize, index, "{}", event.name);
        }
        assert!(EVENTS.len() <= 64, "a line keeps its events in 64 bits");
    }

    #[test]
    fn names_and_texts_are_unique() {
        for (index, event) in EVENTS.iter().enumerate() {
            for other in &EVENTS[..index] {
                assert_ne!(event.name, other.name);
                assert!(event.texts.iter().all(|text| !other.texts.contains(text)), "{}", event.name);
            }
        }
    }

    #[test]
    fn whatever_is_wrong_has_something_to_say() {
        for event in EVENTS {
            assert_eq!(event.topic.is_some(), event.level >= Level::Note, "{}", event.name);
            assert!(event.meaning.ends_with('.') && !event.meaning.contains('\n'), "{}", event.name);
        }
    }
}
