//! Whole small logs of several servers and versions, as they are written and as they are wrapped.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use logs::{Diagnosis, Kind, Population, Report, Scan, Topic, Verdict, diagnose};

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/logs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn scan(bytes: &[u8]) -> (Report, Diagnosis) {
    let mut scan = Scan::with_requests();
    scan.read(bytes).unwrap();
    let report = scan.finish();
    let diagnosis = diagnose(&report);
    (report, diagnosis)
}

fn counts(report: &Report) -> Vec<(Kind, u64)> {
    report.tallies.iter().map(|tally| (tally.kind, tally.count)).collect()
}

#[test]
fn the_crash_of_0_6_6_is_explained() {
    let (report, diagnosis) = scan(&read("ollama-0.6.6-crash.log"));
    assert_eq!((diagnosis.verdict, diagnosis.topic), (Verdict::Crash, Some(Topic::Window)));
    let text = "the runner died once in 7 min 13 s: the cache of the sliding-window layers is full.";
    assert_eq!(diagnosis.headline, text);
    assert_eq!(
        diagnosis.warning.as_deref(),
        Some(
            "The first warning (truncated-prompt) came 4 min 42 s before the first failure at 2025-04-20 10:18:25."
        )
    );
    let length = &diagnosis.lengths[0];
    assert_eq!((length.length, length.count, length.readings.len()), (2560, 1, 1));
    assert!(length.words().starts_with(
        "2560 = 2 slots x 1024 window + 512 batch, as the log says. 2 prompts of at least 1536 tokens"
    ));
    assert_eq!(report.facts.population(), Some(Population::Failing));
    assert_eq!(report.facts.model_name(), Some("gemma3-27b"));
    assert!(diagnosis.version.as_deref().unwrap().contains("Ollama 0.6.6, of the versions 0.6.3 to 0.12.3"));
    assert!(diagnosis.caution.as_deref().unwrap().contains("image"));
    let also: Vec<Topic> = diagnosis.also.iter().map(|(topic, _)| *topic).collect();
    assert_eq!(also, [Topic::Shift, Topic::Truncation]);
    assert_eq!(
        counts(&report),
        [
            (Kind::CacheSlot, 1),
            (Kind::RunnerTerminated, 1),
            (Kind::ConnectionLost, 1),
            (Kind::Defrag, 4),
            (Kind::Shift, 1),
            (Kind::TruncatedPrompt, 1),
            (Kind::LoadSlot, 13),
            (Kind::Access, 12),
            (Kind::Version, 1),
            (Kind::ServerStart, 1),
            (Kind::Offload, 1),
            (Kind::Model, 1),
            (Kind::Environment, 1),
        ]
    );
    let defrag = report.tallies.iter().find(|tally| tally.kind == Kind::Defrag).unwrap();
    assert_eq!(report.time(defrag.first.unwrap()), "2025-04-20 10:15:39");
    assert_eq!(
        defrag.busiest.map(|(at, lines)| (report.time(at), lines)),
        Some(("2025-04-20 10:15:00".to_owned(), 1))
    );
    let recovered = report.requests.unwrap();
    assert_eq!((recovered.requests.len(), recovered.by_source), (13, [0, 1, 12]));
    assert_eq!((recovered.prompts_known, recovered.prompts_part), (13, 0));
    let prompts: Vec<u32> = recovered.requests.iter().map(|request| request.prompt_tokens).collect();
    assert_eq!(prompts, [322, 1180, 611, 5212, 1804, 940, 2210, 1420, 871, 1633, 3120, 2950, 3301]);
}

#[test]
fn pressure_is_reported_before_anything_fails() {
    let (report, diagnosis) = scan(&read("ollama-0.9.5-pressure.log"));
    assert_eq!((diagnosis.verdict, diagnosis.topic), (Verdict::Pressure, Some(Topic::Window)));
    assert_eq!(
        diagnosis.headline,
        "nothing has failed in 13 min 28 s yet, but the cache is short: 6 defragmentations of the whole cache, 4 \
         context shifts, 4 prompts cut and 6 chats cut."
    );
    assert_eq!(diagnosis.warning, None);
    assert!(diagnosis.also.iter().any(|(topic, _)| *topic == Topic::Quantized));
    assert_eq!(report.requests.unwrap().by_source, [0, 0, 24]);
}

