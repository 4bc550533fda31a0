//! Settings, checked and resolved into what a case needs.

use std::sync::Arc;

use policies::scheduler::{ContinuousKnobs, Keep, Limits, OnFull, Preemption, Reserve, RunnerKnobs, VICTIMS};
use sim::cost::fit::Fitted;
use sim::cost::linear::Calibration;
use sim::cost::profile::Profile;
use sim::ollama::Shares;
use traces::{Format, GenerateOptions, ReadOptions, Slo, TraceError, Workload};

use super::device::is_calibration;
use super::{Common, Family, Library, Origin, Prices, SEED, Workloads, at_seed, file_name};
use crate::settings::{Settings, Value};
use crate::trouble::{Trouble, usage};

/// Stands for a number of sequences that Ollama chooses.
pub(super) const AUTO_PARALLEL: u32 = 0;

pub(super) fn positive(value: &Value, text: &str) -> Result<f64, Trouble> {
    let number: f64 = value.parse(text)?;
    if number.is_finite() && number > 0.0 {
        Ok(number)
    } else {
        Err(value.wrong(format!("{:?} is not {text}", value.text)))
    }
}

fn counted(value: &Value, most: u32) -> Result<u32, Trouble> {
    let text = format!("a whole number from 1 to {most}");
    let number: u32 = value.parse(&text)?;
    if (1..=most).contains(&number) {
        Ok(number)
    } else {
        Err(value.wrong(format!("{:?} is not {text}", value.text)))
    }
}

fn at_least_one(value: &Value) -> Result<u64, Trouble> {
    let text = "a whole number of at least 1";
    let number: u64 = value.parse(text)?;
    if number > 0 { Ok(number) } else { Err(value.wrong(format!("{:?} is not {text}", value.text))) }
}

fn choice<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, Trouble> {
    words.iter().find(|(word, _)| *word == value.text).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        value.wrong(format!("{:?} is not one of {}", value.text, names.join(", ")))
    })
}

pub(super) fn switch(settings: &Settings, name: &str) -> Result<bool, Trouble> {
    choice(&settings.one(name).expect("the key has a default"), &[("true", true), ("false", false)])
}

/// A number that may be 0.
pub(super) fn at_least_zero(settings: &Settings, name: &str) -> Result<f64, Trouble> {
    let value = settings.one(name).expect("the key has a default");
    let number: f64 = value.parse("a number of at least 0")?;
    if number.is_finite() && number >= 0.0 {
        Ok(number)
    } else {
        Err(value.wrong(format!("{:?} is not a number of at least 0", value.text)))
    }
}

/// The GPUs that a server may see; none: all.
pub(super) fn device_list(settings: &Settings) -> Result<Option<Vec<usize>>, Trouble> {
    let value = settings.one("visible_devices").expect("the key has a default");
    if value.text == "auto" {
        return Ok(None);
    }
    let mut start = 0;
    let parts = value.text.split(',').map(|part| {
        let at = start..start + part.len();
        start = at.end + 1;
        let wrong = || value.wrong_at(at, format!("{part:?} is not the number of a GPU, as 0,1, or auto"));
        part.trim().parse().map_err(|_| wrong())
    });
    parts.collect::<Result<Vec<usize>, Trouble>>().map(Some)
}

/// How layers are dealt to the GPUs of a host; none where Ollama places them.
pub(super) fn shares(settings: &Settings) -> Result<Option<Shares>, Trouble> {
    let value = settings.one("layer_split").expect("the key has a default");
    let given = || value.text.split(':').map(|part| part.trim().parse()).collect::<Result<Vec<u32>, _>>();
    match value.text.as_str() {
        "ollama" => Ok(None),
        "free" => Ok(Some(Shares::Free)),
        _ => match given() {
            Ok(shares) => Ok(Some(Shares::Given(shares))),
            Err(_) => Err(value.wrong(format!("{:?} is not ollama, free, or shares as 3:1", value.text))),
        },
    }
}

/// Refuses values that results could not tell apart.
pub(super) fn check_names(settings: &Settings, key: &str) -> Result<(), Trouble> {
    let values = settings.all(key);
    for (index, value) in values.iter().enumerate() {
        let name = file_name(&value.text);
        if let Some(earlier) = values[..index].iter().find(|earlier| file_name(&earlier.text) == name) {
            let apart = if earlier.text == value.text { "" } else { "; results tell files apart by name" };
            return Err(value.wrong(format!("{name} stands twice{apart}")));
        }
    }
    Ok(())
}

