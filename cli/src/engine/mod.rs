//! `kvlab engine …`: the engine alone.

mod quality;

use clap::{ArgMatches, Command};

use crate::trouble::Trouble;

/// The command line of `kvlab engine`.
pub fn command() -> Command {
    Command::new("engine")
        .about("run the engine alone")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(quality::command())
}

/// `kvlab engine …`.
pub fn engine(matches: &ArgMatches) -> Result<(), Trouble> {
    match matches.subcommand() {
        Some(("quality", matches)) => quality::quality(matches),
        _ => unreachable!("clap asks for a subcommand"),
    }
}
