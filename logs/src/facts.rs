//! What a log tells of its server: version, engine, sizes, devices.

use std::fmt;

use crate::events::Kind;
use crate::fields::{after, flag, has_flag, leading, number, number_after, value};
use crate::length::Known;

/// Different versions that are remembered; more in one log say nothing more.
const VERSIONS_MAX: usize = 8;

/// Characters of a text that is taken from a log.
const TEXT_MAX: usize = 80;

/// A version, as three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    fn read(text: &[u8]) -> Option<Version> {
        let number = |text: &[u8]| leading::<u32>(text.get(..text.len().min(9))?);
        let mut parts = text.splitn(3, |byte| *byte == b'.');
        let (major, minor, patch) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Version(number(major)?, number(minor)?, number(patch)?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Versions of Ollama that fail alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Population {
    /// Before 0.6.3: the window cache has room for one batch a slot.
    Before,
    /// 0.6.3 to 0.12.3: room for one batch, and only batched sequences are trimmed.
    Failing,
    /// 0.12.4 to 0.24, the last before 0.30: all sequences are trimmed.
    Trimming,
    /// 0.30 and later: llama-server.
    LlamaServer,
}

impl Population {
    /// The population of a version; none of builds without one (0.0.0).
    pub fn of(version: Version) -> Option<Population> {
        match version {
            Version(0, 0, 0) => None,
            version if version < Version(0, 6, 3) => Some(Population::Before),
            version if version < Version(0, 12, 4) => Some(Population::Failing),
            version if version < Version(0, 30, 0) => Some(Population::Trimming),
            _ => Some(Population::LlamaServer),
        }
    }

    /// What sets it apart, in one sentence.
    pub fn words(self) -> &'static str {
        match self {
            Population::Before => {
                "before 0.6.3: the window cache still has room for one batch a slot, and Gemma 3 does not fail this way"
            }
            Population::Failing => {
                "0.6.3 to 0.12.3: the window cache has room for one batch only, and only batched sequences are trimmed"
            }
            Population::Trimming => {
                "0.12.4 to 0.24: the same engine, all sequences are trimmed; images still need num_batch of at least 260"
            }
            Population::LlamaServer => {
                "0.30 and later: the engine is llama-server, whose slots share one pool and whose messages differ"
            }
        }
    }
}

/// What a log tells of its server. Where it tells a thing twice, the latest is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Versions of Ollama, in the order they appear, each once.
    pub ollama: Vec<Version>,
    /// Versions of vLLM.
    pub vllm: Vec<Version>,
    /// Whether Ollama's own engine runs the model.
    pub has_ollama_engine: bool,
    /// Whether llama-server runs it.
    pub has_llama_server: bool,
    /// Architecture of the model.
    pub architecture: Option<String>,
    /// Layers, the output layer included.
    pub layers: Option<u32>,
    /// Slots.
    pub parallel: Option<u32>,
    /// Tokens of a batch.
    pub batch: Option<u32>,
    /// Context of all slots together.
    pub context: Option<u32>,
    /// Sliding window, where the log says it.
    pub window: Option<u32>,
    /// Flash attention.
    pub flash: Option<bool>,
    /// Type of the cache.
    pub cache_type: Option<String>,
    /// OLLAMA_MULTIUSER_CACHE.
    pub multiuser: Option<bool>,
    /// Layers on each device.
    pub split: Option<String>,
    /// Memory needed by the estimate, of all and of each device.
    pub memory: Option<String>,
    /// Memory available on each device.
    pub available: Option<String>,
}

fn text(bytes: &[u8]) -> Option<String> {
    let text: String =
        String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    (!text.is_empty()).then_some(text)
}

fn positive(number: Option<u32>) -> Option<u32> {
    number.filter(|number| *number > 0)
}

fn is_true(bytes: &[u8]) -> bool {
    bytes.starts_with(b"true") || bytes.starts_with(b"1") || bytes.starts_with(b"Enabled")
}

impl Facts {
    /// What the length of a cache is read with.
    pub fn known(&self) -> Known {
        Known {
            parallel: self.parallel,
            batch: self.batch,
            window: self.model_window(),
            context: self.context,
        }
    }

    /// The window: as the log says it, or that of the Gemma 3 with so many layers.
    pub fn model_window(&self) -> Option<u32> {
        let by_layers = || {
            let is_gemma = self.architecture.as_deref().is_none_or(|name| name == "gemma3");
            match self.layers.filter(|_| is_gemma)? {
                27 => Some(512),
                35 | 49 | 63 => Some(1024),
                _ => None,
            }
        };
        self.window.or_else(by_layers)
    }

