//! `kvlab engine selftest`: whether a device computes what it should.

use std::io::Write;
use std::path::Path;

use anyhow::anyhow;
use clap::{Arg, ArgMatches, Command};
use engine::cuda::{self, Effort};
use report::files::write_text;
use serde_json::json;

use crate::device;
use crate::trouble::{Trouble, usage};

const EXAMPLES: &str = "\
Examples:
  kvlab engine selftest
  kvlab engine selftest --device cuda:1 --json selftest.json
  kvlab engine selftest --only 'swapped cells'

Needs an NVIDIA driver and nothing else. Every kernel is compared with a reference in f64; the whole backend with
logits of another implementation, with the backend on the CPU, and with itself where cells lie elsewhere. The exit
code is 1 if a case fails, and 2 without a driver or the device.";

/// The subcommand.
pub fn command() -> Command {
    Command::new("selftest")
        .about("test the CUDA backend on the device at hand")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("device")
                .long("device")
                .value_name("cuda:N")
                .default_value("cuda:0")
                .value_parser(ordinal)
                .help("the device"),
        )
        .arg(Arg::new("json").long("json").value_name("FILE").help("write how every case went"))
        .arg(
            Arg::new("only")
                .long("only")
                .value_name("WORDS")
                .default_value("")
                .hide_default_value(true)
                .help("no cases but those whose name has these words"),
        )
}

fn ordinal(text: &str) -> Result<usize, String> {
    if text == "cuda" {
        return Ok(0);
    }
    let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "expected cuda:N, where N counts devices from 0".to_owned())
}

/// Runs it.
pub fn run(matches: &ArgMatches) -> Result<(), Trouble> {
    let only = matches.get_one::<String>("only").expect("it has a default");
    let gpu = device::open(*matches.get_one("device").expect("the device has a default"))?;
    let mut out = std::io::stdout().lock();
    let info = gpu.info();
    let kernels = gpu.code();
    writeln!(out, "{} (sm_{}, {} GiB), kernels {kernels}", info.name, info.arch, info.memory >> 30)?;
    let mut written = Ok(());
    let outcomes = cuda::selftest(&gpu, Effort::Whole, only, |case| {
        let verdict = if case.passed { "ok  " } else { "FAIL" };
        let line = writeln!(
            out,
            "{verdict} {}: {:.3e} of at most {:.1e}, {:.1} s {}",
            case.name, case.value, case.limit, case.seconds, case.note
        );
        if written.is_ok() {
            written = line;
        }
    });
    written?;
    if outcomes.is_empty() {
        return Err(usage(anyhow!("--only {only:?}: no case has these words in its name")));
    }
    if let Some(path) = matches.get_one::<String>("json") {
        let all = json!({ "device": info.name, "arch": info.arch, "kernels": kernels, "cases": outcomes });
        write_text(Path::new(path), &format!("{all:#}\n"))?;
    }
    let failed = outcomes.iter().filter(|case| !case.passed).count();
    if failed > 0 {
        return Err(anyhow!("{failed} of {} cases failed", outcomes.len()).into());
    }
    Ok(())
}