#[test]
fn a_full_pool_of_llama_server_is_told_from_a_crash() {
    let (report, diagnosis) = scan(&read("llama-server-pool-full.log"));
    assert_eq!((diagnosis.verdict, diagnosis.topic), (Verdict::Failed, Some(Topic::Pool)));
    assert!(diagnosis.headline.starts_with("the shared pool was full 3 times"), "{}", diagnosis.headline);
    assert!(diagnosis.headline.contains("after 27 halved batches"), "{}", diagnosis.headline);
    assert_eq!(report.time(report.span.unwrap().0), "+0:00:00");
    assert_eq!(report.count(Kind::NoMemorySlot), 30);
    let recovered = report.requests.unwrap();
    assert_eq!((recovered.by_source, recovered.outputs_known, recovered.prompts_part), ([0, 12, 0], 12, 0));
    assert_eq!((recovered.requests[1].prompt_tokens, recovered.requests[1].output_tokens), (877, 151));
}

#[test]
fn preemptions_of_vllm_are_pressure() {
    let (report, diagnosis) = scan(&read("vllm-preemption.log"));
    assert_eq!((diagnosis.verdict, diagnosis.topic), (Verdict::Pressure, Some(Topic::Preemption)));
    assert!(diagnosis.headline.ends_with("the cache is short: 8 preemptions."), "{}", diagnosis.headline);
    assert_eq!(diagnosis.version.as_deref(), Some("The log is from vLLM 0.8.4."));
    assert_eq!(report.time(report.span.unwrap().1), "04-20 10:18:33");
    assert!(report.requests.unwrap().requests.is_empty());
}

#[test]
fn an_unrelated_log_says_nothing() {
    let (report, diagnosis) = scan(&read("unrelated.log"));
    assert_eq!((diagnosis.verdict, diagnosis.topic), (Verdict::Nothing, None));
    assert_eq!(diagnosis.headline, "none of the 30 lines of this log is known.");
    assert!(report.tallies.is_empty() && diagnosis.compare.is_none());
    assert_eq!(report.time(report.span.unwrap().1), "11-02 03:08:13");
}

/// Line ends of Windows, colours, container and JSON wrappers, UTF-16: the same log.
#[test]
fn wrappers_change_nothing() {
    let bytes = read("ollama-0.6.6-crash.log");
    let text = String::from_utf8(bytes.clone()).unwrap();
    let (plain, _) = scan(&bytes);
    let each = |wrap: &dyn Fn(&str) -> String| text.lines().map(|line| wrap(line) + "\n").collect::<String>();
    let inner = |line: &str| line.split_once("]: ").map_or("", |(_, inner)| inner).to_owned();
    let json = |line: &str| {
        let text = inner(line).replace('\\', "\\\\").replace('"', "\\\"");
        format!("{{\"log\":\"{text}\\n\",\"stream\":\"stderr\"}}")
    };
    let wrapped = [
        each(&|line| format!("{line}\r")).into_bytes(),
        each(&|line| format!("\x1b[36mollama-1  |\x1b[0m {line}\x1b[0m")).into_bytes(),
        each(&|line| format!("ollama-1  | {}", inner(line))).into_bytes(),
        each(&json).into_bytes(),
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect(),
        each(&|line| format!("{line}\0\u{fffd}")).into_bytes(),
    ];
    for (index, bytes) in wrapped.iter().enumerate() {
        let (report, diagnosis) = scan(bytes);
        assert_eq!(counts(&report), counts(&plain), "{index}");
        assert_eq!((report.lines, report.span), (plain.lines, plain.span), "{index}");
        assert_eq!(diagnosis.lengths[0].readings.len(), 1, "{index}");
        let (ours, theirs) = (report.requests.unwrap(), plain.requests.as_ref().unwrap());
        assert_eq!(ours.requests, theirs.requests, "{index}");
    }
}

#[test]
fn several_logs_read_one_after_the_other_are_one() {
    let bytes = read("ollama-0.6.6-crash.log");
    let (whole, _) = scan(&bytes);
    let middle = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(19).unwrap().0 + 1;
    let mut scan = Scan::with_requests();
    scan.read(&bytes[..middle]).unwrap();
    scan.read(&bytes[middle..]).unwrap();
    let parts = scan.finish();
    assert_eq!((counts(&parts), parts.span, parts.facts), (counts(&whole), whole.span, whole.facts));
    assert_eq!(parts.requests.unwrap().requests, whole.requests.unwrap().requests);
}
