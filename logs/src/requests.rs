//! The requests that a log lets one recover: when they came, and how long prompt and answer were.
//!
//! An access line (`[GIN]`) has the end and the duration of a request, so its arrival, and nothing of
//! its size. Inner lines have sizes: `loading cache slot` and `truncating input prompt` the prompt,
//! the timings of llama-server both. An access line is joined with the earliest inner request that
//! began while it was open and belongs to nobody else. What then has no size is filled in as
//! [`Assume`] says.

use std::collections::{BTreeMap, VecDeque};

use traces::read::{TIME_NS_MAX, TOKENS_MAX};
use traces::{Prefix, Request, When};

use crate::events::Kind;
use crate::fields::{after, duration_ns, leading, millis_ns, number, number_after};

/// Requests that are kept; a log with more gives a trace of its first ones.
pub const REQUESTS_MAX: usize = 2_000_000;

/// Inner requests that wait for their access line.
const OPEN_MAX: usize = 1024;

/// Running tasks of llama-server that are remembered.
const TASKS_MAX: usize = 1024;

/// Inner requests wait so long for their access line.
const PATIENCE_NS: i64 = 2 * 3_600_000_000_000;

/// Access lines have whole seconds.
const SECOND_NS: i64 = 1_000_000_000;

/// What stands in for sizes that the log does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Assume {
    /// Tokens an answer has per second of its duration. None: the speed of the answers whose
    /// timings the log has, or 20.
    pub tokens_per_s: Option<f64>,
    /// Tokens of a prompt. None: the median of the known ones, or 1000.
    pub prompt_tokens: Option<u32>,
}

/// Speed of an answer where neither log nor caller says one, tokens per second.
const SPEED: f64 = 20.0;

/// Prompt where neither log nor caller says one, tokens.
const PROMPT_TOKENS: u32 = 1000;

/// Answer without any duration, where no other request has one, tokens.
const OUTPUT_TOKENS: u32 = 128;

/// Longest answer that a duration is turned into, where the context is not known.
const OUTPUT_MAX: u32 = 4096;

/// What a request is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestSource {
    /// An access line alone.
    Access,
    /// Inner lines alone.
    Inner,
    /// Both.
    Both,
}

#[derive(Clone, Copy, Debug)]
struct Inner {
    start_ns: Option<i64>,
    prompt: Option<u32>,
    is_part: bool,
    output: Option<u32>,
    busy_ns: Option<u64>,
    /// The length it was truncated to; its slot is loaded with that.
    truncated_to: Option<u32>,
}

impl Inner {
    fn new(start_ns: Option<i64>) -> Inner {
        Inner { start_ns, prompt: None, is_part: false, output: None, busy_ns: None, truncated_to: None }
    }
}

#[derive(Clone, Copy, Debug)]
struct Found {
    arrival_ns: Option<i64>,
    prompt: Option<u32>,
    output: Option<u32>,
    busy_ns: Option<u64>,
    is_part: bool,
    source: RequestSource,
}

/// A task of llama-server while it runs.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    start_ns: Option<i64>,
    prompt: Option<u32>,
    processed: Option<u32>,
    prompt_ns: u64,
}

/// The requests of a log, and what is known of them.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The requests, by arrival; the first is at 0.
    pub requests: Vec<Request>,
    /// How many are known by access lines alone, inner lines alone, both.
    pub by_source: [u64; 3],
    /// How many have a time of their own.
    pub timed: u64,
    /// How many prompts the log has.
    pub prompts_known: u64,
    /// Of those, how many lack what was in the cache.
    pub prompts_part: u64,
    /// Stands in for the other prompts, tokens.
    pub prompt_assumed: u32,
    /// How many answers the log has.
    pub outputs_known: u64,
    /// How many answers were computed from a duration.
    pub outputs_from_duration: u64,
    /// With so many tokens a second.
    pub tokens_per_s: f64,
    /// How many answers have no duration either.
    pub outputs_assumed: u64,
    /// Stands in for those, tokens.
    pub output_assumed: u32,
    /// Requests that were refused (status 4xx), and are not in the trace.
    pub refused: u64,
    /// Requests that came after the first [`REQUESTS_MAX`].
    pub beyond: u64,
}

