//! `kvlab engine quality`: what policies and types of K and V cost in quality.

mod tables;

use std::fs;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Arg, ArgMatches, Command, value_parser};
use engine::cpu::Cpu;
use engine::load::{self, Options};
use engine::quality::QualityError;
use engine::quality::corpus::{self, Document, Kind, SYSTEM_TOKENS};
use engine::quality::evaluate::{Evaluation, Outcome};
use engine::quality::summary::{self, Boundaries, Group, Row};
use engine::quality::tiny;
use engine::quality::variant::Variant;
use engine::{Backend, EngineError, Weights};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use report::files;
use report::table::{Format, Table};

use crate::arguments::{format_of, out, quiet};
use crate::tables::terminal_width;
use crate::trouble::{Trouble, usage};

const EXAMPLES: &str = "\
Examples:
  kvlab engine quality
  kvlab engine quality --documents 128 --out quality
  kvlab engine quality --policies full/q8_0,shift:28,sinks:4/q8_0,ring
  kvlab engine quality --model gemma-3-1b-it --text book.txt --body 3072 --exam 256 --num-ctx 2048

A variant is a policy (see kvlab policies), then words after slashes: the type of K and V (f32, f16, bf16,
q8_0, q4_0; f16 unless said), unrotated (K is rotated as it is read), keep=N, ctx=full (room for the whole
document). `full` is room for everything; `prompt` is a server that cuts the text before the exam to its
head (keep=N) and the tokens that fit, and computes them anew.";

/// The command line.
pub fn command() -> Command {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64)).help(help)
    };
    Command::new("quality")
        .about("measure perplexity, divergence and recall per policy and type of K and V")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("model")
                .long("model")
                .value_name("DIR|FILE.gguf")
                .value_parser(value_parser!(PathBuf))
                .requires("text")
                .help("a Gemma 3 checkpoint [default: the tiny model that comes with kvlab]"),
        )
        .arg(
            Arg::new("text")
                .long("text")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .requires("model")
                .help("text that is read in windows, in place of the seeded dialogues"),
        )
        .arg(number("documents", "documents, or windows of the text at most [default: 16]"))
        .arg(
            Arg::new("policies")
                .long("policies")
                .value_name("LIST")
                .value_delimiter(',')
                .value_parser(|text: &str| Variant::from_str(text).map_err(|error| error.to_string()))
                .help("variants, separated by commas [default: a table of all kinds]"),
        )
        .arg(number("num-ctx", "context limit of the variants that have one, tokens [default: 640]"))
        .arg(number("body", "tokens before the exam [default: 1024]"))
        .arg(number("exam", "tokens of the exam, which alone are scored [default: 128]"))
        .arg(number("seed", "seed of the dialogues [default: 2]"))
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("F")
                .default_value("table")
                .value_parser(|text: &str| Format::from_str(text))
                .help("table or md for all tables; csv, json or jsonl for the main one"),
        )
        .arg(
            out("DIR", "folder for quality.csv, distances.csv and differences.csv")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(quiet("show no progress"))
}

/// What was asked for.
struct Session {
    weights: Arc<Weights>,
    documents: Vec<Document>,
    variants: Vec<Variant>,
    body: usize,
    exam: usize,
    num_ctx: u32,
    is_quiet: bool,
}

impl Session {
    fn new(matches: &ArgMatches) -> Result<Session, Trouble> {
        let number = |name: &str, default: u64, least: u64, most: u64| {
            let number = matches.get_one::<u64>(name).copied().unwrap_or(default);
            if !(least..=most).contains(&number) {
                return Err(usage(format!("--{name} is {number}, expected {least} to {most}")));
            }
            Ok(number as usize)
        };
        let body = number("body", 1024, u64::from(SYSTEM_TOKENS), 1 << 20)?;
        let exam = number("exam", 128, 1, 1 << 16)?;
        let count = number("documents", 16, 1, 1 << 20)?;
        let num_ctx = number("num-ctx", 640, 2, 1 << 20)? as u32;
        let seed = matches.get_one::<u64>("seed").copied().unwrap_or(2);
        let (weights, documents) =
            match (matches.get_one::<PathBuf>("model"), matches.get_one::<PathBuf>("text")) {
                (Some(model), Some(text)) => windows(model, text, body, exam, count)?,
                _ => {
                    let documents = (0..count as u64).map(|index| Document::new(seed, index, body, exam));
                    (tiny::weights()?, documents.collect())
                }
            };
        let longest = weights.config.max_positions;
        if body + exam > longest {
            return Err(usage(format!(
                "--body and --exam are {} tokens; the model takes {longest}",
                body + exam
            )));
        }
        let variants = match matches.get_many::<Variant>("policies") {
            Some(variants) => variants.cloned().collect(),
            None => Variant::standard(),
        };
        let reference = Variant::reference();
        let variants: Vec<Variant> = variants.into_iter().filter(|variant| *variant != reference).collect();
        if let Some(variant) = variants
            .iter()
            .find(|variant| variant.is_cut && (num_ctx as usize) < exam + variant.keep as usize)
        {
            return Err(usage(format!(
                "{variant}: --num-ctx {num_ctx} has no room for the exam and what is kept"
            )));
        }
        Ok(Session {
            weights: Arc::new(weights),
            documents,
            variants,
            body,
            exam,
            num_ctx,
            is_quiet: matches.get_flag("quiet"),
        })
    }

