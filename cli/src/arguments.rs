//! Commands and flags.

mod results;

use std::io::{Write, stdout};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use report::table::Format;

use crate::engine_setup;
use crate::settings::Settings;
use crate::trouble::Trouble;

const EXAMPLES_COMPARE: &str = "\
Examples:
  kvlab compare scenarios/chat.toml
  kvlab compare trace.csv contiguous,paged,defrag
  kvlab compare --trace trace.csv.gz --policies paged:16,paged:64 --num-parallel 8,16 --format csv
  kvlab compare scenarios/chat.toml --print-config > mine.toml

Every setting is also a key of scenario files (with underscores) and an environment variable
(KVLAB_NUM_CTX). Comma lists make grids.";

const EXAMPLES_ADVISE: &str = "\
Examples:
  kvlab advise scenarios/ollama-gemma3.toml --for ollama-0.12.4 --seeds 3 --slo ttft_p99=6s,tpot_p99=100ms
  kvlab advise trace.csv --for llama-server --model gemma3-12b-q4_0 --gpu rtx3090
  kvlab advise --server-log server.log --gpu rtx8000+gtx1660super
  kvlab advise trace.csv --for vllm --model config.json --gpu h100 --try num_parallel=64,128 --json

Settings say what runs now; --now beats them. The exit code is 0 with advice, 3 if no setting keeps the
objective, 2 for wrong input.";

const EXAMPLES_CALIBRATE: &str = "\
Examples:
  kvlab calibrate --synthetic gemma3-270m --num-ctx 2048 --num-parallel 4 --out 270m.toml
  kvlab calibrate scenarios/chat.toml --engine-model ./gemma-3-1b-it --out 1b.toml
  kvlab compare trace.csv --model 1b.toml --gpu cpu --cost 1b.toml --memory per-slot

A workload tells where the steps that matter are: the sweep gets steps like its own, and the fit
weighs steps by its time. Without one, all steps count alike. Settings of hardware and model are those
of the engine.";

const EXAMPLES_TRACE: &str = "\
Examples:
  kvlab trace show trace.jsonl.gz --out pictures
  kvlab trace convert AzureLLMInferenceTrace_conv.csv conv.kvlab.csv --limit 1000
  kvlab trace generate chat --requests 2000 --seed 7 chat.csv";

const EXAMPLES_VALIDATE: &str = "\
Examples:
  kvlab validate scenarios/validate-tiny.toml
  kvlab validate scenarios/validate-tiny.toml paged,contiguous --repeats 3 --out validated
  kvlab validate trace.csv paged --synthetic gemma3-270m --calibration 270m.toml --clock real

Gates: mean TTFT within 5 %, TPOT and latency within 3 %. The exit code is 0 whether they are kept or not,
unless --gate; it is 1 if the simulator, given the engine's times, does anything else than the engine.";

const EXAMPLES_DIAGNOSE: &str = "\
Examples:
  kvlab diagnose server.log
  journalctl -u ollama --since yesterday | kvlab diagnose -
  kvlab diagnose server-1.log.gz server.log --trace-out recovered.csv
  kvlab diagnose server.log --format json

Lines that are not known are ignored. The exit code is 0 whatever the log says, 2 for a log that
cannot be read or, with --trace-out, has no request.";

const EXAMPLES_EXPLAIN: &str = "\
Examples:
  kvlab explain 'panic: failed to decode batch: could not find a kv cache slot (length: 2560)'
  kvlab explain context-shift
  kvlab explain 6656
  tail -n 20 server.log | kvlab explain -
  kvlab explain

The exit code is 0, also where nothing in the text is known.";

/// The whole command line.
pub fn command() -> Command {
    let experiment = |name: &'static str, about: &'static str| {
        let command = Command::new(name)
            .about(about)
            .after_help(EXAMPLES_COMPARE)
            .arg(Arg::new("file").value_name("SCENARIO|TRACE").help("a scenario (.toml) or a trace"))
            .arg(Arg::new("list").value_name("POLICIES").help("policies, separated by commas"))
            .arg(format())
            .arg(out("DIR", "folder for the results [default: kvlab-out/NAME]"))
            .arg(flag("no-files", "write no files, only the table"))
            .arg(flag("print-config", "print the resolved settings as a scenario, and stop"))
            .arg(quiet("show no progress"));
        Settings::flags(command)
    };
    Command::new("kvlab")
        .about("A laboratory for KV-cache allocation policies")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(experiment(
            "compare",
            "compare policies and settings on a trace: table, files and report.html",
        ))
        .subcommand(
            experiment("run", "run one experiment and print every number of it").arg(
                Arg::new("log").long("log").value_name("FILE").help(
                    "write the log that Ollama 0.6.6 would have written (scheduler runner, first seed)",
                ),
            ),
        )
        .subcommand(advise())
        .subcommand(results::sweep())
        .subcommand(results::task())
        .subcommand(results::collect())
        .subcommand(results::report())
        .subcommand(results::plot())
        .subcommand(calibrate())
        .subcommand(validate())
        .subcommand(diagnose())
        .subcommand(
            Command::new("explain")
                .about("say what log lines mean, and what to change; without TEXT: all that is known")
                .after_help(EXAMPLES_EXPLAIN)
                .arg(
                    Arg::new("text")
                        .value_name("TEXT")
                        .num_args(0..)
                        .help("log lines, the name of an event, or a length; - for standard input"),
                )
                .arg(text_or_format()),
        )
        .subcommand(trace())
        .subcommand(crate::engine::command())
        .subcommand(
            Command::new("policies").about("list the policies, their knobs and sources").arg(format()),
        )
        .subcommand(
            Command::new("rules")
                .about("list the rules of eviction and those for victims of preemption")
                .arg(format()),
        )
        .subcommand(Command::new("models").about("list the models").arg(format()))
        .subcommand(Command::new("gpus").about("list the GPUs").arg(format()))
        .subcommand(Command::new("hosts").about("list the hosts and the GPUs in them").arg(format()))
        .subcommand(
            Command::new("completions")
                .about("print completions for a shell")
                .arg(Arg::new("shell").required(true).value_parser(value_parser!(Shell))),
        )
}