/// Collects requests while a log is read.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    open: VecDeque<Inner>,
    tasks: BTreeMap<u64, Task>,
    /// Task that timings without a number belong to.
    task: Option<u64>,
    found: Vec<Found>,
    refused: u64,
    beyond: u64,
    eval_tokens: u64,
    eval_ns: u64,
}

impl Recorder {
    pub(crate) fn take(&mut self, kind: Kind, line: &[u8], at_ns: Option<i64>) {
        match kind {
            Kind::LoadSlot => self.load(line, at_ns),
            Kind::TruncatedPrompt => {
                let inner = Inner { truncated_to: number(line, "new"), ..Inner::new(at_ns) };
                self.push(Inner { prompt: number(line, "prompt"), ..inner });
            }
            Kind::Access => self.access(line, at_ns),
            Kind::SlotLaunch => {
                let Some(task) = task_of(line).filter(|_| after(line, "processing task").is_some()) else {
                    return;
                };
                self.task_entry(task).start_ns = at_ns;
            }
            Kind::SlotPrompt => {
                let Some(task) = task_of(line) else { return };
                let tokens = number_after(line, "task.n_tokens =");
                self.task_entry(task).prompt = tokens.or_else(|| number_after(line, "n_prompt_tokens ="));
            }
            Kind::PrintTiming => self.task = task_of(line),
            Kind::PromptEval => {
                let Some((ns, tokens)) = timing(line) else { return };
                let Some(task) = task_of(line).or(self.task) else { return };
                let entry = self.task_entry(task);
                entry.processed = Some(tokens);
                entry.prompt_ns = ns;
            }
            Kind::Eval => self.eval(line, at_ns),
            _ => {}
        }
    }

    fn task_entry(&mut self, task: u64) -> &mut Task {
        if self.tasks.len() >= TASKS_MAX && !self.tasks.contains_key(&task) {
            self.tasks.pop_first();
        }
        self.tasks.entry(task).or_default()
    }

    fn load(&mut self, line: &[u8], at_ns: Option<i64>) {
        let Some(prompt) = number::<u32>(line, "prompt").filter(|prompt| *prompt > 0) else { return };
        // The line after a truncation has the length after it; the request had more.
        let cut = self.open.iter_mut().rev().find(|inner| inner.truncated_to == Some(prompt));
        if let Some(inner) = cut {
            inner.truncated_to = None;
            inner.start_ns = at_ns;
            return;
        }
        let inner = Inner { prompt: Some(prompt), ..Inner::new(at_ns) };
        self.push(inner);
    }

    fn eval(&mut self, line: &[u8], at_ns: Option<i64>) {
        let Some((ns, tokens)) = timing(line) else { return };
        let Some(id) = task_of(line).or(self.task) else { return };
        let Some(task) = self.tasks.remove(&id) else { return };
        self.eval_tokens += u64::from(tokens);
        self.eval_ns = self.eval_ns.saturating_add(ns);
        let busy_ns = ns.saturating_add(task.prompt_ns);
        let back = |at: i64| at.saturating_sub(i64::try_from(busy_ns).unwrap_or(i64::MAX));
        let start_ns = task.start_ns.or(at_ns.map(back));
        let inner = Inner {
            prompt: task.prompt.or(task.processed).filter(|prompt| *prompt > 0),
            is_part: task.prompt.is_none(),
            output: Some(tokens),
            busy_ns: Some(busy_ns),
            ..Inner::new(start_ns)
        };
        self.push(inner);
    }

    fn push(&mut self, inner: Inner) {
        let late = |first: &Inner| match (first.start_ns, inner.start_ns) {
            (Some(first), Some(now)) => first < now.saturating_sub(PATIENCE_NS),
            _ => false,
        };
        while self.open.len() >= OPEN_MAX || self.open.front().is_some_and(late) {
            let Some(first) = self.open.pop_front() else { break };
            self.settle(first);
        }
        self.open.push_back(inner);
    }

