//! What there is to say about each kind of trouble: mechanism, versions, what works and what does not.
//!
//! What is said of the window cache of Ollama was measured on the unmodified code of 0.6.6, or follows
//! from how that code sizes the cache; what is said of llama-server and vLLM follows their
//! documentation and public reports.

/// What a change does to the trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It goes away.
    Cures,
    /// There is less of it.
    Helps,
    /// Nothing changes.
    Nothing,
    /// It may get worse.
    CanBeWorse,
    /// It gets worse.
    Worse,
}

impl Effect {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Effect::Cures => "cures",
            Effect::Helps => "helps",
            Effect::Nothing => "no effect",
            Effect::CanBeWorse => "can be worse",
            Effect::Worse => "worse",
        }
    }

    /// Whether the change is to be recommended.
    pub fn works(self) -> bool {
        self <= Effect::Helps
    }
}

/// A change, and what comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What to change.
    pub change: &'static str,
    /// What that does.
    pub effect: Effect,
    /// Why.
    pub why: &'static str,
}

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The cache of the sliding-window layers is full (Ollama engine).
    Window,
    /// The one cache of Ollama's llama runner is full.
    LlamaRunner,
    /// The pool that the slots of llama-server share is full.
    Pool,
    /// vLLM preempts.
    Preemption,
    /// vLLM cannot hold one longest request.
    TooLong,
    /// Device memory ran out.
    Memory,
    /// The queue is full.
    Queue,
    /// The runner died, the reason stands elsewhere.
    Died,
    /// Prompts are cut.
    Truncation,
    /// Contexts fill up while generating.
    Shift,
    /// The multi-user cache of Ollama is on.
    Multiuser,
    /// The cache type is ignored.
    Quantized,
    /// The model repeats itself.
    Repeat,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Topic; 13] = [
        Topic::Window,
        Topic::LlamaRunner,
        Topic::Pool,
        Topic::Preemption,
        Topic::TooLong,
        Topic::Memory,
        Topic::Queue,
        Topic::Died,
        Topic::Truncation,
        Topic::Shift,
        Topic::Multiuser,
        Topic::Quantized,
        Topic::Repeat,
    ];

    /// The trouble in a few words.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Window => "the cache of the sliding-window layers is full",
            Topic::LlamaRunner => "the cache of the llama runner is full",
            Topic::Pool => "the pool that the slots share is full",
            Topic::Preemption => "sequences are preempted",
            Topic::TooLong => "the cache is smaller than one longest request",
            Topic::Memory => "device memory ran out",
            Topic::Queue => "the queue is full",
            Topic::Died => "the runner died for a reason that stands elsewhere",
            Topic::Truncation => "prompts are longer than the context",
            Topic::Shift => "contexts fill up while generating",
            Topic::Multiuser => "slots are shared between users",
            Topic::Quantized => "the cache type is ignored",
            Topic::Repeat => "the model repeats itself",
        }
    }

    /// How it comes about, in two sentences.
    pub fn mechanism(self) -> &'static str {
        match self {
            Topic::Window => {
                "The sliding-window layers of Gemma 3 have a cache of their own, sized for one window a slot and one \
                 batch, which is enough only if every sequence has been trimmed to its window before the batch is \
                 placed. These versions trim only the sequences in the current batch, so a prompt that waits for its \
                 turn keeps window + batch cells and an idle slot window + 1; when that is too much no compaction \
                 helps, the runner panics, and every request in flight on that model is lost."
            }
            Topic::LlamaRunner => {
                "All sequences share one cache of num_ctx x num_parallel cells, and every piece of a batch needs \
                 neighbouring free cells in it. Since December 2024 a failed search compacts and tries once more, so \
                 the panic means that more tokens are held than the slots should hold: prefixes shared between slots \
                 (OLLAMA_MULTIUSER_CACHE), or a version from before."
            }
            Topic::Pool => {
                "All slots draw on one pool of cells, and where the number of slots was chosen automatically each \
                 slot is promised the whole of it. When the promises fall due together the server halves the batch \
                 until one token is left, and then aborts every generation in flight with \"Context size has been \
                 exceeded\"."
            }
            Topic::Preemption => {
                "When the blocks run out the scheduler takes all of them from the sequence admitted last and computes \
                 it again later, from its first token on. Nothing fails, so it shows only as long pauses of single \
                 requests, in the tail of the latencies."
            }
            Topic::TooLong => {
                "After the weights and the activations the memory left for the cache holds fewer tokens than one \
                 request may have. The second number of the line is the longest context that fits."
            }
            Topic::Memory => {
                "Weights, cache and compute graph of a device together are larger than its free memory. Ollama's \
                 estimate and what the engine really allocates differ: on hosts with unequal GPUs the output layer \
                 and the vision tower land on the last one, and on Windows an allocation beyond the memory of the \
                 card succeeds in system memory and shows as slow steps and a stuttering display instead."
            }
            Topic::Queue => {
                "Requests come faster than they are answered, and the queue of OLLAMA_MAX_QUEUE (512) is full. The \
                 cache has no part in it: what refuses is the door."
            }
            Topic::Died => {
                "The process that holds the model ended, and all its requests were lost; the next one loads the model \
                 again. These lines are the echo of that: the reason is a panic, an assertion or an out-of-memory \
                 line shortly before, or in the system's log where the kernel killed the process."
            }
            Topic::Truncation => {
                "The prompt has more tokens than num_ctx, so the runner keeps its head and its tail and drops the \
                 middle, or the server drops the oldest messages. The answer is computed from what is left, and with \
                 Ollama the client sees a normal 200."
            }
            Topic::Shift => {
                "The sequence reached num_ctx while generating, so half of what follows the kept head is dropped and \
                 the keys of the rest are rotated to their new places. That is a pause for everybody, and an answer \
                 that has forgotten half of its conversation."
            }
            Topic::Multiuser => {
                "With OLLAMA_MULTIUSER_CACHE a prompt goes to the slot that was idle longest, and copies the common \
                 beginning from another slot by giving its cells a second owner. All slots then hold old text at \
                 the same time, which is how plain serial prompts fill the window cache of Gemma 3."
            }
            Topic::Quantized => {
                "A quantised cache needs flash attention, which is off (OLLAMA_FLASH_ATTENTION), or not possible for \
                 this model or device. The server goes on with an f16 cache, which needs about twice the memory of \
                 q8_0 and four times that of q4_0."
            }
            Topic::Repeat => {
                "The runner stops an answer whose last 30 tokens are the same. Often that follows a context shift or a \
                 truncated prompt."
            }
        }
    }

    /// Which versions are concerned.
    pub fn versions(self) -> &'static str {
        match self {
            Topic::Window => {
                "Ollama 0.6.3 to 0.12.3 with Gemma 3 (the sizing came with 0.6.3). 0.12.4 to 0.24: the same engine, \
                 but it trims all sequences; only images with a num_batch below 260 still fail. 0.30 and later: the \
                 engine is llama-server, the message is gone, and a full cache says \"failed to find free space in \
                 the KV cache\"."
            }
            Topic::LlamaRunner => {
                "Ollama up to 0.24 with models that run on llama.cpp (not Gemma 3); frequent before the compaction of \
                 December 2024, rare after it. 0.30 and later: the engine is llama-server and the messages differ."
            }
            Topic::Pool => {
                "llama-server, every version, and Ollama 0.30 and later, which runs it. In Ollama 0.6.3 to 0.12.3 and \
                 0.12.4 to 0.24 the same shortage has other texts (could not find a kv cache slot)."
            }
            Topic::Preemption => {
                "vLLM, every version; since the V1 engine it is counted (vllm:num_preemptions_total) but no longer logged."
            }
            Topic::TooLong => "vLLM, every version.",
            Topic::Memory => {
                "All. Not to be confused with growing memory: Ollama up to 0.6.5 leaks pinned memory at every step, \
                 0.6.6 and 0.6.7 keep every image that was processed (10 MB and more each; fixed in 0.6.8)."
            }
            Topic::Queue => "Ollama, every version with a queue limit.",
            Topic::Died => {
                "Ollama up to 0.24; on Windows the same appears as a wsarecv error. With Gemma 3 on 0.6.3 to 0.12.3 look \
                 for \"could not find a kv cache slot\" first."
            }
            Topic::Truncation => {
                "Ollama, every version (the default num_ctx was 2048 up to 0.6.6); llama-server refuses instead."
            }
            Topic::Shift => {
                "Ollama up to 0.24 (the line needs OLLAMA_DEBUG=1); 0.30 and later run llama-server, where context \
                 shift is off unless asked for."
            }
            Topic::Multiuser => "Ollama up to 0.24.",
            Topic::Quantized => "Ollama, every version with OLLAMA_KV_CACHE_TYPE.",
            Topic::Repeat => "Ollama up to 0.24.",
        }
    }

    /// Changes that work and changes that do not, best first.
    pub fn advice(self) -> &'static [Advice] {
        match self {
            Topic::Window => WINDOW,
            Topic::LlamaRunner => LLAMA_RUNNER,
            Topic::Pool => POOL,
            Topic::Preemption => PREEMPTION,
            Topic::TooLong => TOO_LONG,
            Topic::Memory => MEMORY,
            Topic::Queue => QUEUE,
            Topic::Died => DIED,
            Topic::Truncation => TRUNCATION,
            Topic::Shift => SHIFT,
            Topic::Multiuser => MULTIUSER,
            Topic::Quantized => QUANTIZED,
            Topic::Repeat => REPEAT,
        }
    }
}

