//! What a report means: the verdict, why, and what to try next.

use crate::events::{Kind, Level};
use crate::facts::{Population, Version};
use crate::knowledge::Topic;
use crate::length::{Reading, readings};
use crate::scan::Report;
use crate::tally::Moment;
use crate::words::{count, list, span};

/// What happened, in one word; the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The runner died because a cache was full.
    Crash,
    /// Device memory ran out.
    OutOfMemory,
    /// Requests failed because a cache was full or too small.
    Failed,
    /// A runner died for a reason that the log does not say.
    Died,
    /// Requests were turned away at the door.
    Queue,
    /// Signs of a short cache, and nothing failed.
    Pressure,
    /// Nothing that is known went wrong.
    Nothing,
}

impl Verdict {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Crash => "crash",
            Verdict::OutOfMemory => "out of memory",
            Verdict::Failed => "requests failed",
            Verdict::Died => "runner died",
            Verdict::Queue => "queue full",
            Verdict::Pressure => "pressure",
            Verdict::Nothing => "nothing known",
        }
    }

    fn of(level: Level) -> Verdict {
        match level {
            Level::Crash => Verdict::Crash,
            Level::Memory => Verdict::OutOfMemory,
            Level::Failure => Verdict::Failed,
            Level::Symptom => Verdict::Died,
            Level::Queue => Verdict::Queue,
            Level::Pressure => Verdict::Pressure,
            Level::Note | Level::Traffic | Level::Fact => Verdict::Nothing,
        }
    }
}

/// A length of the panic, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Length {
    /// Cells of the cache that was full.
    pub length: u32,
    /// How often it was said.
    pub count: u64,
    /// Ways in which it comes about, the likeliest first.
    pub readings: Vec<Reading>,
}

impl Length {
    /// What it is made of, and when such a cache is full; in sentences.
    pub fn words(&self) -> String {
        let Some(reading) = self.readings.first() else {
            return format!(
                "{} is not slots x window + batch for any usual setting; the command line of the runner (--parallel, \
                 --batch-size, --ctx-size) would tell.",
                self.length
            );
        };
        let mut words = format!("{} = {reading}", self.length);
        if reading.is_certain {
            words += ", as the log says.";
        } else {
            words += " is likeliest; the log does not say the sizes.";
            let others: Vec<String> = self.readings[1..].iter().map(Reading::to_string).collect();
            if !others.is_empty() {
                words += &format!(" Also possible: {}.", others.join("; "));
            }
        }
        match (reading.threshold(), reading.batch) {
            (Some((prompts, tokens)), _) => {
                words += &format!(
                    " {prompts} prompts of at least {tokens} tokens that are computed at the same time fill it; once \
                     every slot has held more than a window, one lone prompt can."
                );
            }
            (None, Some(_)) => {
                words += " One slot alone cannot fill it, except with an image of 260 tokens and a num_batch below that.";
            }
            (None, None) => {
                words += " This is the cache that grows with num_ctx: not the window, but the whole context was full.";
            }
        }
        words
    }
}

/// What a log means.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// In one word.
    pub verdict: Verdict,
    /// In one sentence.
    pub headline: String,
    /// How much warning there was, in one sentence.
    pub warning: Option<String>,
    /// The trouble that the verdict is about.
    pub topic: Option<Topic>,
    /// Other trouble in the log, each with its count.
    pub also: Vec<(Topic, u64)>,
    /// The lengths of the panics, read.
    pub lengths: Vec<Length>,
    /// Which version the log is from, and what that means, in one sentence.
    pub version: Option<String>,
    /// What holds on this server in particular, in one sentence.
    pub here: Option<String>,
    /// What else this version has, in one sentence.
    pub caution: Option<String>,
    /// A comparison to run; `TRACE` stands for the trace recovered from the log.
    pub compare: Option<String>,
}