    /// An inner request that no access line belongs to.
    fn settle(&mut self, inner: Inner) {
        self.keep(Found {
            arrival_ns: inner.start_ns,
            prompt: inner.prompt,
            output: inner.output,
            busy_ns: inner.busy_ns,
            is_part: inner.is_part,
            source: RequestSource::Inner,
        });
    }

    fn keep(&mut self, found: Found) {
        if self.found.len() < REQUESTS_MAX {
            self.found.push(found);
        } else {
            self.beyond += 1;
        }
    }

    /// `[GIN] 2025/04/20 - 10:11:12 | 200 | 1.23s | 127.0.0.1 | POST "/api/chat"`.
    fn access(&mut self, line: &[u8], at_ns: Option<i64>) {
        let Some(text) = after(line, "[GIN] ") else { return };
        let mut parts = text.splitn(5, |byte| *byte == b'|').skip(1);
        let (Some(status), Some(duration), Some(_), Some(what)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let Some(status) = leading::<u32>(status) else { return };
        let Some(duration) = duration_ns(duration) else { return };
        let Some(use_of) = use_of(what) else { return };
        if (400..500).contains(&status) {
            self.refused += u64::from(use_of == Use::Generate);
            return;
        }
        let span = i64::try_from(duration).unwrap_or(i64::MAX);
        let arrival = at_ns.map(|end| end.saturating_sub(span));
        // A full queue never lets a request in.
        let inner = if status == 503 { None } else { self.partner(arrival, at_ns) };
        if use_of == Use::Embed {
            return;
        }
        let waited = inner.and_then(|inner| {
            let waited = inner.start_ns?.saturating_sub(arrival?);
            u64::try_from(waited).ok()
        });
        let busy = duration.saturating_sub(waited.unwrap_or(0).min(duration));
        self.keep(Found {
            arrival_ns: arrival,
            prompt: inner.and_then(|inner| inner.prompt),
            output: inner.and_then(|inner| inner.output),
            busy_ns: inner.and_then(|inner| inner.busy_ns).or(Some(busy)),
            is_part: inner.is_some_and(|inner| inner.is_part),
            source: if inner.is_some() { RequestSource::Both } else { RequestSource::Access },
        });
    }

    /// The earliest inner request that began between arrival and end.
    fn partner(&mut self, arrival: Option<i64>, end: Option<i64>) -> Option<Inner> {
        let (arrival, end) = (arrival?, end?);
        let fits = |inner: &Inner| {
            inner.start_ns.is_some_and(|start| arrival <= start && start <= end.saturating_add(SECOND_NS))
        };
        let index = self.open.iter().position(fits)?;
        self.open.remove(index)
    }

    /// The requests, with what is missing filled in.
    pub(crate) fn finish(mut self, assume: &Assume, context: Option<u32>) -> Recovered {
        while let Some(inner) = self.open.pop_front() {
            self.settle(inner);
        }
        let mut found = self.found;
        order(&mut found);
        let prompts: Vec<u32> = found.iter().filter_map(|found| found.prompt).collect();
        let prompt_assumed = assume
            .prompt_tokens
            .or_else(|| median(prompts.clone()))
            .unwrap_or(PROMPT_TOKENS)
            .clamp(1, TOKENS_MAX);
        let own_speed = || {
            (self.eval_ns > 0 && self.eval_tokens > 0)
                .then(|| self.eval_tokens as f64 * 1e9 / self.eval_ns as f64)
        };
        let tokens_per_s = assume.tokens_per_s.or_else(own_speed).unwrap_or(SPEED);
        let output_max = context.unwrap_or(OUTPUT_MAX);
        let output = |found: &Found| {
            found.output.or_else(|| {
                let tokens = found.busy_ns? as f64 / 1e9 * tokens_per_s;
                Some((tokens.round() as u32).min(output_max))
            })
        };
        let outputs: Vec<u32> = found.iter().filter_map(output).collect();
        let output_assumed = median(outputs).unwrap_or(OUTPUT_TOKENS).max(1);
        let count = |is: &dyn Fn(&Found) -> bool| found.iter().filter(|found| is(found)).count() as u64;
        let by_source = [RequestSource::Access, RequestSource::Inner, RequestSource::Both]
            .map(|source| count(&|found| found.source == source));
        let timed = count(&|found| found.arrival_ns.is_some());
        let outputs_known = count(&|found| found.output.is_some());
        let outputs_from_duration = count(&|found| found.output.is_none() && found.busy_ns.is_some());
        let prompts_part = count(&|found| found.prompt.is_some() && found.is_part);
        let mut requests = Vec::with_capacity(found.len());
        let mut cursor = 0;
        let first = found.first().and_then(|found| found.arrival_ns).unwrap_or(0);
        for (id, one) in (0..).zip(&found) {
            let ns = match one.arrival_ns {
                // The difference of two i64 may not fit one.
                Some(at) => u64::try_from(i128::from(at) - i128::from(first)).unwrap_or(0).min(TIME_NS_MAX),
                None => cursor,
            };
            // Without times each request follows the one before.
            cursor = ns.saturating_add(one.busy_ns.unwrap_or(0)).min(TIME_NS_MAX);
            requests.push(Request {
                id,
                session: None,
                when: When::At { ns },
                prompt_tokens: one.prompt.unwrap_or(prompt_assumed).clamp(1, TOKENS_MAX),
                output_tokens: output(one).unwrap_or(output_assumed).clamp(1, TOKENS_MAX),
                prefix: Prefix::unknown(),
                images: Vec::new(),
            });
        }
        Recovered {
            outputs_assumed: found.len() as u64 - outputs_known - outputs_from_duration,
            requests,
            by_source,
            timed,
            prompts_known: prompts.len() as u64,
            prompts_part,
            prompt_assumed,
            outputs_known,
            outputs_from_duration,
            tokens_per_s,
            output_assumed,
            refused: self.refused,
            beyond: self.beyond,
        }
    }
}

/// Sorts by arrival. Where only some have a time, the others come at that of the one before.
fn order(found: &mut [Found]) {
    if found.iter().any(|found| found.arrival_ns.is_some()) {
        let mut last = found.iter().find_map(|found| found.arrival_ns);
        for one in found.iter_mut() {
            one.arrival_ns = one.arrival_ns.or(last);
            last = one.arrival_ns;
        }
        found.sort_by_key(|found| found.arrival_ns);
    }
}

fn median(mut values: Vec<u32>) -> Option<u32> {
    if values.is_empty() {
        return None;
    }
    let middle = (values.len() - 1) / 2;
    Some(*values.select_nth_unstable(middle).1)
}

/// What a path of the server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Generate,
    Embed,
}

