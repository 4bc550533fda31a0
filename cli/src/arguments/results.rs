//! Commands that make sweeps, and that draw results.

use clap::{Arg, ArgAction, Command, value_parser};

use super::{flag, format, number, out, quiet};
use crate::settings::Settings;

const EXAMPLES_SWEEP: &str = "\
Examples:
  kvlab sweep scenarios/sweep-small.toml
  kvlab sweep scenarios/sweep-small.toml --check
  kvlab sweep scenarios/sweep-small.toml --list | head -n 1 | kvlab task --base scenarios
  kvlab sweep grid.toml --shard 3/64 --out results && kvlab collect results
  kvlab sweep grid.toml --watermark 0,0.01,0.1 --fail-if 'failed > 0'

Here every key may have several values. The exit code is 1 if a simulation failed, 3 if a condition of
--fail-if is met.";

const EXIT_CODES_TASK: &str = "\
Exit codes: 0 a result; 2 the spec or a file that it names is wrong, here and everywhere; 1 the simulation
failed; 101 a fault of kvlab. Death by a signal says nothing of the spec.";

const EXAMPLES_REPORT: &str = "\
Examples:
  kvlab report kvlab-out/chat
  kvlab report results --target ttft_p99_ms --out by-ttft.html
  kvlab report results --front held_peak_gib,latency_p99_ms --front tpot_p99_ms,throughput_tokens_per_s

The page is made of the files in the folder and of nothing else. The exit code is 2 where one of them is damaged.";

const EXAMPLES_PLOT: &str = "\
Examples:
  kvlab plot kvlab-out/sweep-small --x num_parallel --y goodput_requests_per_s --col-by watermark --out goodput.svg
  kvlab plot results --x policy --y ttft_p99_ms --log-y --filter-by 'num_ctx == 8192' > ttft.svg
  kvlab plot results --x held_peak_gib --y latency_p99_ms --front --out front.svg
  kvlab plot kvlab-out/chat/timeline.csv --x time_s --y waiting --filter-by 'class == global' --out waiting.svg

Settings that a sweep varied are columns, too. Rows that nothing tells apart but their seed are averaged.";

pub(super) fn sweep() -> Command {
    let command = Command::new("sweep")
        .about("simulate every point of a grid, each once, and compare; stopped, it goes on where it was")
        .after_help(EXAMPLES_SWEEP)
        .arg(Arg::new("file").required(true).value_name("SWEEP").help("a sweep (.toml), or a trace"))
        .arg(flag("check", "say whether the sweep is right and how many simulations it makes, and stop"))
        .arg(flag("list", "print the specs, a line of JSON each, and stop").conflicts_with("check"))
        .arg(
            flag("plan", "write the list into the folder, for others to simulate, and stop")
                .conflicts_with_all(["check", "list", "shard"]),
        )
        .arg(
            Arg::new("shard")
                .long("shard")
                .value_name("I/N")
                .conflicts_with("fail-if")
                .help("only the simulations of one of N shards, 0/N to N-1/N, told apart by their keys"),
        )
        .arg(number("threads", "simulations at once [default: one per core]"))
        .arg(fail_if())
        .arg(target())
        .arg(front())
        .arg(format())
        .arg(out("DIR", "folder for the results [default: kvlab-out/NAME]"))
        .arg(quiet("show no progress"));
    Settings::flags(command)
}

pub(super) fn task() -> Command {
    Command::new("task")
        .about("simulate one spec of `kvlab sweep --list`: standard input to standard output")
        .after_help(EXIT_CODES_TASK)
        .arg(
            Arg::new("base")
                .long("base")
                .value_name("DIR")
                .default_value(".")
                .help("folder that the spec's relative paths start at"),
        )
}

pub(super) fn collect() -> Command {
    Command::new("collect")
        .about("put the results of a sweep together: table, summary.csv, tails.csv and report.html")
        .arg(Arg::new("dir").required(true).value_name("DIR").help("the folder of the sweep"))
        .arg(format())
        .arg(reference())
        .arg(fail_if())
        .arg(target())
        .arg(front())
        .arg(quiet("do not name the files"))
}

pub(super) fn report() -> Command {
    Command::new("report")
        .about("draw report.html again from the results in a folder alone")
        .after_help(EXAMPLES_REPORT)
        .arg(Arg::new("dir").required(true).value_name("DIR").help("a folder of compare, run or sweep"))
        .arg(reference())
        .arg(target())
        .arg(front())
        .arg(out("FILE", "the page [default: DIR/report.html]"))
        .arg(quiet("do not name the file"))
}

pub(super) fn plot() -> Command {
    let by =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("COLUMNS").help(help);
    let axis = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("COLUMN").required(true).help(help)
    };
    let log = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("true|false")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(value_parser!(bool))
            .help(help)
    };
    Command::new("plot")
        .about("draw any columns of results as SVG: curves, and panels in lines and columns")
        .after_help(EXAMPLES_PLOT)
        .arg(Arg::new("file").required(true).value_name("FILE|DIR").help("a CSV file, or a folder with summary.csv"))
        .arg(axis("x", "what lies across: numbers, or words"))
        .arg(axis("y", "what lies upwards: numbers, means over seeds with 95 % intervals"))
        .arg(by("curve-by", "a curve for each value; none: one curve [default: row, or policy]"))
        .arg(by("row-by", "a line of panels for each value"))
        .arg(by("col-by", "a column of panels for each value"))
        .arg(
            Arg::new("filter-by")
                .long("filter-by")
                .value_name("CONDITION")
                .action(ArgAction::Append)
                .help("only rows that have it so, as 'num_ctx >= 4096' or 'policy == paged'; may be given several times"),
        )
        .arg(
            flag("front", "a point for each setting, and those that no other beats in both columns")
                .conflicts_with_all(["row-by", "col-by"]),
        )
        .arg(log("log-x", "powers of ten across [default: where values are far apart]"))
        .arg(log("log-y", "powers of ten upwards [default: where values are far apart]"))
        .arg(out("FILE", "the picture [default: standard output]"))
        .arg(quiet("say nothing of what is averaged"))
}

fn reference() -> Arg {
    Arg::new("reference").long("reference").value_name("NAME").help(
        "policy or row that the others are compared with [default: that of the results, else the first]",
    )
}

fn target() -> Arg {
    Arg::new("target").long("target").value_name("COLUMN").help(
        "what the page of a sweep ranks by [default: goodput, or throughput where nobody keeps the SLO]",
    )
}

fn front() -> Arg {
    Arg::new("front")
        .long("front")
        .value_name("X,Y")
        .action(ArgAction::Append)
        .help(
            "two columns that the page of a sweep draws against each other, as held_peak_gib,latency_p99_ms; may be given \
             several times [default: the target, throughput, latencies and memory]",
        )
}

fn fail_if() -> Arg {
    Arg::new("fail-if")
        .long("fail-if")
        .value_name("CONDITION")
        .action(ArgAction::Append)
        .help("exit with 3 if a simulation has it so, as 'failed > 0'; may be given several times")
}