/// Says what a report means.
pub fn diagnose(report: &Report) -> Diagnosis {
    let gravest = report.tallies.iter().max_by_key(|tally| {
        let event = tally.kind.event();
        // Of equal gravity the one earlier in the table.
        (Verdict::of(event.level) < Verdict::Nothing, event.level, std::cmp::Reverse(tally.kind))
    });
    let verdict = gravest.map_or(Verdict::Nothing, |tally| Verdict::of(tally.kind.event().level));
    let topic = gravest.filter(|_| verdict != Verdict::Nothing).and_then(|tally| tally.kind.event().topic);
    let mut also: Vec<(Topic, u64)> = Vec::new();
    for tally in &report.tallies {
        let Some(other) = tally.kind.event().topic.filter(|other| Some(*other) != topic) else { continue };
        match also.iter_mut().find(|(known, _)| *known == other) {
            Some((_, total)) => *total += tally.count,
            None => also.push((other, tally.count)),
        }
    }
    // Dead runners are what a crash looks like from outside.
    also.retain(|(other, _)| *other != Topic::Died || verdict > Verdict::Failed);
    let lengths = report.lengths.iter().map(|seen| Length {
        length: seen.length,
        count: seen.count,
        readings: readings(seen.length, &seen.known),
    });
    Diagnosis {
        verdict,
        headline: headline(report, verdict, topic),
        warning: warning(report, verdict),
        topic,
        also,
        lengths: lengths.collect(),
        version: version(report),
        here: topic.and_then(|topic| here(report, topic)),
        caution: caution(report),
        compare: topic.and_then(|topic| compare(report, topic)),
    }
}

fn headline(report: &Report, verdict: Verdict, topic: Option<Topic>) -> String {
    let over = report.span_ns().filter(|ns| *ns > 0).map_or(String::new(), |ns| format!(" in {}", span(ns)));
    let total = |level| -> u64 {
        let of_level = report.tallies.iter().filter(|tally| tally.kind.event().level == level);
        of_level.map(|tally| tally.count).sum()
    };
    let times = |number: u64| if number == 1 { "once".to_owned() } else { format!("{number} times") };
    match verdict {
        Verdict::Crash => {
            // The dump is written just before the panic, so it is no crash of its own.
            let panics = report.count(Kind::CacheSlot) + report.count(Kind::CacheSlotRunner);
            let crashes = panics.max(report.count(Kind::CacheDump));
            let what = topic.map_or("a cache was full", Topic::name);
            format!("the runner died {}{over}: {what}.", times(crashes))
        }
        Verdict::OutOfMemory => format!("device memory ran out {}{over}.", times(total(Level::Memory))),
        Verdict::Failed if report.count(Kind::TooLong) > 0 && topic == Some(Topic::TooLong) => {
            "the server did not start: its cache is smaller than one longest request.".to_owned()
        }
        Verdict::Failed => {
            let retries = report.count(Kind::Retry);
            let before = match retries {
                0 => String::new(),
                _ => format!(", after {}", count(retries, ("halved batch", "halved batches"))),
            };
            let failures = times(total(Level::Failure));
            format!(
                "the shared pool was full {failures}{over}{before}, and every generation in flight was aborted."
            )
        }
        Verdict::Died => format!(
            "a runner or its answers were lost, {}{over}, and the log does not say why.",
            count(total(Level::Symptom), ("line", "lines"))
        ),
        Verdict::Queue => {
            let refused = count(report.count(Kind::Busy), ("request was", "requests were"));
            format!("{refused} refused{over} because the queue was full; the cache has no part in it.")
        }
        Verdict::Pressure => format!("nothing has failed{over} yet, but {}.", signs(report)),
        Verdict::Nothing if report.tallies.is_empty() => {
            format!("none of the {} of this log is known.", count(report.lines, ("line", "lines")))
        }
        Verdict::Nothing => {
            format!("nothing that is known went wrong in {}{over}.", count(report.lines, ("line", "lines")))
        }
    }
}

