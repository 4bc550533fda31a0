//! `kvlab engine generate`: text from the model, over any policy.

use std::io::{Read, Write, stderr, stdin, stdout};
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use engine::context::Context;
use engine::sample::{Sampler, Sampling};
use engine::tokenizer::{Role, Tokenizer};

use super::model::{Loaded, cache_flags, model_flags};
use crate::trouble::{Trouble, usage};

const EXAMPLES: &str = "\
Examples:
  kvlab engine generate --model gemma-3-1b-it --chat --prompt 'Why is the sky blue?'
  kvlab engine generate --model gemma-3-4b-it-q4_0.gguf --prompt - < prompt.txt --num-ctx 512 --policy shift
  kvlab engine generate --prompt 'note ada apple .' --max-tokens 20 --temperature 0.7 --seed 3

Text goes to standard output as it comes, speed to standard error. With a context that is too short the
policy does what it does at the limit.";

/// The subcommand.
pub fn command() -> Command {
    let share = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("X")
            .default_value(default)
            .value_parser(value_parser!(f32))
            .help(help)
    };
    let command = Command::new("generate")
        .about("go on with a text")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("prompt")
                .long("prompt")
                .required(true)
                .value_name("TEXT")
                .help("the text; - for standard input"),
        )
        .arg(
            Arg::new("chat")
                .long("chat")
                .action(ArgAction::SetTrue)
                .help("put the prompt into the template of a conversation"),
        )
        .arg(
            Arg::new("max-tokens")
                .long("max-tokens")
                .value_name("N")
                .default_value("256")
                .value_parser(value_parser!(u32).range(1..))
                .help("most tokens to generate"),
        )
        .arg(share("temperature", "0", "0 takes the most likely token"))
        .arg(
            Arg::new("top-k")
                .long("top-k")
                .value_name("N")
                .default_value("64")
                .value_parser(value_parser!(usize))
                .help("only so many of the most likely tokens; 0: all"),
        )
        .arg(share("top-p", "0.95", "only the most likely tokens that have this share together"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .default_value("0")
                .value_parser(value_parser!(u64))
                .help("equal seeds give equal text"),
        );
    cache_flags(model_flags(command))
}

/// Runs it.
pub fn run(matches: &ArgMatches) -> Result<(), Trouble> {
    let sampling = sampling(matches)?;
    let loaded = Loaded::new(matches)?;
    let Some(tokenizer) = &loaded.tokenizer else {
        return Err(usage(
            "the model has no tokenizer; expected tokenizer.json beside it, or a GGUF file that has one",
        ));
    };
    let prompt = prompt(matches, &loaded, tokenizer)?;
    let most = *matches.get_one::<u32>("max-tokens").expect("the number has a default");
    let (mut backend, policy) = loaded.cache(matches, prompt.len() as u32 + most)?;
    let words = loaded.words(&*backend);
    let keep = *matches.get_one::<u32>("num-keep").expect("the head has a default");
    let mut context = Context::new(&mut *backend, policy, keep, prompt.len() as u32);
    let mut sampler = Sampler::new(sampling, *matches.get_one("seed").expect("the seed has a default"));

    let started = Instant::now();
    let mut next = 0;
    context.push(&prompt, 1, &mut |logits| next = sampler.choose(logits)).map_err(usage)?;
    let prefill = started.elapsed();
    let (mut out, mut text) = (stdout().lock(), tokenizer.stream());
    let mut answered = 0;
    while answered < most && !loaded.stops.contains(&next) {
        answered += 1;
        out.write_all(text.push(next).as_bytes())?;
        out.flush()?;
        if answered < most {
            context.push(&[next], 1, &mut |logits| next = sampler.choose(logits)).map_err(usage)?;
        }
    }
    writeln!(out, "{}", text.finish())?;
    let decode = (started.elapsed() - prefill).as_secs_f64();
    writeln!(
        stderr(),
        "{words}: {} prompt tokens at {:.1}/s, {answered} answered at {:.1}/s; context shifted {} times",
        prompt.len(),
        prompt.len() as f64 / prefill.as_secs_f64(),
        f64::from(answered.saturating_sub(1)) / decode.max(1e-9),
        context.reductions(),
    )?;
    Ok(())
}

fn sampling(matches: &ArgMatches) -> Result<Sampling, Trouble> {
    let number = |name: &str| *matches.get_one::<f32>(name).expect("the number has a default");
    let (temperature, top_p) = (number("temperature"), number("top-p"));
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(usage(format!("--temperature is {temperature}, expected 0 or more")));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(usage(format!("--top-p is {top_p}, expected more than 0 and at most 1")));
    }
    let top_k = *matches.get_one::<usize>("top-k").expect("the number has a default");
    Ok(Sampling { temperature, top_k, top_p })
}

fn prompt(matches: &ArgMatches, loaded: &Loaded, tokenizer: &Tokenizer) -> Result<Vec<u32>, Trouble> {
    let mut text = matches.get_one::<String>("prompt").expect("the prompt is required").clone();
    if text == "-" {
        text.clear();
        stdin().read_to_string(&mut text).map_err(|error| usage(format!("standard input: {error}")))?;
    }
    if matches.get_flag("chat") {
        text = Tokenizer::chat(None, &[(Role::User, &text)]);
    }
    let tokens = tokenizer.encode(&text, true).map_err(usage)?;
    if tokens.is_empty() {
        return Err(usage("--prompt has no token; expected some text"));
    }
    loaded.check(&tokens)?;
    Ok(tokens)
}