    /// The Gemma 3 with so many layers.
    pub fn model_name(&self) -> Option<&'static str> {
        if self.architecture.as_deref().is_some_and(|name| name != "gemma3") {
            return None;
        }
        match self.layers? {
            27 => Some("gemma3-1b"),
            35 => Some("gemma3-4b"),
            49 => Some("gemma3-12b"),
            63 => Some("gemma3-27b"),
            _ => None,
        }
    }

    /// Context of one slot.
    pub fn slot_context(&self) -> Option<u32> {
        positive(Some(self.context? / self.parallel?.max(1)))
    }

    /// The versions of Ollama that the log is from, as populations; the last one counts.
    pub fn population(&self) -> Option<Population> {
        let of_version = self.ollama.last().and_then(|version| Population::of(*version));
        let of_engine = (self.has_llama_server && !self.ollama.is_empty()).then_some(Population::LlamaServer);
        of_version.or(of_engine)
    }

    pub(crate) fn take(&mut self, kind: Kind, line: &[u8]) {
        match kind {
            Kind::Version => self.take_version(line),
            Kind::ServerStart => self.take_command(line),
            Kind::LoadRequest => self.take_load(line),
            Kind::LlamaServerStart => {
                self.has_llama_server = true;
                self.has_ollama_engine = false;
                self.take_llama_command(line);
            }
            Kind::Offload => self.take_offload(line),
            Kind::Model => self.architecture = value(line, "architecture").and_then(text),
            Kind::Environment => self.take_environment(line),
            Kind::CacheDump => {
                self.has_ollama_engine = true;
                self.window = positive(number_after(line, "swaWindowSize:")).or(self.window);
                self.batch = positive(number_after(line, "maxBatch:")).or(self.batch);
            }
            Kind::CacheSlot | Kind::Defrag => self.has_ollama_engine = true,
            Kind::SlotNew | Kind::SlotLaunch | Kind::Retry | Kind::ContextExceeded => {
                self.has_llama_server = true
            }
            _ => {}
        }
    }

    fn take_version(&mut self, line: &[u8]) {
        let ollama = after(line, "(version ").and_then(Version::read);
        let vllm = || {
            let text = after(line, "server version ").or_else(|| after(line, "engine (v"))?;
            Version::read(text.trim_ascii_start())
        };
        let (list, version) = match ollama {
            Some(version) => (&mut self.ollama, Some(version)),
            None => (&mut self.vllm, vllm()),
        };
        if let Some(version) = version
            && list.last() != Some(&version)
            && list.len() < VERSIONS_MAX
        {
            list.push(version);
        }
    }

    fn take_command(&mut self, line: &[u8]) {
        self.has_ollama_engine = has_flag(line, "--ollama-engine");
        self.has_llama_server = false;
        self.window = None;
        let number = |name| flag(line, name).and_then(leading);
        let sizes = [number("--parallel"), number("--batch-size"), number("--ctx-size")].map(positive);
        if sizes.iter().all(Option::is_none) {
            // From 0.11 on the sizes come with the load request.
            return;
        }
        [self.parallel, self.batch, self.context] = sizes;
        self.flash = Some(has_flag(line, "--flash-attn"));
        self.cache_type = flag(line, "--kv-cache-type").and_then(text);
    }

    fn take_llama_command(&mut self, line: &[u8]) {
        let number = |long, short| flag(line, long).or_else(|| flag(line, short)).and_then(leading);
        self.parallel = positive(number("--parallel", "-np")).or(self.parallel);
        self.batch = positive(number("--batch-size", "-b")).or(self.batch);
        self.context = positive(number("--ctx-size", "-c")).or(self.context);
    }

    fn take_load(&mut self, line: &[u8]) {
        let size = |name| positive(number_after(line, name));
        // A load request without sizes closes the model.
        let Some(parallel) = size("Parallel:") else { return };
        self.parallel = Some(parallel);
        self.batch = size("BatchSize:").or(self.batch);
        self.context = size("KvSize:").or(self.context);
        self.flash = after(line, "FlashAttention:").map(is_true);
        self.multiuser = after(line, "MultiUserCache:").map(is_true);
        self.layers = size("GPULayers:").or(self.layers);
    }

    fn take_offload(&mut self, line: &[u8]) {
        self.layers = positive(number(line, "layers.model"));
        self.split = value(line, "layers.split").and_then(text);
        self.available = value(line, "memory.available").and_then(text);
        let full = value(line, "memory.required.full").and_then(text);
        let each = value(line, "memory.required.allocations").and_then(text);
        self.memory = full.map(|full| each.map_or(full.clone(), |each| format!("{full}, by device {each}")));
    }

    fn take_environment(&mut self, line: &[u8]) {
        let word = |name| {
            let text = after(line, name)?;
            let end = text.iter().position(|byte| matches!(byte, b' ' | b']' | b'"'));
            Some(&text[..end.unwrap_or(text.len())])
        };
        self.multiuser = word("OLLAMA_MULTIUSER_CACHE:").map(is_true).or(self.multiuser);
        self.cache_type = word("OLLAMA_KV_CACHE_TYPE:").and_then(text).or(self.cache_type.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(lines: &[(Kind, &str)]) -> Facts {
        let mut facts = Facts::default();
        for (kind, line) in lines {
            facts.take(*kind, line.as_bytes());
        }
        facts
    }

    #[test]
    fn versions_fall_into_three_populations_and_what_was_before() {
        let of = |line: &str| {
            let facts = facts(&[(Kind::Version, line)]);
            facts.population().map(|population| (facts.ollama[0].to_string(), population))
        };
        let cases = [
            ("msg=\"Listening on 127.0.0.1:11434 (version 0.6.2)\"", "0.6.2", Population::Before),
            ("msg=\"Listening on [::]:11434 (version 0.6.3)\"", "0.6.3", Population::Failing),
            ("(version 0.6.6-rc0)", "0.6.6", Population::Failing),
            ("(version 0.12.3)", "0.12.3", Population::Failing),
            ("(version 0.12.4)", "0.12.4", Population::Trimming),
            ("(version 0.24.0)", "0.24.0", Population::Trimming),
            ("(version 0.30.0)", "0.30.0", Population::LlamaServer),
            ("(version 0.30.11-rc1)", "0.30.11", Population::LlamaServer),
            ("(version 1.2.0)", "1.2.0", Population::LlamaServer),
        ];
        for (line, version, population) in cases {
            assert_eq!(of(line), Some((version.to_owned(), population)), "{line}");
        }
        assert_eq!(of("(version 0.0.0)"), None);
        assert_eq!(of("(version 0.x)"), None);
        let vllm = facts(&[(Kind::Version, "INFO 04-20 10:11:12 vLLM API server version 0.8.4")]);
        assert_eq!((vllm.vllm, vllm.ollama), (vec![Version(0, 8, 4)], vec![]));
    }

    #[test]
    fn the_command_of_the_runner_has_the_sizes() {
        let line = "msg=\"starting llama server\" cmd=\"/usr/bin/ollama runner --ollama-engine --model /m --ctx-size 8192 --batch-size 256 --n-gpu-layers 63 --threads 8 --flash-attn --kv-cache-type q8_0 --parallel 2 --port 4\"";
        let offload = "msg=offload library=cuda layers.requested=-1 layers.model=63 layers.offload=63 layers.split=52,11 memory.available=\"[40.1 GiB 5.1 GiB]\" memory.required.full=\"24.0 GiB\" memory.required.allocations=\"[19.0 GiB 5.0 GiB]\"";
        let facts = facts(&[(Kind::ServerStart, line), (Kind::Offload, offload)]);
        assert_eq!((facts.parallel, facts.batch, facts.context), (Some(2), Some(256), Some(8192)));
        assert_eq!((facts.flash, facts.cache_type.as_deref()), (Some(true), Some("q8_0")));
        assert!(facts.has_ollama_engine);
        assert_eq!((facts.model_name(), facts.model_window()), (Some("gemma3-27b"), Some(1024)));
        assert_eq!(facts.slot_context(), Some(4096));
        assert_eq!(facts.split.as_deref(), Some("52,11"));
        assert_eq!(facts.memory.as_deref(), Some("24.0 GiB, by device [19.0 GiB 5.0 GiB]"));
    }

    #[test]
    fn later_versions_say_the_sizes_when_they_load() {
        let line = "msg=load request=\"{Operation:commit LoraPath:[] Parallel:2 BatchSize:512 FlashAttention:Enabled KvSize:8192 KvCacheType: NumThreads:8 GPULayers:63[ID:GPU-1 Layers:63(0..62)] MultiUserCache:true}\"";
        let close = "msg=load request=\"{Operation:close LoraPath:[] Parallel:0 BatchSize:0 KvSize:0}\"";
        let facts = facts(&[(Kind::LoadRequest, line), (Kind::LoadRequest, close)]);
        assert_eq!((facts.parallel, facts.batch, facts.context), (Some(2), Some(512), Some(8192)));
        assert_eq!((facts.flash, facts.multiuser), (Some(true), Some(true)));
    }

    #[test]
    fn another_model_has_no_window_of_gemma() {
        let facts = facts(&[
            (Kind::Model, "msg=\"\" architecture=mistral3 file_type=Q4_0"),
            (Kind::Offload, "layers.model=63 layers.split=\"\""),
        ]);
        assert_eq!((facts.model_window(), facts.model_name()), (None, None));
    }

    #[test]
    fn the_last_words_of_the_cache_have_window_and_batch() {
        let line = "msg=\"unable to find a kv cache slot\" cache=\"&{DType:2 swaWindowSize:1024 swaMemorySize:1024 maxBatch:256 curSequences:[1 1 1";
        let known = facts(&[(Kind::CacheDump, line)]).known();
        assert_eq!((known.window, known.batch), (Some(1024), Some(256)));
    }
}