pub(super) fn workloads(
    settings: &Settings,
    library: Option<&Arc<Library>>,
) -> Result<Vec<Workloads>, Trouble> {
    let rate = settings
        .one("rate")
        .map(|value| positive(&value, "a number of requests per second above 0"))
        .transpose()?;
    let requests = at_least_one(&settings.one("requests").expect("the key has a default"))?;
    let limit = settings.one("limit").map(|value| at_least_one(&value)).transpose()?;
    let mut all = Vec::new();
    for value in settings.all("generate") {
        let workload: Workload =
            value.text.parse().map_err(|error: TraceError| value.wrong(error.to_string()))?;
        let options = GenerateOptions {
            requests: limit.map_or(requests, |most| most.min(requests)),
            seed: 0,
            rate_per_s: rate,
        };
        traces::generate(workload, &options).map_err(usage)?;
        let digest = format!("{workload:?}");
        let name = format!("generate:{}", workload.name());
        let (origin, library) = (Origin::Generated { workload, options }, library.cloned());
        all.push(Workloads { name, origin, seeded: true, digest, library });
    }
    let format = settings.one("trace_format").filter(|value| value.text != "auto");
    let format = format
        .map(|value| value.text.parse::<Format>().map_err(|error| value.wrong(error.to_string())))
        .transpose()?;
    let time_scale =
        positive(&settings.one("time_scale").expect("the key has a default"), "a factor above 0")?;
    let session_rate_per_s = settings
        .one("session_rate")
        .map(|value| positive(&value, "a number of sessions per second above 0"))
        .transpose()?;
    check_names(settings, "trace")?;
    for value in settings.all("trace") {
        let options = ReadOptions { format, limit, time_scale, session_rate_per_s, ..ReadOptions::default() };
        let path = settings.path(&value);
        let by_seed = if value.text.contains(SEED) { seeds(settings, true)? } else { vec![0] };
        for file in by_seed.iter().map(|&seed| at_seed(&path, seed)) {
            if file.is_dir() {
                return Err(value.wrong(format!("{} is a folder; expected a trace", file.display())));
            }
            if !file.is_file() {
                return Err(value.wrong(format!("there is no file {}", file.display())));
            }
        }
        all.push(Workloads::file(&value.text, path, options, &by_seed, library)?);
    }
    if all.is_empty() {
        return Err(usage("no workload: give a scenario, a trace (--trace FILE), or --generate chat"));
    }
    Ok(all)
}

pub(super) fn families(settings: &Settings) -> Result<Vec<Family>, Trouble> {
    let watermark = settings.one("watermark").expect("the key has a default");
    let share: f64 = watermark.parse("a share from 0 to 1")?;
    if !(0.0..=1.0).contains(&share) {
        return Err(watermark.wrong(format!("{:?} is not a share from 0 to 1", watermark.text)));
    }
    let preemption = settings.one("preemption").expect("the key has a default");
    let on_full = settings.one("on_full").expect("the key has a default");
    let victim = settings.one("victim").expect("the key has a default");
    let victims: Vec<_> = VICTIMS.iter().map(|rule| (rule.name(), *rule)).collect();
    let continuous = ContinuousKnobs {
        chunked_prefill: switch(settings, "chunked_prefill")?,
        reserve: reserve(settings)?,
        watermark_permille: (share * 1000.0).round() as u32,
        preemption: choice(&preemption, &[("recompute", Preemption::Recompute), ("swap", Preemption::Swap)])?,
        victim: choice(&victim, &victims)?,
        pipeline: settings.get("pipeline", "a whole number")?,
    };
    let failures = [
        ("crash", OnFull::Crash),
        ("fail-one", OnFull::FailOne),
        ("halve", OnFull::Halve),
        ("wait", OnFull::Wait),
    ];
    let runner = RunnerKnobs {
        num_keep: num_keep(settings)?,
        on_full: choice(&on_full, &failures)?,
        keep_slots: switch(settings, "keep_slots")?,
        multi_user: switch(settings, "multi_user")?,
        // Chat templates begin with the same token, so a slot that was ever used beats one that was not.
        bos: true,
        ..RunnerKnobs::default()
    };
    let words = [("continuous", Family::Continuous(continuous)), ("runner", Family::Runner(runner))];
    settings.all("scheduler").iter().map(|value| choice(value, &words)).collect()
}

/// What admission sets aside.
fn reserve(settings: &Settings) -> Result<Reserve, Trouble> {
    let by_prompt = if switch(settings, "reserve_prompt")? { Reserve::Prompt } else { Reserve::None };
    let words = [
        ("auto", by_prompt),
        ("none", Reserve::None),
        ("prompt", Reserve::Prompt),
        ("full", Reserve::Full),
        ("max", Reserve::Max),
    ];
    choice(&settings.one("reserve").expect("the key has a default"), &words)
}