fn advise() -> Command {
    let command = Command::new("advise")
        .about("settings for a server that keep an objective on a trace, with the reasons")
        .after_help(EXAMPLES_ADVISE)
        .arg(
            Arg::new("file")
                .value_name("SCENARIO|TRACE")
                .help("a trace, or a scenario (.toml) whose keys above the rows are what runs now"),
        )
        .arg(
            Arg::new("server-log")
                .long("server-log")
                .value_name("LOG")
                .action(ArgAction::Append)
                .help("take requests and what runs now from a log instead; - for standard input"),
        )
        .arg(
            Arg::new("for")
                .long("for")
                .value_name("SERVER")
                .value_parser(crate::advise::SERVERS)
                .help("the server [default: that of the log]"),
        )
        .arg(
            Arg::new("slo")
                .long("slo")
                .value_name("LIMITS")
                .help("limits on ttft, tpot and latency [default: ttft_p99=5s,tpot_p99=200ms]"),
        )
        .arg(
            Arg::new("now")
                .long("now")
                .value_name("KEY=V,KEY=V")
                .action(ArgAction::Append)
                .help("what runs now [default: the settings, the log, the server's defaults]"),
        )
        .arg(
            Arg::new("try")
                .long("try")
                .value_name("KEY=V,V")
                .action(ArgAction::Append)
                .help("values of a knob to try [default: a grid]"),
        )
        .arg(flag("exhaustive", "simulate every candidate as well, and print the regret"))
        .arg(flag("json", "print the advice as JSON"))
        .arg(number("threads", "simulations at once [default: one per core]"))
        .arg(quiet("show no progress"));
    Settings::flags(command)
}

fn validate() -> Command {
    let command = Command::new("validate")
        .about("serve a workload on the engine, and compare with what the simulator says of it")
        .after_help(EXAMPLES_VALIDATE)
        .arg(Arg::new("file").value_name("SCENARIO|TRACE").help("a scenario (.toml) or a trace"))
        .arg(Arg::new("list").value_name("POLICIES").help("policies, separated by commas"))
        .arg(format())
        .arg(
            Arg::new("calibration")
                .long("calibration")
                .value_name("FILE")
                .help("what `kvlab calibrate` has written [default: a quick calibration is made first]"),
        )
        .arg(
            Arg::new("clock")
                .long("clock")
                .value_name("CLOCK")
                .default_value("fast")
                .value_parser(["fast", "real"])
                .help("fast: idle time is skipped; real: requests come when the trace says"),
        )
        .arg(
            Arg::new("text")
                .long("text")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("say the trace in stretches of this text [default: tokens made by a hash]"),
        )
        .arg(number("repeats", "runs on the engine per policy").default_value("1"))
        .arg(flag("gate", "exit with 1 where a gate is missed"))
        .arg(out("DIR", "folder for tables, steps and calibration"))
        .arg(quiet("show no progress"));
    Settings::flags(engine_setup::flags(command))
}

fn calibrate() -> Command {
    let command = Command::new("calibrate")
        .about("time steps of the engine and fit the cost model to them, for --cost FILE")
        .after_help(EXAMPLES_CALIBRATE)
        .arg(Arg::new("file").value_name("SCENARIO|TRACE").help("a scenario (.toml) or a trace"))
        .arg(format())
        .arg(out("FILE", "the calibration").default_value("calibration.toml"))
        .arg(flag("quick", "fewer steps and rounds: a first look"))
        .arg(quiet("show no progress"));
    Settings::flags(engine_setup::flags(command))
}

