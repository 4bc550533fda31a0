//! `kvlab engine selftest`: whether a device computes what it should.

use std::io::Write;

use anyhow::anyhow;
use clap::{Arg, ArgMatches, Command};
use engine::cuda::{self, Effort};

use crate::trouble::Trouble;

const EXAMPLES: &str = "\
Examples:
  kvlab engine selftest
  kvlab engine selftest --device cuda:1

Needs an NVIDIA driver, and NVRTC, which compiles the kernels for the device at first use: where the loader
finds it, or in the folder that KVLAB_NVRTC names (pip install nvidia-cuda-nvrtc).

Every case is compared with the backend on the CPU, or with the device itself where cells lie elsewhere.";

/// The subcommand.
pub fn command() -> Command {
    Command::new("selftest").about("test the CUDA backend on the device at hand").after_help(EXAMPLES).arg(
        Arg::new("device")
            .long("device")
            .value_name("cuda:N")
            .default_value("cuda:0")
            .value_parser(device)
            .help("the device"),
    )
}

fn device(text: &str) -> Result<usize, String> {
    let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "expected cuda:N, where N counts devices from 0".to_owned())
}

/// Runs it.
pub fn run(matches: &ArgMatches) -> Result<(), Trouble> {
    let gpu = cuda::open(*matches.get_one("device").expect("the device has a default"))?;
    let mut out = std::io::stdout().lock();
    let info = gpu.info();
    writeln!(out, "{} (sm_{}, {} GiB)", info.name, info.arch, info.memory >> 30)?;
    let mut written = Ok(());
    let outcomes = cuda::selftest(&gpu, Effort::Whole, |case| {
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
    let failed = outcomes.iter().filter(|case| !case.passed).count();
    if failed > 0 {
        return Err(anyhow!("{failed} of {} cases failed", outcomes.len()).into());
    }
    Ok(())
}
