//! What tables need to know of the terminal.

use std::io::{IsTerminal, stdout};

/// Columns of the terminal; none if the output goes elsewhere.
pub fn terminal_width() -> Option<usize> {
    if !stdout().is_terminal() {
        return None;
    }
    let from_environment = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    from_environment
        .or_else(|| console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns)))
}