/// `12 defragmentations of the whole cache and 3 context shifts`.
fn signs(report: &Report) -> String {
    let words = |kind| match kind {
        Kind::Defrag => ("defragmentation of the whole cache", "defragmentations of the whole cache"),
        Kind::Shift => ("context shift", "context shifts"),
        Kind::TruncatedPrompt => ("prompt cut", "prompts cut"),
        Kind::TruncatedMessages => ("chat cut", "chats cut"),
        Kind::RemovalUnsupported => ("sequence computed again", "sequences computed again"),
        Kind::UbatchFull | Kind::NoMemorySlot => ("batch without room", "batches without room"),
        Kind::DefragFailed => ("compaction with nothing to move", "compactions with nothing to move"),
        Kind::Retry => ("batch halved for want of room", "batches halved for want of room"),
        Kind::RequestTooLong => ("request refused for its length", "requests refused for their length"),
        Kind::Preempted => ("preemption", "preemptions"),
        _ => ("other sign", "other signs"),
    };
    let pressure = report.tallies.iter().filter(|tally| tally.kind.event().level == Level::Pressure);
    let items: Vec<String> = pressure
        // A refused batch is the other half of a halved one.
        .filter(|tally| !(tally.kind == Kind::NoMemorySlot && report.count(Kind::Retry) > 0))
        .map(|tally| count(tally.count, words(tally.kind)))
        .collect();
    format!("the cache is short: {}", list(&items))
}

/// The earliest sign before the first failure, and the time between.
fn warning(report: &Report, verdict: Verdict) -> Option<String> {
    if verdict > Verdict::Failed {
        return None;
    }
    let first = |is: &dyn Fn(Level) -> bool| -> Option<(Moment, Kind)> {
        let kinds = report.tallies.iter().filter(|tally| is(tally.kind.event().level));
        kinds.filter_map(|tally| Some((tally.first?, tally.kind))).min()
    };
    let (failed, _) = first(&|level| level > Level::Symptom)?;
    let (warned, kind) = first(&|level| level == Level::Pressure)?;
    let lead = u64::try_from(failed.ns.checked_sub(warned.ns)?).ok()?;
    Some(format!(
        "The first warning ({}) came {} before the first failure at {}.",
        kind.event().name,
        span(lead),
        report.time(failed)
    ))
}

fn version(report: &Report) -> Option<String> {
    let facts = &report.facts;
    if let Some(version) = facts.ollama.last() {
        let names: Vec<String> = facts.ollama.iter().map(|version| format!("Ollama {version}")).collect();
        let population = Population::of(*version);
        let Some(words) = population.map(Population::words) else {
            return Some("The log is from a build of Ollama without a version.".to_owned());
        };
        return Some(format!("The log is from {}, of the versions {words}.", list(&names)));
    }
    if let Some(version) = facts.vllm.last() {
        return Some(format!("The log is from vLLM {version}."));
    }
    let by_length = report.count(Kind::CacheSlot) > 0;
    if by_length {
        return Some("The log does not say its version; a panic with a length is that of the Ollama engine, up to 0.24, and most likely 0.6.3 to 0.12.3.".to_owned());
    }
    facts
        .has_llama_server
        .then(|| "The log is from llama-server, alone or below Ollama 0.30 and later.".to_owned())
}

/// Signs of a full window cache mean less where it cannot be filled.
fn here(report: &Report, topic: Topic) -> Option<String> {
    let facts = &report.facts;
    if topic != Topic::Window {
        return None;
    }
    let small = facts.batch.filter(|batch| *batch < 260);
    if let Some(batch) = small {
        return Some(format!(
            "Its num_batch of {batch} is below the 260 tokens of an image: with images every version fails, and one slot is enough."
        ));
    }
    if facts.parallel == Some(1) {
        return Some(
            "It has one slot, which cannot fill this cache: compaction costs time, no more.".to_owned(),
        );
    }
    (facts.population() == Some(Population::Trimming)).then(|| {
        "This version trims every sequence, so the cache cannot be filled without images.".to_owned()
    })
}

