//! The command line of kvlab.

mod advise;
mod arguments;
mod calibrate;
mod catalogues;
mod compare;
mod condition;
mod device;
mod diagnose;
mod engine;
mod engine_setup;
mod experiment;
mod explain;
mod paragraphs;
mod plot;
mod redraw;
mod scale;
mod settings;
mod swap;
mod sweep;
mod tables;
mod trace;
mod trouble;
mod validate;

use std::io::Write;
use std::process::ExitCode;

use trouble::Trouble;

fn main() -> ExitCode {
    let matches = arguments::command().get_matches();
    let result = match matches.subcommand() {
        Some(("compare", matches)) => compare::compare(matches),
        Some(("run", matches)) => compare::run(matches),
        Some(("advise", matches)) => advise::advise(matches),
        Some(("sweep", matches)) => sweep::sweep(matches),
        Some(("task", matches)) => sweep::task(matches),
        Some(("collect", matches)) => sweep::collect(matches),
        Some(("report", matches)) => redraw::report(matches),
        Some(("plot", matches)) => plot::plot(matches),
        Some(("calibrate", matches)) => calibrate::calibrate(matches),
        Some(("validate", matches)) => validate::validate(matches),
        Some(("diagnose", matches)) => diagnose::diagnose(matches),
        Some(("explain", matches)) => explain::explain(matches),
        Some(("engine", matches)) => engine::engine(matches),
        Some(("trace", matches)) => trace::trace(matches),
        Some(("policies", matches)) => catalogues::policies(matches),
        Some(("rules", matches)) => catalogues::rules(matches),
        Some(("models", matches)) => catalogues::models(matches),
        Some(("gpus", matches)) => catalogues::gpus(matches),
        Some(("hosts", matches)) => catalogues::hosts(matches),
        Some(("completions", matches)) => arguments::completions(matches),
        _ => unreachable!("clap asks for a subcommand"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            // A reader that has gone away (`kvlab ... | head`) is no trouble.
            if is_broken_pipe(&trouble) {
                return ExitCode::SUCCESS;
            }
            let _ = writeln!(std::io::stderr(), "{}", trouble.text());
            ExitCode::from(trouble.code())
        }
    }
}

fn is_broken_pipe(trouble: &Trouble) -> bool {
    let Trouble::Run(error) = trouble else { return false };
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