fn diagnose() -> Command {
    Command::new("diagnose")
        .about("read logs of Ollama, llama-server or vLLM: what happened, why, and what to change")
        .after_help(EXAMPLES_DIAGNOSE)
        .arg(
            Arg::new("log")
                .required(true)
                .value_name("LOG")
                .num_args(1..)
                .help("logs in order of time, plain or gzip; - for standard input"),
        )
        .arg(text_or_format())
        .arg(
            Arg::new("trace-out")
                .long("trace-out")
                .value_name("FILE")
                .help("write the requests of the log as kvlab CSV, gzipped if it ends in .gz"),
        )
        .arg(
            Arg::new("tokens-per-s")
                .long("tokens-per-s")
                .value_name("X")
                .value_parser(value_parser!(f64))
                .requires("trace-out")
                .help("turns durations into answers [default: the speed in the log, or 20]"),
        )
        .arg(
            number("prompt-tokens", "prompts of unknown length [default: the median of the log, or 1000]")
                .requires("trace-out"),
        )
        .arg(quiet("show no progress"))
}

fn trace() -> Command {
    let reading = |command: Command| {
        command
            .arg(number("limit", "requests to read [default: all]"))
            .arg(number("seed", "seed of whatever the file leaves open [default: 0]"))
            .arg(
                Arg::new("time-scale")
                    .long("time-scale")
                    .value_name("X")
                    .value_parser(value_parser!(f64))
                    .help("factor on arrival times [default: 1]"),
            )
            .arg(
                Arg::new("session-rate")
                    .long("session-rate")
                    .value_name("X")
                    .value_parser(value_parser!(f64))
                    .help("session starts per second, for traces without times"),
            )
            .arg(
                Arg::new("trace-format")
                    .long("trace-format")
                    .value_name("NAME")
                    .help("format of the input [default: by its content]"),
            )
    };
    let show = Command::new("show")
        .about("statistics of a trace, and plots with --out")
        .arg(Arg::new("input").required(true).value_name("TRACE"))
        .arg(out("DIR", "folder for trace.html"))
        .arg(format());
    let convert = Command::new("convert")
        .about("write a trace as kvlab CSV")
        .arg(Arg::new("input").required(true).value_name("TRACE"))
        .arg(
            Arg::new("output").required(true).value_name("FILE").help("kvlab CSV, gzipped if it ends in .gz"),
        )
        .arg(
            Arg::new("tokens-by")
                .long("tokens-by")
                .value_name("N")
                .value_parser(value_parser!(NonZeroU32))
                .help("divide all token counts, for a smaller model [default: 1]"),
        )
        .arg(
            Arg::new("time-by")
                .long("time-by")
                .value_name("X")
                .value_parser(value_parser!(f64))
                .help("divide arrivals and waits, for a faster machine [default: 1]"),
        );
    let generate = Command::new("generate")
        .about(
            "make a synthetic trace: chat, azure-chat, image-chat, screenshots, code, rag, documents, agent, \
             seats:N[:ROUNDS], uniform:IN:OUT",
        )
        .arg(Arg::new("workload").required(true).value_name("WORKLOAD"))
        .arg(
            Arg::new("output").required(true).value_name("FILE").help("kvlab CSV, gzipped if it ends in .gz"),
        )
        .arg(number("requests", "requests to make [default: 1000]"))
        .arg(number("seed", "seed [default: 0]"))
        .arg(
            Arg::new("rate")
                .long("rate")
                .value_name("X")
                .value_parser(value_parser!(f64))
                .help("mean requests per second [default: that of the data]"),
        );
    Command::new("trace")
        .about("look at traces, convert them, make them")
        .after_help(EXAMPLES_TRACE)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(reading(show))
        .subcommand(reading(convert))
        .subcommand(generate)
}

fn number(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64)).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Where something is written: a file or a folder.
pub fn out(value: &'static str, help: &'static str) -> Arg {
    Arg::new("out").long("out").value_name(value).help(help)
}

/// The flag for silence on standard error.
pub fn quiet(help: &'static str) -> Arg {
    flag("quiet", help).short('q')
}

/// The flag for the format of tables.
pub fn format() -> Arg {
    Arg::new("format")
        .long("format")
        .value_name("F")
        .default_value("table")
        .value_parser(|text: &str| Format::from_str(text))
        .help("table, md, csv, json or jsonl")
}

/// A format for tables; without it, text for people.
fn text_or_format() -> Arg {
    Arg::new("format")
        .long("format")
        .value_name("F")
        .value_parser(|text: &str| Format::from_str(text))
        .help("table, md, csv, json or jsonl [default: text]")
}

/// The format asked for, if any.
pub fn maybe_format_of(matches: &ArgMatches) -> Option<Format> {
    matches.get_one::<Format>("format").copied()
}

/// The format asked for.
pub fn format_of(matches: &ArgMatches) -> Format {
    *matches.get_one::<Format>("format").expect("the format has a default")
}

/// `kvlab completions SHELL`.
pub fn completions(matches: &ArgMatches) -> Result<(), Trouble> {
    let shell = *matches.get_one::<Shell>("shell").expect("the shell is required");
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "kvlab", &mut script);
    Ok(stdout().write_all(&script)?)
}