const fn advice(change: &'static str, effect: Effect, why: &'static str) -> Advice {
    Advice { change, effect, why }
}

const WINDOW: &[Advice] = &[
    advice(
        "OLLAMA_NUM_PARALLEL=1",
        Effect::Cures,
        "the only sequence is always in the batch, so nobody else holds untrimmed cells; images still need num_batch of at least 260",
    ),
    advice(
        "Ollama 0.12.4 or later",
        Effect::Cures,
        "all sequences are trimmed before a batch is placed; images still need num_batch of at least 260",
    ),
    advice(
        "num_batch 2048 (at num_ctx 4096)",
        Effect::Helps,
        "a full batch beyond the window then needs a prompt of 4096 tokens; costs graph memory, and is no proof",
    ),
    advice(
        "prompts shorter than window + num_batch",
        Effect::Helps,
        "no sequence then holds more than its share",
    ),
    advice(
        "num_ctx 4096 -> 12288",
        Effect::Nothing,
        "the size of this cache does not contain num_ctx; that it seems to help comes from the reload, which empties the cache, or from an automatic num_parallel that falls from 4 to 1",
    ),
    advice("OLLAMA_KV_CACHE_TYPE=q8_0", Effect::Nothing, "cells get smaller, their number stays"),
    advice(
        "hiding the display GPU, no system-memory fallback",
        Effect::Nothing,
        "cures freezes and slow steps, not this: the cache is full of cells, not of bytes",
    ),
    advice(
        "OLLAMA_NUM_PARALLEL 4 -> 2",
        Effect::CanBeWorse,
        "two prompts at once are then enough (measured on images and chat: 1 crash in 30 runs became 8)",
    ),
    advice(
        "num_batch 512 -> 256",
        Effect::Worse,
        "the cache shrinks by as much as the batch, prompts of 1280 tokens are enough instead of 1536, and an image (260 tokens, one batch) fails even alone (8 crashes in 30 runs became 15)",
    ),
    advice(
        "OLLAMA_MULTIUSER_CACHE=1",
        Effect::Worse,
        "plain serial prompts are enough: the second one panics with two slots",
    ),
];

