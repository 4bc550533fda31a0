//! `kvlab engine logits`: what the model predicts after every token.

use std::io::Write;
use std::path::Path;

use clap::{Arg, ArgMatches, Command};
use engine::context::Context;

use super::model::{Loaded, cache_flags, model_flags};
use crate::arguments::out;
use crate::trouble::{Trouble, usage};

const EXAMPLES: &str = "\
Examples:
  kvlab engine logits --tokens 2,17,43 --out logits.csv
  kvlab engine logits --model gemma-3-1b-it --tokens @tokens.txt --policy paged:16 --kv q8_0 --out logits.csv
  kvlab engine logits --synthetic gemma3-270m --tokens 2,651,9 --out -

The file has one row per position: position, token, then one logit per token of the vocabulary, with
as many digits as it takes to read the same number again.";

/// The subcommand.
pub fn command() -> Command {
    let command = Command::new("logits")
        .about("write the logits after every token of a text as CSV")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("tokens")
                .long("tokens")
                .required(true)
                .value_name("IDS|@FILE")
                .help("token ids, separated by commas or white space"),
        )
        .arg(out("FILE", "the CSV file; - for standard output").required(true));
    cache_flags(model_flags(command))
}

/// Runs it.
pub fn run(matches: &ArgMatches) -> Result<(), Trouble> {
    let tokens = tokens(matches.get_one::<String>("tokens").expect("tokens are required"))?;
    let loaded = Loaded::new(matches)?;
    loaded.check(&tokens)?;
    let (mut backend, policy) = loaded.cache(matches, tokens.len() as u32)?;
    let keep = *matches.get_one::<u32>("num-keep").expect("the head has a default");
    let mut context = Context::new(&mut *backend, policy, keep, tokens.len() as u32);
    let out = matches.get_one::<String>("out").expect("the file is required");
    if out == "-" {
        return write(&mut context, &tokens, loaded.weights.config.vocab, std::io::stdout().lock());
    }
    let folder = Path::new(out).parent().filter(|folder| !folder.as_os_str().is_empty());
    let cannot = |error: std::io::Error| usage(format!("{out}: {error}"));
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(cannot)?;
    write(&mut context, &tokens, loaded.weights.config.vocab, &mut file)?;
    file.persist(out).map_err(|error| cannot(error.error))?;
    Ok(())
}

/// Token ids from the command line or, after an at sign, from a file.
fn tokens(text: &str) -> Result<Vec<u32>, Trouble> {
    let (name, text) = match text.strip_prefix('@') {
        Some(path) => {
            (path, std::fs::read_to_string(path).map_err(|error| usage(format!("{path}: {error}")))?)
        }
        None => ("--tokens", text.to_owned()),
    };
    let mut tokens = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        for word in line.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()) {
            let token = word.parse().map_err(|_| {
                usage(format!("{name}, line {number}: {word:?} is no token id; expected a whole number"))
            })?;
            tokens.push(token);
        }
    }
    if tokens.is_empty() {
        return Err(usage(format!("{name}: no token ids; expected numbers separated by commas")));
    }
    Ok(tokens)
}

fn write(context: &mut Context<'_>, tokens: &[u32], vocab: usize, out: impl Write) -> Result<(), Trouble> {
    let mut writer = csv::Writer::from_writer(std::io::BufWriter::new(out));
    let header = ["position".to_owned(), "token".to_owned()];
    writer.write_record(header.into_iter().chain((0..vocab).map(|token| token.to_string())))?;
    let mut position = 0;
    let mut wrong = None;
    context
        .push(tokens, tokens.len(), &mut |logits| {
            let head = [position.to_string(), tokens[position].to_string()];
            let row = head.into_iter().chain(logits.iter().map(|logit| logit.to_string()));
            wrong = wrong.take().or(writer.write_record(row).err());
            position += 1;
        })
        .map_err(usage)?;
    wrong.map_or(Ok(()), Err)?;
    writer.flush()?;
    Ok(())
}
