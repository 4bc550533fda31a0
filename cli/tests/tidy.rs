//! The rules of the workspace that no compiler checks: who may use whom, and what files look like.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::fs;
use std::path::{Path, PathBuf};

use policies::POLICIES;
use toml::{Table, Value};

/// What each crate may use of ours, for itself and for its tests.
const ARROWS: &[(&str, &[&str])] = &[
    ("traces", &[]),
    ("policies", &[]),
    ("sim", &["policies", "traces"]),
    ("engine", &["policies", "traces"]),
    ("logs", &["traces"]),
    ("report", &["policies", "traces"]),
    ("cli", &["report", "logs", "sim", "engine", "policies", "traces"]),
    ("benches", &["report", "sim", "engine", "policies", "traces"]),
];

const LINES_MAX: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(path: &Path) -> Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn members() -> Vec<String> {
    let workspace = manifest(&root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

/// Names of all dependencies of a manifest, whatever table they stand in.
fn dependencies(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in table {
        let Value::Table(inner) = value else { continue };
        if key.ends_with("dependencies") {
            names.extend(inner.iter().map(|(name, value)| {
                let package = value.get("package").and_then(Value::as_str);
                package.unwrap_or(name).to_owned()
            }));
        } else {
            names.extend(dependencies(inner));
        }
    }
    names
}

/// Every source file of the workspace.
fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = members().iter().map(|member| root().join(member)).collect();
    folders.push(root().join("fuzz"));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files.sort();
    assert!(files.len() > 50, "the walk has missed files: {}", files.len());
    files
}

/// Lines of files that contain one of some words, as `file:line: text`.
fn lines_with<'a>(
    files: impl IntoIterator<Item = &'a (PathBuf, String)>,
    is_wrong: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        for (line, number) in text.lines().zip(1..) {
            if is_wrong(line) {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

fn has_word(line: &str, word: &str) -> bool {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_letter) && !line[at + word.len()..].starts_with(is_letter))
}

#[test]
fn crates_use_only_what_the_arrows_allow() {
    for member in members() {
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| *name == member)
            .unwrap_or_else(|| panic!("crate {member} has no place among the arrows"));
        for name in dependencies(&manifest(&root().join(&member).join("Cargo.toml"))) {
            let is_ours = ARROWS.iter().any(|(ours, _)| *ours == name) || name == "kvlab";
            assert!(!is_ours || allowed.contains(&&*name), "{member} must not use {name}");
        }
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    let wrong: Vec<_> = sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).collect();
    assert!(wrong.is_empty(), "{:?}", wrong.iter().map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn no_file_is_too_long() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines, at most {LINES_MAX}", path.display());
    }
}

#[test]
fn nothing_was_left_half_done() {
    // Put together here, so that this file does not contain them.
    let words = [["TO", "DO"].concat(), ["dbg", "!"].concat(), ["unimplement", "ed!"].concat()];
    let found = lines_with(&sources(), |line| words.iter().any(|word| line.contains(word)));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn policies_have_no_clock_file_thread_or_randomness() {
    let words = ["std::time", "std::fs", "std::thread", "std::env", "std::net", "std::process", "rand"];
    let files: Vec<_> =
        sources().into_iter().filter(|(path, _)| path.starts_with(root().join("policies/src"))).collect();
    assert!(files.len() > 10);
    let found = lines_with(&files, |line| words.iter().any(|word| has_word(line, word)));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_the_block_pool_hashes() {
    let words = [["Hash", "Map"].concat(), ["Hash", "Set"].concat()];
    let found = lines_with(&sources(), |line| words.iter().any(|word| has_word(line, word)));
    let pool = root().join("policies/src/pool.rs").display().to_string();
    let elsewhere: Vec<_> = found.iter().filter(|line| !line.starts_with(&pool)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    assert!(found.len() <= 1, "one table that is never iterated is enough: {found:#?}");
}

#[test]
fn every_policy_is_described_in_the_documents() {
    let path = root().join("docs/policies.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for spec in POLICIES {
        assert!(has_word(&text, spec.name), "{} says nothing of {}", path.display(), spec.name);
    }
}

/// What two languages must have in common: commands, the numbers of tables, how many headings there are, and which
/// documents are named.
fn language_independent(readme: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut fenced, mut headings, mut links) = (false, 0, Vec::new());
    for line in readme.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push(line.split("  #").next().unwrap_or_default().trim_end().to_owned());
        } else if line.starts_with("## ") {
            headings += 1;
        } else if line.starts_with("| ") {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if cells[1].starts_with(|c: char| c.is_ascii_digit()) {
                found.push(cells[1..cells.len() - 1].join(" | "));
            }
        }
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        links.extend(targets.filter(|target| !target.starts_with("README")).map(str::to_owned));
    }
    links.sort();
    links.dedup();
    found.push(format!("{headings} headings, links to {links:?}"));
    found
}

#[test]
fn both_readmes_give_the_same_commands_and_numbers() {
    let read = |name: &str| language_independent(&fs::read_to_string(root().join(name)).unwrap());
    let (english, chinese) = (read("README.md"), read("README.zh-CN.md"));
    assert!(english.len() > 35, "{english:?}");
    for (english, chinese) in english.iter().zip(&chinese) {
        assert_eq!(english, chinese);
    }
    assert_eq!(english.len(), chinese.len());
}