/// A number of tokens; `prompt`, or Ollama's -1, is the whole prompt.
fn num_keep(settings: &Settings) -> Result<Keep, Trouble> {
    let keep = settings.one("num_keep").expect("the key has a default");
    match keep.text.as_str() {
        "prompt" | "-1" => Ok(Keep::Prompt),
        _ => Ok(Keep::Tokens(keep.parse("a whole number, or prompt")?)),
    }
}

pub(super) fn limits(settings: &Settings, family: Family) -> Result<Vec<Limits>, Trouble> {
    let queue = settings.one("queue_max").expect("the key has a default");
    let queue_max = match (queue.text.as_str(), family) {
        ("none", _) | ("auto", Family::Continuous(_)) => None,
        ("auto", Family::Runner(_)) => Some(512),
        _ => Some(queue.parse("a whole number, none, or auto")?),
    };
    let mut all = Vec::new();
    for num_ctx in settings.all("num_ctx") {
        for num_parallel in settings.all("num_parallel") {
            for batch in settings.all("num_batch") {
                let num_parallel = match num_parallel.text.as_str() {
                    "auto" => AUTO_PARALLEL,
                    _ => counted(&num_parallel, 65_536)?,
                };
                let num_batch = counted(&batch, 1 << 24)?;
                all.push(Limits {
                    num_ctx: counted(&num_ctx, 1 << 24)?,
                    num_parallel,
                    num_batch,
                    queue_max,
                    maintain_cells: settings.get("maintain_cells", "a whole number")?,
                    fast_forward: switch(settings, "fast_forward")?,
                });
            }
        }
    }
    Ok(all)
}

/// What steps are priced by.
fn prices(settings: &Settings) -> Result<Prices, Trouble> {
    let cost = settings.one("cost").expect("the key has a default");
    let path = settings.path(&cost);
    Ok(match cost.text.as_str() {
        "spec" => Prices::Spec,
        _ if path.is_dir() => Prices::Profile(Box::new(Profile::read(&path).map_err(usage)?)),
        _ => {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                cost.wrong(format!(
                    "{}: {error}; expected spec, a calibration file or a profile folder",
                    path.display()
                ))
            })?;
            if is_calibration(&text) {
                let read = Calibration::from_toml(&text);
                let read = read.map_err(|error| usage(format!("{}: {error}", path.display())))?;
                return Ok(Prices::Linear(Box::new(read)));
            }
            let fitted =
                Fitted::from_toml(&text).map_err(|error| usage(format!("{}: {error}", path.display())))?;
            Prices::Fitted(Box::new(fitted))
        }
    })
}

pub(super) fn common(settings: &Settings) -> Result<Common, Trouble> {
    let ms = |name: &str| -> Result<u64, Trouble> {
        let value = settings.one(name).expect("the key has a default");
        Ok((positive(&value, "a number of milliseconds above 0")? * 1e6) as u64)
    };
    let reload = settings.one("reload_s").filter(|value| value.text != "auto");
    let until = settings.one("until_s");
    let host = settings.one("host_memory").expect("the key has a default");
    let host_bytes = match host.text.as_str() {
        "none" => None,
        _ => Some((at_least_zero(settings, "host_memory")? * (1u64 << 30) as f64) as u64),
    };
    Ok(Common {
        host_bytes,
        prices: prices(settings)?,
        slo: Slo { ttft_ns: ms("slo_ttft_ms")?, tpot_ns: ms("slo_tpot_ms")? },
        until_ns: until
            .map(|value| positive(&value, "a number of seconds above 0").map(|s| (s * 1e9) as u64))
            .transpose()?,
        reload_ns: reload
            .map(|value| positive(&value, "a number of seconds above 0").map(|s| (s * 1e9) as u64))
            .transpose()?,
        freeze_ns: ms("freeze_ms")?,
        image_leak: switch(settings, "image_leak")?,
        audit: switch(settings, "audit")?,
    })
}

pub(super) fn seeds(settings: &Settings, matter: bool) -> Result<Vec<u64>, Trouble> {
    let first: u64 = settings.get("seed0", "a whole number")?;
    let count = match settings.one("seeds") {
        Some(value) => counted(&value, 100_000)?,
        None if matter => 5,
        None => 1,
    };
    Ok((0..u64::from(count)).map(|i| first.wrapping_add(i)).collect())
}