const LLAMA_RUNNER: &[Advice] = &[
    advice("an Ollama of 2025 or later", Effect::Cures, "a failed search compacts the cache and tries again"),
    advice(
        "OLLAMA_MULTIUSER_CACHE unset",
        Effect::Cures,
        "no cell has two owners, and the contents of the slots cannot exceed the cache",
    ),
    advice("OLLAMA_NUM_PARALLEL=1", Effect::Cures, "one sequence cannot hold more than the cache"),
    advice("larger num_ctx", Effect::Helps, "here the cache does grow with num_ctx, and so does its memory"),
    advice("smaller num_batch", Effect::Helps, "a shorter row of free cells is enough; prompts take longer"),
];

const POOL: &[Advice] = &[
    advice(
        "-np N, said explicitly",
        Effect::Cures,
        "each slot then gets -c / N cells of its own and a prompt that is too long is refused alone, with a 400",
    ),
    advice(
        "--kv-unified-per-slot N",
        Effect::Cures,
        "limits what a slot may take from the pool (recent versions)",
    ),
    advice("larger -c", Effect::Helps, "more cells for the same slots, if the memory is there"),
    advice("-ctk q8_0 -ctv q8_0", Effect::Helps, "half the bytes a cell, so twice the -c in the same memory"),
    advice("fewer requests at once", Effect::Helps, "fewer promises fall due together"),
    advice(
        "smaller -b or -ub",
        Effect::Nothing,
        "the server halves the batch by itself; the pool is not larger for it",
    ),
    advice("longer client timeouts", Effect::Nothing, "the requests do not wait, they are aborted"),
];

const PREEMPTION: &[Advice] = &[
    advice(
        "lower --max-num-seqs",
        Effect::Cures,
        "fewer sequences grow at the same time; queued ones wait instead",
    ),
    advice(
        "more cache: --gpu-memory-utilization, --kv-cache-dtype fp8, more GPUs",
        Effect::Helps,
        "more blocks for the same sequences",
    ),
    advice("lower --max-model-len", Effect::Helps, "only where requests really get that long"),
    advice(
        "larger --block-size",
        Effect::CanBeWorse,
        "more tokens of the last block of each sequence lie empty",
    ),
];

const TOO_LONG: &[Advice] = &[
    advice("--max-model-len of at most the second number", Effect::Cures, "one longest request then fits"),
    advice("higher --gpu-memory-utilization", Effect::Helps, "more memory for the cache"),
    advice("--kv-cache-dtype fp8", Effect::Helps, "half the bytes a token"),
    advice("lower --max-num-seqs", Effect::Nothing, "one request alone does not fit"),
];