    fn evaluate(&self) -> Result<Outcome, Trouble> {
        let is_interrupted = Arc::new(AtomicBool::new(false));
        let flag = is_interrupted.clone();
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
        let backend = |shape| -> Result<Box<dyn Backend>, EngineError> {
            Ok(Box::new(Cpu::new(self.weights.clone(), shape)?))
        };
        let bar = if self.is_quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        if !self.is_quiet {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let template = "{elapsed_precise} {bar:40} {percent}% of {len} tokens, {per_sec}";
        bar.set_style(ProgressStyle::with_template(template)?);
        let evaluation = Evaluation {
            config: &self.weights.config,
            backend: &backend,
            num_ctx: self.num_ctx,
            num_batch: 64,
            progress: &|tokens| bar.inc(tokens),
            is_interrupted: &|| is_interrupted.load(Ordering::Relaxed),
        };
        bar.set_length(evaluation.tokens(&self.documents, self.variants.len()));
        let outcome = evaluation.run(&self.documents, &self.variants);
        bar.finish_and_clear();
        outcome.map_err(|error| match error {
            QualityError::Interrupted => std::process::exit(130),
            QualityError::Variant { .. } => usage(error),
            QualityError::Engine(error) => error.into(),
        })
    }
}

/// The weights of a checkpoint, and its text cut into windows. Each begins with bos.
fn windows(
    model: &Path,
    text: &Path,
    body: usize,
    exam: usize,
    count: usize,
) -> Result<(Weights, Vec<Document>), Trouble> {
    let loaded = load::load(model, Options::default()).map_err(usage)?;
    let words = fs::read_to_string(text).map_err(|error| usage(format!("{}: {error}", text.display())))?;
    let tokenizer = loaded
        .tokenizer
        .as_ref()
        .ok_or_else(|| usage(format!("{}: has no tokenizer, which the text needs", model.display())))?;
    let tokens = tokenizer.encode(&words, false).map_err(usage)?;
    let bos: Vec<u32> = loaded.bos.into_iter().collect();
    let size = body + exam - bos.len();
    let window = |window: &[u32]| {
        let tokens = [bos.as_slice(), window].concat();
        Document { kinds: vec![Kind::Other; tokens.len()], tokens, exam: body }
    };
    let documents: Vec<Document> = tokens.chunks_exact(size).take(count).map(window).collect();
    if documents.is_empty() {
        let what = format!("has {} tokens, expected at least {size} for one window", tokens.len());
        return Err(usage(format!("{}: {what}", text.display())));
    }
    Ok((loaded.weights, documents))
}

/// What was measured, in a sentence.
fn sentence(session: &Session, rows: &[Row]) -> String {
    let documents = session.documents.len();
    let mut text = format!(
        "{documents} documents of {} tokens, the last {} predicted; context limit {}",
        session.body + session.exam,
        session.exam,
        session.num_ctx
    );
    if let Some(row) = rows.first().filter(|row| row.recall.count > 0) {
        let group = |(group, estimate): (Group, &engine::quality::statistics::Estimate)| {
            format!("{} {}", estimate.count, group.name())
        };
        let groups: Vec<String> = Group::ALL.into_iter().zip(&row.recall_by_group).map(group).collect();
        text += &format!(
            "; {} answers ({}; a guess is right once in 64); floor of chat {:.4} nats",
            row.recall.count,
            groups.join(", "),
            corpus::floor()
        );
    }
    text + ". Standard errors are clustered by document."
}

/// `kvlab engine quality`.
pub fn quality(matches: &ArgMatches) -> Result<(), Trouble> {
    let session = Session::new(matches)?;
    let format = format_of(matches);
    let out = matches.get_one::<PathBuf>("out");
    if let Some(dir) = out {
        fs::create_dir_all(dir).map_err(|error| usage(format!("{}: {error}", dir.display())))?;
    }
    let outcome = session.evaluate()?;
    let boundaries = Boundaries::new(session.body, session.exam, session.num_ctx);
    let mut all = vec![outcome.reference.clone()];
    all.extend(outcome.variants);
    let rows: Vec<Row> =
        all.iter().map(|measured| summary::row(measured, &outcome.reference, boundaries)).collect();
    let pairs = summary::pairs(&all);
    let has_facts = summary::has_facts(&session.documents);
    let main = |is_for_people| {
        let config = &session.weights.config;
        tables::main(&rows, config, session.body + session.exam, session.num_ctx, has_facts, is_for_people)
    };
    if let Some(dir) = out {
        let mut written = vec![
            ("quality.csv", main(false)),
            ("differences.csv", tables::differences(&pairs, has_facts, false)),
        ];
        if has_facts {
            written.push(("distances.csv", tables::distances(&rows, false)));
        }
        for (name, table) in written {
            files::write_text(&dir.join(name), &table.render(Format::Csv)?)?;
        }
        writeln!(stderr(), "wrote {}", dir.display())?;
    }
    let is_for_people = matches!(format, Format::Table | Format::Md);
    let show = |mut table: Table| {
        if let Some(width) = (format == Format::Table).then(terminal_width).flatten() {
            table.fold(width, 1);
        }
        table.render(format)
    };
    let mut text = String::new();
    if is_for_people {
        text += &format!("{}\n\n", sentence(&session, &rows));
    }
    text += &show(main(is_for_people))?;
    if is_for_people && has_facts {
        text += &format!("\nrecall by distance, tokens\n\n{}", show(tables::distances(&rows, true))?);
    }
    if is_for_people && !pairs.is_empty() {
        let table = tables::differences(&pairs, has_facts, true);
        text += &format!("\npaired differences, same tokens of the same documents\n\n{}", show(table)?);
    }
    Ok(stdout().write_all(text.as_bytes())?)
}
