//! `kvlab engine`: the model itself, over any policy.

mod bench;
mod generate;
mod gpu_bench;
mod logits;
mod model;
mod quality;
mod selftest;

use clap::{ArgMatches, Command};

use crate::trouble::Trouble;

/// The command line of `kvlab engine`.
pub fn command() -> Command {
    Command::new("engine")
        .about("run Gemma 3 itself over a policy: logits, text, speed, quality")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(logits::command())
        .subcommand(generate::command())
        .subcommand(bench::command())
        .subcommand(quality::command())
        .subcommand(selftest::command())
}

/// `kvlab engine ...`.
pub fn engine(matches: &ArgMatches) -> Result<(), Trouble> {
    match matches.subcommand() {
        Some(("logits", matches)) => logits::run(matches),
        Some(("generate", matches)) => generate::run(matches),
        Some(("bench", matches)) => bench::run(matches),
        Some(("quality", matches)) => quality::quality(matches),
        Some(("selftest", matches)) => selftest::run(matches),
        _ => unreachable!("clap asks for a subcommand"),
    }
}