const GENERATE: [&str; 6] = [
    "/api/chat",
    "/api/generate",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
];

const EMBED: [&str; 3] = ["/api/embed", "/api/embeddings", "/v1/embeddings"];

fn use_of(what: &[u8]) -> Option<Use> {
    let path = after(what, "POST")?.trim_ascii_start().strip_prefix(b"\"")?;
    let end = path.iter().position(|byte| matches!(byte, b'"' | b'?' | b' '))?;
    let is = |list: &[&str]| list.iter().any(|known| known.as_bytes() == &path[..end]);
    if is(&GENERATE) { Some(Use::Generate) } else { is(&EMBED).then_some(Use::Embed) }
}

/// `| task 17 |` and `id_task=17`.
fn task_of(line: &[u8]) -> Option<u64> {
    number_after(line, "| task ")
        .or_else(|| number_after(line, "id_task="))
        .or_else(|| number_after(line, "\"id_task\":"))
}

/// `eval time = 319.58 ms / 10 tokens`: nanoseconds and tokens.
fn timing(line: &[u8]) -> Option<(u64, u32)> {
    let text = after(line, "eval time")?.trim_ascii_start().strip_prefix(b"=")?;
    let slash = text.iter().take(40).position(|byte| *byte == b'/')?;
    let tokens = leading::<u32>(&text[slash + 1..])?;
    Some((millis_ns(text)?, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(lines: &[(Kind, i64, &str)]) -> Recorder {
        let mut recorder = Recorder::default();
        for (kind, at_s, line) in lines {
            recorder.take(*kind, line.as_bytes(), Some(at_s * SECOND_NS));
        }
        recorder
    }

    fn rows(recovered: &Recovered) -> Vec<(u64, u32, u32)> {
        let seconds = |when| match when {
            When::At { ns } => ns / 1_000_000_000,
            When::After { .. } => u64::MAX,
        };
        recovered
            .requests
            .iter()
            .map(|one| (seconds(one.when), one.prompt_tokens, one.output_tokens))
            .collect()
    }

    const CHAT: &str = "| 127.0.0.1 | POST     \"/api/chat\"";

    #[test]
    fn an_access_line_is_joined_with_the_slot_that_was_loaded_meanwhile() {
        let access = |duration: &str| format!("[GIN] 2025/04/20 - 10:00:00 | 200 | {duration} {CHAT}");
        let recovered = recorder(&[
            (Kind::LoadSlot, 101, "msg=\"loading cache slot\" id=0 cache=0 prompt=700 used=0 remaining=700"),
            (Kind::LoadSlot, 103, "msg=\"loading cache slot\" id=1 cache=0 prompt=900 used=0 remaining=900"),
            (Kind::Access, 110, &access("10s")),
            (Kind::Access, 120, &access("17s")),
        ])
        .finish(&Assume::default(), None);
        // The first had 9 s after its slot was loaded, at 20 tokens a second.
        assert_eq!(rows(&recovered), [(0, 700, 180), (3, 900, 340)]);
        assert_eq!(recovered.by_source, [0, 0, 2]);
        assert_eq!((recovered.prompts_known, recovered.outputs_from_duration), (2, 2));
    }

    #[test]
    fn a_truncated_prompt_has_its_length_from_before() {
        let recovered = recorder(&[
            (
                Kind::TruncatedPrompt,
                10,
                "msg=\"truncating input prompt\" limit=2048 prompt=5065 keep=5 new=2048",
            ),
            (Kind::LoadSlot, 10, "msg=\"loading cache slot\" id=0 cache=0 prompt=2048 used=0 remaining=2048"),
            (
                Kind::TruncatedPrompt,
                20,
                "msg=\"truncating input prompt\" limit=2048 prompt=3000 keep=5 new=2048",
            ),
        ])
        .finish(&Assume::default(), None);
        assert_eq!(rows(&recovered), [(0, 5065, 128), (10, 3000, 128)]);
    }

    #[test]
    fn what_is_missing_is_filled_in_as_stated() {
        let lines = [
            (Kind::Access, 100, format!("[GIN] x | 200 | 2s {CHAT}")),
            (Kind::Access, 105, format!("[GIN] x | 500 | 4s {CHAT}")),
            (Kind::Access, 106, format!("[GIN] x | 404 | 4s {CHAT}")),
            (Kind::Access, 106, "[GIN] x | 200 | 4s | ::1 | GET \"/api/tags\"".to_owned()),
            (Kind::Access, 106, "[GIN] x | 200 | 4s | ::1 | POST \"/api/show\"".to_owned()),
            (Kind::Access, 107, format!("[GIN] x | 503 | 10us {CHAT}")),
        ];
        let lines: Vec<_> = lines.iter().map(|(kind, at, line)| (*kind, *at, line.as_str())).collect();
        let recovered = recorder(&lines).finish(&Assume::default(), None);
        assert_eq!(rows(&recovered), [(0, 1000, 40), (3, 1000, 80), (8, 1000, 1)]);
        assert_eq!((recovered.refused, recovered.prompts_known), (1, 0));
        let assume = Assume { tokens_per_s: Some(50.0), prompt_tokens: Some(7) };
        let recovered = recorder(&lines).finish(&assume, Some(150));
        assert_eq!(rows(&recovered), [(0, 7, 100), (3, 7, 150), (8, 7, 1)]);
    }

    #[test]
    fn a_refused_request_takes_no_slot() {
        let recovered = recorder(&[
            (Kind::LoadSlot, 107, "msg=\"loading cache slot\" id=0 cache=0 prompt=700 used=0"),
            (Kind::Access, 107, &format!("[GIN] x | 503 | 10us {CHAT}")),
            (Kind::Access, 110, &format!("[GIN] x | 200 | 4s {CHAT}")),
        ])
        .finish(&Assume { prompt_tokens: Some(9), ..Assume::default() }, None);
        assert_eq!(rows(&recovered), [(0, 700, 60), (0, 9, 1)]);
    }

    #[test]
    fn embeddings_take_their_slot_and_make_no_request() {
        let recovered = recorder(&[
            (Kind::LoadSlot, 101, "msg=\"loading cache slot\" id=0 cache=0 prompt=700 used=0"),
            (Kind::Access, 102, "[GIN] x | 200 | 1.5s | ::1 | POST \"/api/embed\""),
        ])
        .finish(&Assume::default(), None);
        assert!(recovered.requests.is_empty());
    }

    #[test]
    fn timings_of_llama_server_have_both_sizes() {
        let recovered = recorder(&[
            (Kind::SlotLaunch, 10, "slot launch_slot_: id  0 | task 5 | processing task"),
            (Kind::SlotPrompt, 10, "slot update_slots: id  0 | task 5 | new prompt, n_ctx_slot = 4096, n_keep = 0, n_prompt_tokens = 397"),
            (Kind::SlotLaunch, 11, "slot launch_slot_: id  1 | task 6 | processing task, is_child = 0"),
            (Kind::PrintTiming, 14, "slot print_timing: id  0 | task 5 |"),
            (Kind::PromptEval, 14, "prompt eval time =     500.00 ms /   300 tokens (    1.67 ms per token)"),
            (Kind::Eval, 14, "       eval time =    2000.00 ms /   100 tokens (   20.00 ms per token)"),
            (Kind::PromptEval, 15, "slot print_timing: id  1 | task 6 | prompt eval time =  250.00 ms /  50 tokens"),
            (Kind::Eval, 15, "slot print_timing: id  1 | task 6 |        eval time =  1000.00 ms /  50 tokens"),
        ])
        .finish(&Assume::default(), None);
        assert_eq!(rows(&recovered), [(0, 397, 100), (1, 50, 50)]);
        assert_eq!((recovered.prompts_part, recovered.outputs_known), (1, 2));
        assert_eq!(recovered.tokens_per_s, 50.0);
    }

    #[test]
    fn without_any_time_requests_follow_each_other() {
        let mut recorder = Recorder::default();
        for task in 0..3 {
            let head = format!("slot print_timing: id 0 | task {task} |");
            recorder.take(Kind::PrintTiming, head.as_bytes(), None);
            recorder.take(Kind::PromptEval, b"prompt eval time = 1000.0 ms / 30 tokens", None);
            recorder.take(Kind::Eval, b"eval time = 2000.0 ms / 20 tokens", None);
        }
        let recovered = recorder.finish(&Assume::default(), None);
        assert_eq!(rows(&recovered), [(0, 30, 20), (3, 30, 20), (6, 30, 20)]);
        assert_eq!(recovered.timed, 0);
    }

    #[test]
    fn open_requests_are_bounded() {
        let mut recorder = Recorder::default();
        for n in 0..5000i64 {
            recorder.take(Kind::LoadSlot, b"loading cache slot prompt=5", Some(n));
            let launch = format!("slot launch_slot_: id 0 | task {n} | processing task");
            recorder.take(Kind::SlotLaunch, launch.as_bytes(), Some(n));
        }
        assert!(recorder.open.len() <= OPEN_MAX && recorder.tasks.len() <= TASKS_MAX);
        assert_eq!(recorder.finish(&Assume::default(), None).requests.len(), 5000);
    }
}