fn caution(report: &Report) -> Option<String> {
    let version = *report.facts.ollama.last()?;
    if version == Version(0, 0, 0) {
        return None;
    }
    if version < Version(0, 6, 6) {
        return Some("Versions up to 0.6.5 also leak pinned memory at every step.".to_owned());
    }
    (version < Version(0, 6, 8)).then(|| {
        "0.6.6 and 0.6.7 also keep every processed image in memory, 10 MB and more each; a host that grows and freezes is that leak, not the cache."
            .to_owned()
    })
}

/// A comparison that shows the trouble and what cures it.
fn compare(report: &Report, topic: Topic) -> Option<String> {
    let facts = &report.facts;
    let model = facts.model_name().map_or(String::new(), |name| format!(" --model {name}-q4_0"));
    let parallel = facts.parallel.unwrap_or(2);
    let context = facts.slot_context().unwrap_or(4096);
    let batch = facts.batch.unwrap_or(512);
    let sizes = format!("--num-ctx {context} --num-batch {batch}{model}");
    let some = |first: u32, second: u32| {
        if first == second { first.to_string() } else { format!("{first},{second}") }
    };
    let with_one = some(parallel, 1);
    let command = match topic {
        Topic::Window | Topic::Multiuser => format!(
            "kvlab compare TRACE ollama-0.6.6,ollama-0.12.4,paged:16 --scheduler runner --num-parallel {with_one} {sizes}"
        ),
        Topic::LlamaRunner => {
            format!(
                "kvlab compare TRACE llama-unified,paged:16 --scheduler runner --num-parallel {with_one} {sizes}"
            )
        }
        Topic::Pool => format!(
            "kvlab compare TRACE llama-unified,paged:16 --scheduler runner --on-full halve --num-parallel {with_one} {sizes}"
        ),
        Topic::Truncation | Topic::Shift => format!(
            "kvlab compare TRACE ollama-0.12.4,paged:16 --scheduler runner --num-parallel {parallel} --num-ctx {} --num-batch {batch}{model}",
            some(context, context.saturating_mul(2))
        ),
        Topic::Queue => format!(
            "kvlab compare TRACE ollama-0.12.4,paged:16 --scheduler runner --num-parallel {} {sizes}",
            some(parallel, parallel.saturating_mul(2))
        ),
        Topic::Memory | Topic::Quantized => format!(
            "kvlab compare TRACE ollama-0.12.4,paged:16 --scheduler runner --kv-cache-type f16,q8_0 --num-parallel {with_one} {sizes}"
        ),
        Topic::Preemption | Topic::TooLong => {
            "kvlab compare --generate chat --policies paged:16 --scheduler continuous --num-parallel 256,64"
                .to_owned()
        }
        Topic::Died | Topic::Repeat => return None,
    };
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::Scan;

    fn of(text: &str) -> Diagnosis {
        let mut scan = Scan::new();
        scan.read(text.as_bytes()).unwrap();
        diagnose(&scan.finish())
    }

    fn line(kind: Kind) -> String {
        format!("time=2025-04-20T10:11:12Z level=INFO {}\n", kind.event().texts[0])
    }

    #[test]
    fn the_gravest_event_decides() {
        let order = [
            (Kind::EvictSlot, Verdict::Nothing),
            (Kind::Defrag, Verdict::Pressure),
            (Kind::Busy, Verdict::Queue),
            (Kind::RunnerGone, Verdict::Died),
            (Kind::ContextExceeded, Verdict::Failed),
            (Kind::OutOfMemory, Verdict::OutOfMemory),
            (Kind::CacheSlot, Verdict::Crash),
        ];
        let mut text = String::new();
        for (kind, verdict) in order {
            text = line(kind) + &text;
            let diagnosis = of(&text);
            assert_eq!(diagnosis.verdict, verdict, "{kind:?}");
            if verdict != Verdict::Nothing {
                assert_eq!(diagnosis.topic, kind.event().topic, "{kind:?}");
            }
        }
    }

    #[test]
    fn a_dump_before_the_panic_is_no_second_crash() {
        let diagnosis = of(&(line(Kind::CacheDump) + &line(Kind::CacheSlot)));
        assert!(diagnosis.headline.starts_with("the runner died once"), "{}", diagnosis.headline);
    }

    #[test]
    fn a_crash_after_signs_had_a_warning() {
        let text = "time=2025-04-20T10:00:00Z level=DEBUG msg=\"defragmenting kv cache\"\n\
                    time=2025-04-20T10:20:00Z level=INFO msg=x\n\
                    panic: could not find a kv cache slot (length: 2560)\n";
        let warning = of(text).warning.unwrap();
        assert_eq!(
            warning,
            "The first warning (defrag) came 20 min 0 s before the first failure at 2025-04-20 10:20:00."
        );
        assert_eq!(of(&line(Kind::Defrag)).warning, None);
    }

    #[test]
    fn signs_are_counted_in_words() {
        let text = line(Kind::Defrag).repeat(3) + &line(Kind::Shift) + &line(Kind::TruncatedPrompt).repeat(2);
        assert_eq!(
            of(&text).headline,
            "nothing has failed yet, but the cache is short: 3 defragmentations of the whole cache, 1 context shift and 2 prompts cut."
        );
        let text = line(Kind::NoMemorySlot).repeat(3) + &line(Kind::Retry).repeat(3);
        assert!(of(&text).headline.ends_with("3 batches halved for want of room."));
    }

    #[test]
    fn the_next_step_has_the_sizes_of_the_log() {
        let text = "msg=offload layers.model=63 layers.split=\"\"\n\
                    msg=\"starting llama server\" cmd=\"ollama runner --ollama-engine --ctx-size 16384 --batch-size 256 --parallel 4\"\n\
                    panic: could not find a kv cache slot (length: 4352)\n";
        let diagnosis = of(text);
        let command = diagnosis.compare.unwrap();
        for part in [
            "ollama-0.6.6",
            "--num-parallel 4,1",
            "--num-ctx 4096",
            "--num-batch 256",
            "--model gemma3-27b-q4_0",
        ] {
            assert!(command.contains(part), "{command}");
        }
        assert_eq!(diagnosis.lengths[0].readings.len(), 1);
        assert!(
            diagnosis.lengths[0]
                .words()
                .starts_with("4352 = 4 slots x 1024 window + 256 batch, as the log says.")
        );
    }

    #[test]
    fn what_holds_on_this_server_is_said() {
        let start = |parallel: u32, batch: u32| {
            let command = format!(
                "starting llama server --ollama-engine --parallel {parallel} --batch-size {batch} --ctx-size 8192\n"
            );
            of(&(command + &line(Kind::Defrag))).here
        };
        assert!(start(1, 512).unwrap().contains("one slot"));
        assert!(start(1, 256).unwrap().contains("below the 260 tokens"));
        assert_eq!(start(2, 512), None);
        let text = "Listening on 127.0.0.1:11434 (version 0.12.4)\n".to_owned() + &line(Kind::Defrag);
        assert!(of(&text).here.unwrap().contains("trims every sequence"));
        assert!(of(&line(Kind::Shift)).here.is_none());
    }

    #[test]
    fn nothing_known_is_said_so() {
        let diagnosis = of("Apr 20 10:11:12 host sshd[1]: hello\n");
        assert_eq!((diagnosis.verdict, diagnosis.topic), (Verdict::Nothing, None));
        assert_eq!(diagnosis.headline, "none of the 1 line of this log is known.");
    }
}
