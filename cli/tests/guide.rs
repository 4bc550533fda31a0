//! Every command of the guide, run as a reader would, and what it prints.
//!
//! `TRYCMD=overwrite cargo test -p kvlab --test guide` writes what it prints into the pages.

use std::env::set_current_dir;
use std::fs;
use std::path::Path;

#[test]
fn every_command_of_the_guide_prints_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates lie in the workspace");
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let scenarios = folder.path().join("scenarios");
    fs::create_dir(&scenarios).expect("the folder is new");
    let entries = fs::read_dir(root.join("scenarios")).expect("the scenarios are there");
    for file in entries.map(|file| file.expect("it can be read").path()).filter(|path| path.is_file()) {
        let name = file.file_name().expect("files have names");
        fs::copy(&file, scenarios.join(name)).expect("there is room for the scenarios");
    }
    set_current_dir(folder.path()).expect("the folder is there");
    let pages = root.join("docs/guide/*.md");
    let cases = trycmd::TestCases::new();
    cases.register_bin("kvlab", assert_cmd::cargo::cargo_bin!("kvlab"));
    cases.case(pages.to_str().expect("the path is text"));
    cases.run();
    set_current_dir(root).expect("the workspace is there");
}