const MEMORY: &[Advice] = &[
    advice("smaller num_ctx x num_parallel", Effect::Cures, "the cache of the global layers grows with both"),
    advice(
        "CUDA_VISIBLE_DEVICES without the small GPU",
        Effect::Cures,
        "the output layer and the vision tower then land on a card that has room",
    ),
    advice(
        "OLLAMA_FLASH_ATTENTION=1 with OLLAMA_KV_CACHE_TYPE=q8_0",
        Effect::Helps,
        "about half the bytes a cell",
    ),
    advice(
        "smaller num_batch",
        Effect::Helps,
        "a smaller compute graph; with Gemma 3 and images not below 260",
    ),
    advice("OLLAMA_GPU_OVERHEAD", Effect::Helps, "the estimate leaves that much free on every GPU"),
    advice(
        "CUDA system-memory fallback (Windows)",
        Effect::CanBeWorse,
        "turns the error into steps that are 5 to 50 times slower, and a display card that stutters",
    ),
];

const QUEUE: &[Advice] = &[
    advice("fewer requests at once from the clients", Effect::Cures, "the queue empties"),
    advice(
        "higher OLLAMA_NUM_PARALLEL",
        Effect::Helps,
        "more requests at once, if cache and memory allow it; not with Gemma 3 before 0.12.4",
    ),
    advice("higher OLLAMA_MAX_QUEUE", Effect::CanBeWorse, "fewer refusals, longer waits"),
    advice("larger num_ctx", Effect::Worse, "more memory a request, no shorter queue"),
];

const DIED: &[Advice] = &[
    advice(
        "look before the first of these lines",
        Effect::Helps,
        "for panic:, GGML_ASSERT, CUDA error, out of memory; in dmesg for oom-kill",
    ),
    advice("OLLAMA_DEBUG=1", Effect::Helps, "the runner then says what it did last"),
    advice(
        "client retries",
        Effect::CanBeWorse,
        "the same load kills the next runner, after another load of the weights",
    ),
];

const TRUNCATION: &[Advice] = &[
    advice(
        "num_ctx (OLLAMA_CONTEXT_LENGTH) of prompt + answer",
        Effect::Cures,
        "nothing is cut; costs cells in the global layers, times num_parallel",
    ),
    advice(
        "shorter prompts",
        Effect::Cures,
        "choose at the client what to leave out, instead of losing the middle",
    ),
    advice(
        "OLLAMA_NUM_PARALLEL",
        Effect::Nothing,
        "num_ctx is per request already; only -c of llama-server is divided by its slots",
    ),
];

const SHIFT: &[Advice] = &[
    advice("larger num_ctx", Effect::Cures, "the answer then ends before the context does"),
    advice("num_predict", Effect::Cures, "limits the answer to what the context still holds"),
    advice("num_keep", Effect::Nothing, "keeps the head, not the half that is lost"),
];

const MULTIUSER: &[Advice] = &[
    advice(
        "OLLAMA_MULTIUSER_CACHE unset",
        Effect::Cures,
        "prompts go to the slot that begins alike, and slots stay apart",
    ),
    advice("OLLAMA_NUM_PARALLEL=1", Effect::Cures, "there is only one slot"),
];

const QUANTIZED: &[Advice] = &[
    advice(
        "OLLAMA_FLASH_ATTENTION=1",
        Effect::Cures,
        "where device and model support it, the cache type is then used",
    ),
    advice("OLLAMA_KV_CACHE_TYPE unset", Effect::Nothing, "that is what happens now"),
];

const REPEAT: &[Advice] = &[
    advice("larger num_ctx", Effect::Helps, "where shifts or cut prompts came before"),
    advice("sampling settings", Effect::Helps, "temperature, repeat_penalty"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_says_what_works_and_the_best_comes_first() {
        for topic in Topic::ALL {
            let list = topic.advice();
            assert!(list.iter().any(|advice| advice.effect.works()), "{topic:?}");
            assert!(list.is_sorted_by_key(|advice| advice.effect), "{topic:?}");
            assert!(topic.versions().ends_with('.') && topic.mechanism().ends_with('.'), "{topic:?}");
            let sentences = topic.mechanism().matches(". ").count() + 1;
            assert_eq!(sentences, 2, "{topic:?}: the mechanism is told in two sentences");
        }
    }

    #[test]
    fn the_window_names_the_three_populations() {
        let text = Topic::Window.versions();
        assert!(["0.6.3 to 0.12.3", "0.12.4 to 0.24", "0.30"].iter().all(|range| text.contains(range)));
    }
}
